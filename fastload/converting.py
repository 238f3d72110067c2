"""What `fastload convert` does with its options: what it refuses, finds, writes and says."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from fastload.errors import ConfigError, DecodeError, printable

if TYPE_CHECKING:
    from fastload.places import Place
    from fastload.plan import Plan, Settings
    from fastload.records import Source

# What goes for tables, and what for FFCV's files alone: an option that would do nothing is refused.
OF_TABLES = {"source", "out", "target", "regression", "split", "seed", "dry_run"}
_OF_FFCV = {"mode", "quality", "max_resolution"}


def given(ctx: typer.Context, format: str) -> set[str]:
    """Return the options that stand on the command line."""
    given = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    return given - {"format"} if format == "resident" else given


def refuse(what: str, options: Collection[str]) -> None:
    """Raise ConfigError for the first of these options that were given: it means nothing to `what`."""
    for name in sorted(options):
        raise ConfigError(f"--{name.replace('_', '-')} means nothing to {what}; leave it out.")


def refuse_for_images(format: str, given: Collection[str]) -> None:
    """Raise ConfigError for an option that means nothing to this format."""
    given = set(given)
    if format == "ffcv":
        refuse("--format ffcv, which writes in one go", given & {"task", "dask"})
        refuse("--format ffcv, which keeps images' own sizes up to --max-resolution", given & {"size", "fit"})
    else:
        refuse("a dataset of one size; pass --format ffcv for it", given & _OF_FFCV)


def _refuse_empty(shares: Mapping[str, float], counts: Mapping[str, int]) -> None:
    """Raise ConfigError where a split that was asked for has nothing in it: training would miss it much later."""
    for split in shares.keys() - counts.keys():
        raise ConfigError(
            f"--split {split}={shares[split]:g} takes no sample of any class, as they are small; pass a larger share."
        )


def _remark(sentences: Sequence[str]) -> None:
    """Say what a person might not expect, before the work begins."""
    for sentence in sentences:
        print(f"note: {sentence}", file=sys.stderr)


@contextmanager
def _saying_what_skips(on_bad: str) -> Iterator[None]:
    """Add to a bad image's error the option that leaves it out."""
    try:
        yield
    except DecodeError as e:
        if on_bad == "stop" and e.of_file:
            e.args = (f"{str(e).removesuffix('.')}; mend it, or pass --on-bad skip to leave such files out.",)
        raise


def output_of(source: str, out: str | None, format: str, *, is_free: bool) -> Place:
    """Return where to write; where that has to be free, say so before a long listing."""
    from fastload import conversion
    from fastload.places import as_place

    path = as_place(out) if out is not None else conversion.default_output(source)
    if format == "ffcv" and out is None:
        path = conversion.default_output(source).with_suffix(".ffcv")
    if is_free:
        conversion.free_output(path)
    return path


def find(source: str, listing: Mapping[str, Any], shares: Mapping[str, float], seed: int) -> Source:
    """Return what a source holds, with the splits that were asked for, none of them empty."""
    from fastload import conversion, sources

    with Console(stderr=True).status("listing the samples"):
        found = sources.detect(source, **listing)
    found = conversion.listed(found, shares, seed)
    _refuse_empty(shares, found.counts())
    return found


def say_plan(found: Source, path: Place, settings: Settings | None) -> None:
    """Print what was found and would be written, and where."""
    from fastload.plan import Plan
    from fastload.sources import describe

    wanted = Plan(source=found, settings=settings) if settings is not None else None
    print("\n".join([*describe(found), _would_write(path, found, wanted)]))


def convert_to_ffcv(found: Source, path: Place, *, on_bad: str, **options: Any) -> None:
    """Write `.beton` files, and say so."""
    from fastload.conversion_ffcv import convert_to_ffcv, skipped_in
    from fastload.sources import remarks

    _remark(remarks(found))
    with _saying_what_skips(on_bad):
        folder = convert_to_ffcv(found, path, on_bad=on_bad, progress=True, **options)  # type: ignore[arg-type]
    print(f"wrote {printable(folder)}: {', '.join(f.name for f in sorted(folder.glob('*.beton')))}")
    _say_left_out(folder, skipped := skipped_in(folder))
    _remark(_emptied(skipped, found))


def convert_images(found: Source, path: Place, *, on_bad: str, task: str | None, **options: Any) -> None:
    """Write a dataset of one image size, or a share of it, and say so."""
    from fastload.conversion import convert
    from fastload.formats.manifest import read_manifest
    from fastload.sources import remarks

    _remark(remarks(found))
    with _saying_what_skips(on_bad):
        written = convert(found, path, on_bad=on_bad, task=task, progress=True, **options)  # type: ignore[arg-type]
    if task is not None:
        print(f"task {task} is done: {printable(written)}; when all are: fastload merge {printable(path)}")
        return
    say_written(written)
    _remark(_emptied(read_manifest(written).skipped, found))


def convert_table(
    source: str,
    out: str | None,
    target: list[str] | None,
    regression: bool | None,
    shares: dict[str, float],
    seed: int,
    dry_run: bool,
) -> None:
    """Write a table, or say what would be written."""
    from fastload import conversion, sources
    from fastload.conversion_tables import convert_table

    output = conversion.free_output(out, source)
    table = sources.read_table(source, target=target, regression=regression, split=shares, seed=seed)
    _refuse_empty(shares, table.counts())
    if dry_run:
        print("\n".join([*sources.describe_table(table), f"would write: {printable(output.path)}"]))
    else:
        _remark([printable(note) for note in table.notes])
        say_written(convert_table(table, output.path, seed=seed))


def say_written(path: Place) -> None:
    """Print what a dataset holds that was just written."""
    from fastload.formats.manifest import read_manifest

    manifest = read_manifest(path)
    counts = ", ".join(f"{manifest.count(s):,} {s}" for s in manifest.splits)
    kinds = f"{len(manifest.classes)} classes" if manifest.classes else "targets to regress on"
    print(f"wrote {printable(path)}: {counts}; {kinds}, {manifest.sample}")
    _say_left_out(path, manifest.skipped)


def _say_left_out(path: Place, skipped: Sequence[Mapping[str, str]]) -> None:
    if skipped:
        print(f"left out {len(skipped):,} bad images: see {printable(path)}/bad.csv", file=sys.stderr)


def _emptied(skipped: Sequence[Mapping[str, str]], source: Source) -> list[str]:
    """Return the sentences on the splits and classes of which every image was bad."""
    bad = {entry["path"] for entry in skipped}
    left = {r.label for r in source.records if r.path not in bad} if bad else set(range(len(source.classes)))
    lost = [printable(name) for label, name in enumerate(source.classes) if label not in left]
    empty = source.counts().keys() - {r.split for r in source.records if r.path not in bad}
    return [
        *([f"splits of which every image is bad, so they are empty: {', '.join(sorted(empty))}"] if empty else []),
        *([f"classes of which every image is bad: {len(lost):,} (first: {lost[0]})"] if lost else []),
    ]


def _would_write(target: Place, source: Source, plan: Plan | None) -> str:
    from fastload.placement import gib

    if plan is None:
        files = ", ".join(f"{split}.beton" for split in source.counts())
        return f"would write: {printable(target)}, {files}, images of their own sizes"
    num_bytes = sum(len(shard.records) for shard in plan.shards) * math.prod(plan.image_shape)
    shape = "x".join(str(n) for n in plan.image_shape)
    return f"would write: {printable(target)}, {shards_in_words(len(plan.shards))} of {shape} uint8, {gib(num_bytes)}"


def shards_in_words(count: int) -> str:
    """Return a number of shards as people write it."""
    return f"{count:,} shard{'' if count == 1 else 's'}"


def parse_shares(texts: Sequence[str]) -> dict[str, float]:
    """Return the shares that --split names, under the three splits' own names."""
    from fastload.records import known_split

    shares: dict[str, float] = {}
    for text in texts:
        word, _, share = text.partition("=")
        name = known_split(word)
        if name in shares:
            raise ConfigError(f"--split {printable(text)}: {printable(name)} was given before; leave one of them out.")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ConfigError(f"--split {printable(text)}: write it as NAME=SHARE, e.g. --split valid=0.1.") from None
    return shares
