"""source -> plan -> decode pool -> shards -> manifest.

Everything is written to `OUT.partial/`, which is renamed when it is whole: a run that was killed leaves no
dataset, and the same command again goes on with the shards that already stand there.
"""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastload import __version__
from fastload.decode import MAX_PIXELS, Fit
from fastload.errors import ConfigError, DatasetError, SourceError, printable
from fastload.files import sync, write_text
from fastload.filling import Filler, convert_shards, finished_shard, num_writers
from fastload.formats.resident import (
    BAD_NAME,
    MANIFEST_NAME,
    SAMPLES_NAME,
    Manifest,
    Shard,
    read_shard_metadata,
    sha256_of,
)
from fastload.places import Url, as_place
from fastload.plan import SHARD_BYTES, Plan, PlannedShard, Settings
from fastload.pool import open_pool
from fastload.records import Record, Source
from fastload.sources import cut_splits, detect

OnBad = Literal["stop", "skip"]


def convert(
    source: str | Path | Source,
    out: str | Path | None = None,
    *,
    size: int = 256,
    fit: Fit = "stretch",
    split: Mapping[str, float] | None = None,
    on_bad: OnBad = "stop",
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Path:
    """Turn images with labels into a resident dataset.

    Args:
        source: class folders, a list, or anything else that `fastload.sources.detect` knows; or what it returned.
        out: the dataset to write; without it `SOURCE.fastload` beside the source.
        size: side of the stored images in pixels.
        fit: `stretch` both sides, `crop` the centre square, or `pad` to a square.
        split: shares to cut from `train`, e.g. `{"valid": 0.1}`: stratified, and fixed by `seed`.
        on_bad: `stop` at a file that is no whole image, or `skip` it and list it in `bad.csv`.
        max_pixels: images of more count as bad.
        seed: of the cut and of the one permutation of `train`.
        workers: processes that decode; without it one per available core.
        progress: show a progress bar on standard error.

    Returns:
        Path of the dataset.

    Raises:
        ConfigError: an option cannot be right.
        SourceError: no images, or in no known layout.
        DecodeError: a file is no whole image; finished shards are kept for the next try.
        DatasetError: the output exists, is being written by another process, or cannot be written.
    """
    settings = Settings(size=size, fit=fit, seed=seed, max_pixels=max_pixels, shard_bytes=SHARD_BYTES)
    workers = checked_workers(on_bad, workers)
    out = Path(out) if out is not None else default_output(source)
    refuse_existing(out)
    found = listed(source, split, seed)
    plan = Plan(source=found, settings=settings)
    filler = Filler(plan, range(len(plan.shards)), 1 + num_writers(workers), skip_bad=on_bad == "skip")
    # The pool first: its processes would hold the lock on the output for as long as they live.
    with open_pool(filler, filler.path, workers) as pool, _partial(out) as partial:
        _refuse_other_plan(partial, plan)
        with progress_bar("convert", len(found.records), progress) as advance:
            digests = convert_shards(filler, partial, pool, advance)
        finish(plan, partial, out, digests)
    return out


def checked_workers(on_bad: str, workers: int | None) -> int:
    """Return how many workers to decode with, one per available core where None; refuse what cannot be right."""
    if on_bad not in get_args(OnBad):
        raise ConfigError(f"on_bad={printable(repr(on_bad))}: not one of {', '.join(get_args(OnBad))}.")
    workers = workers if workers is not None else len(os.sched_getaffinity(0))
    if workers < 1:
        raise ConfigError(f"workers={workers}: at least one process has to decode; pass 1 or more.")
    return workers


def refuse_existing(out: Path) -> None:
    """Raise DatasetError where `out` is taken: before a long listing, not after it."""
    if out.exists() or out.is_symlink():
        raise DatasetError(f"{printable(out)} exists; pass another output path, or delete it first.")


def listed(source: str | Path | Source, split: Mapping[str, float] | None, seed: int) -> Source:
    """Return the samples of a source, with the splits that were asked for."""
    found = source if isinstance(source, Source) else detect(source)
    return cut_splits(found, dict(split), seed) if split else found


def finish(plan: Plan, partial: Path, out: Path, digests: Mapping[str, str] | None = None) -> None:
    """Write the tables and the manifest of a folder in which every shard stands, and give it its name.

    Args:
        plan: what was converted.
        partial: where its shards are.
        out: the name of the dataset.
        digests: SHA-256 (hex) of the files that this process has written; the others are read for it.

    Raises:
        DatasetError: a shard is missing or belongs to another plan, or the name is taken.
        SourceError: every image was bad.
    """
    splits: dict[str, list[Shard]] = {}
    moments = np.zeros((2, plan.image_shape[2]), object)
    samples: list[tuple[PlannedShard, list[Record]]] = []
    skipped: list[dict[str, str]] = []
    for number, shard in enumerate(plan.shards):
        file = partial / shard.file
        metadata = finished_shard(plan, number, partial)
        if metadata is None:
            raise DatasetError(f"{printable(file)} is missing or unfinished; run the same command again.")
        if shard.split == "train":
            moments += np.array([metadata["sum"], metadata["square"]], object)
        bad = {entry["path"] for entry in metadata["skipped"]}
        samples.append((shard, [r for r in shard.records if r.path not in bad]))
        skipped += metadata["skipped"]
        digest = (digests or {}).get(shard.file) or sha256_of(file)
        entry = Shard(file=shard.file, rows=len(samples[-1][1]), bytes=file.stat().st_size, sha256=digest)
        splits.setdefault(shard.split, []).append(entry)
    if not any(kept for _, kept in samples):
        first = f"{printable(skipped[0]['path'])}: {printable(skipped[0]['reason'])}"
        raise SourceError(f"none of the {len(skipped):,} images could be read (first: {first}).")
    _write_table(partial / SAMPLES_NAME, ["split", "shard", "row", "label", "path"], (
        (r.split, shard.file, row, r.label, r.path) for shard, kept in samples for row, r in enumerate(kept)
    ))  # fmt: skip
    if skipped:
        _write_table(partial / BAD_NAME, ["path", "reason"], ((s["path"], s["reason"]) for s in skipped))
    num_train = sum(shard.rows for shard in splits.get("train", ()))
    manifest = _manifest(plan, {name: tuple(shards) for name, shards in splits.items()}, moments, num_train, skipped)
    write_text(partial / MANIFEST_NAME, manifest.to_json())
    try:
        partial.rename(out)
    except OSError as e:
        raise DatasetError(f"{printable(out)} cannot be written ({e.strerror}); pass another output path.") from e
    sync(out.parent)


def _manifest(
    plan: Plan, splits: dict[str, tuple[Shard, ...]], moments: Any, num_train: int, skipped: list[dict[str, str]]
) -> Manifest:
    s, source = plan.settings, plan.source
    num_pixels = max(1, num_train * s.size * s.size)
    mean = [int(total) / num_pixels / 255 for total in moments[0]]
    square = [int(total) / num_pixels / 255**2 for total in moments[1]]
    return Manifest(
        image_shape=plan.image_shape,
        classes=source.classes,
        display_names=source.display_names,
        splits=splits,
        mean=tuple(mean),
        std=tuple(max(0.0, q - m * m) ** 0.5 for m, q in zip(mean, square, strict=True)),
        settings={"size": s.size, "fit": s.fit, "interpolation": "bilinear, antialiased", "seed": s.seed},
        source={"name": source.name, "layout": source.layout, "digest": source.digest()},
        skipped=tuple(skipped),
        fastload=__version__,
    )


def default_output(source: str | Path | Source) -> Path:
    """Return SOURCE.fastload beside the source, whatever way it was written (`food11/`, `.`, `../x`).

    Raises:
        ConfigError: the source is no path.
    """
    path = source.root if isinstance(source, Source) else as_place(source)
    if isinstance(path, Url) or (not path.exists() and ":" in str(path)):
        raise ConfigError(f"{printable(path)} is no path; name the dataset to write as well, e.g. data.fastload.")
    plain = Path(os.path.normpath(path))
    named = plain if plain.name not in ("", "..") else plain.absolute().resolve()
    return named.with_name(named.name + ".fastload")


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """Hold `OUT.partial` for this process alone; leave it behind only where it has something to resume."""
    partial = out.with_name(out.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY)
    except OSError as e:
        raise DatasetError(
            f"{printable(partial)} cannot be made ({e.strerror}); pass an output path that can be written."
        ) from e
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(
                f"{printable(partial)} is being written by another process; wait for it, or pass another output path."
            ) from None
        try:
            yield partial
        finally:
            if partial.exists():
                for leftover in partial.glob(".*.tmp"):
                    leftover.unlink()
                if not any(partial.iterdir()):
                    partial.rmdir()
    finally:
        os.close(descriptor)


def _refuse_other_plan(partial: Path, plan: Plan) -> None:
    for file in sorted(partial.glob("*.safetensors")):
        metadata = read_shard_metadata(file)
        if metadata is not None and metadata.get("plan") != plan.digest:
            raise DatasetError(
                f"{printable(partial)} holds an unfinished conversion with another source or other options; "
                "finish it with its own command, or delete it."
            )


def _write_table(file: Path, head: list[str], rows: Iterator[tuple[object, ...]]) -> None:
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(head)
        table.writerows(rows)
    sync(file)


@contextmanager
def progress_bar(name: str, total: int, show: bool) -> Iterator[Callable[[int], object]]:
    """Show `total` images on standard error; yields what is called with the number that are done."""
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)
