"""source -> plan -> decode pool -> shards -> manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastload import __version__
from fastload.decode import MAX_PIXELS, Fit
from fastload.errors import ConfigError, DatasetError, SourceError, printable
from fastload.files import write_table, write_text, write_whole
from fastload.filling import Filler, convert_shards, finished_shards, num_writers
from fastload.formats.manifest import BAD_NAME, MANIFEST_NAME, SAMPLES_HEAD, SAMPLES_NAME, Field, Manifest, Shard
from fastload.formats.resident import read_shard_metadata, sha256_of
from fastload.formats.shardfile import unwritten
from fastload.output import Output
from fastload.places import Place, as_place, exists, files_in, num_bytes_of
from fastload.plan import PLAN_NAME, SHARD_BYTES, Plan, PlannedShard, Settings, is_plan_of, read_plan
from fastload.pool import open_pool
from fastload.records import Record, Source
from fastload.sources import cut_splits, detect, is_packed_table, library_name, read_table
from fastload.urls import Url

OnBad = Literal["stop", "skip"]
MAX_WORKERS = 1024  # more are a typing mistake, and forking them would hold up the whole machine


def convert(
    source: str | Place | Source,
    out: str | Place | None = None,
    *,
    size: int = 256,
    fit: Fit = "stretch",
    split: Mapping[str, float] | None = None,
    on_bad: OnBad = "stop",
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
    workers: int | None = None,
    target: str | Sequence[str] | None = None,
    task: str | None = None,
    dask: str | None = None,
    progress: bool = False,
) -> Place:
    """Turn images with labels, or a table, into a resident dataset.

    Args:
        source: class folders, a list, or anything else that `fastload.sources.detect` knows; or what it returned.
        out: the dataset to write, a path or an fsspec URL; without it `SOURCE.fastload` beside the source.
        size: side of the stored images in pixels.
        fit: `stretch` both sides, `crop` the centre square, or `pad` to a square.
        split: shares to cut from `train`, e.g. `{"valid": 0.1}`: stratified, and fixed by `seed`.
        on_bad: `stop` at a file that is no whole image, or `skip` it and list it in `bad.csv`.
        max_pixels: images of more count as bad.
        seed: of the cut and of the one permutation of `train`.
        workers: processes that decode; without it one per available core.
        target: the source is a table, and this is the column to predict, by name or number, or several: see
            `fastload.sources.read_table`. Of the other options, `split` and `seed` go for tables.
        task: `3/64` writes the third of 64 shares of the shards, on any machine that sees `out`; `merge`
            closes a dataset whose tasks are all done.
        dask: address of a Dask scheduler, whose workers write the shards; they must see source and `out`.
        progress: show a progress bar on standard error.

    Returns:
        Path of the dataset; of a task, the folder where its shards stand.

    Raises:
        ConfigError: an option cannot be right.
        SourceError: no images, or in no known layout.
        DecodeError: a file is no whole image; finished shards are kept for the next try.
        DatasetError: the output exists, is being written by another process, or cannot be written.
    """
    if target is not None or (not isinstance(source, Source) and is_packed_table(source)):
        if task or dask:
            raise ConfigError("a table is converted in one go; leave task and dask out.")
        return _convert_table(source, out, target=target, split=split, seed=seed)
    settings = Settings(size=size, fit=fit, seed=seed, max_pixels=max_pixels, shard_bytes=SHARD_BYTES)
    workers = checked_workers(on_bad, workers)
    share = _share(task)
    if task and dask:
        raise ConfigError("a task runs here and dask elsewhere; pass one of them.")
    output = free_output(out, source)
    plan = Plan(source=listed(source, split, seed), settings=settings)
    if dask is not None:
        return _convert_on(dask, plan, output, on_bad == "skip", progress)
    numbers = range(len(plan.shards))[share]
    with (
        Filler(plan, numbers, output.folder, 1 + num_writers(workers), skip_bad=on_bad == "skip") as filler,
        # Before the output: its processes would hold the lock on it for as long as they live.
        open_pool(filler, filler.path, workers) as pool,
        output.held(shared=task is not None) as folder,
    ):
        _refuse_other_plan(folder, plan)
        if task is not None:
            _write_plan(plan, folder / PLAN_NAME)
        if progress:
            filler.say_what_stands()
        total = sum(len(plan.shards[n].records) for n in numbers)
        with progress_bar("convert", total, progress) as advance:
            digests = convert_shards(filler, pool, advance)
        if task is not None:
            return folder
        finish(plan, output, finished_shards(plan, folder), digests)
    return output.path


def _convert_table(source: str | Place | Source, out: str | Place | None, *, seed: int, **how: Any) -> Place:
    """Read a table, with `how` for `read_table`, and write it."""
    from fastload.conversion_tables import convert_table

    if isinstance(source, Source):
        raise ConfigError(f"{source.name} was listed as images; pass the table's path, or leave target out.")
    path = free_output(out, source).path
    return convert_table(read_table(source, seed=seed, **how), path, seed=seed)


def _convert_on(dask: str, plan: Plan, output: Output, skip_bad: bool, progress: bool) -> Place:
    """Let the workers of a Dask scheduler write the shards, and close the dataset."""
    from fastload.conversion_dask import convert_shards_on

    with output.held() as folder, progress_bar("convert", len(plan.source.records), progress) as advance:
        _refuse_other_plan(folder, plan)
        digests = convert_shards_on(dask, plan, folder, skip_bad, advance)
        finish(plan, output, finished_shards(plan, folder), digests)
    return output.path


def merge(out: str | Place, *, progress: bool = False) -> Place:
    """Close a dataset whose tasks (`convert(..., task="3/64")`) are all done.

    Args:
        out: the dataset that the tasks were to write.
        progress: show a progress bar on standard error.

    Returns:
        Path of the dataset.

    Raises:
        DatasetError: no tasks have run, one is running or missing, or `out` exists.
        SourceError: every image was bad.
    """
    place = as_place(out)
    if isinstance(place, Path) and place.suffix == ".partial":  # named as it lies there
        place = place.with_suffix("")
    output = Output(place, MANIFEST_NAME)
    is_rewritten = isinstance(place, Path) and exists(output.folder, DatasetError)
    if not is_rewritten and exists(output.path / MANIFEST_NAME, DatasetError):
        raise DatasetError(f"{printable(output.path)} exists and is whole; there is nothing to merge.")
    output.refuse_existing()
    if not exists(output.folder, DatasetError) or not output.folder.is_dir():
        raise DatasetError(
            f"{printable(output.folder)}: no such folder; run `fastload convert ... {printable(output.path)} "
            "--task 1/N` first."
        )
    with output.held() as folder:
        if (folder / MANIFEST_NAME).exists() and not (folder / PLAN_NAME).exists():
            output.publish()  # a run that was stopped had done all but that
            return output.path
        plan = read_plan(folder / PLAN_NAME)
        found = finished_shards(plan, folder)
        missing = [number for number, metadata in enumerate(found) if metadata is None]
        if missing:
            num_shards, first = len(plan.shards), missing[0]
            raise DatasetError(
                f"{printable(folder)}: {len(missing):,} of {num_shards:,} shards are missing (first: "
                f"{plan.shards[first].file}, which --task {first + 1}/{num_shards} writes); run their tasks again."
            )
        with progress_bar("merge", len(plan.source.records), progress) as advance:
            finish(plan, output, found, advance=advance)
    return output.path


def _share(task: str | None) -> slice:
    """Return which shards a task writes: of `3/64`, the third and every 64th after it."""
    if task is None:
        return slice(None)
    index, _, count = task.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"task {printable(task)}: write it as I/N with I from 1 to N, e.g. --task 3/64.")
    return slice(int(index) - 1, None, int(count))


def checked_workers(on_bad: str, workers: int | None) -> int:
    """Return how many workers to decode with, one per available core where None; refuse what cannot be right."""
    if on_bad not in get_args(OnBad):
        raise ConfigError(f"on_bad={printable(repr(on_bad))}: not one of {', '.join(get_args(OnBad))}.")
    workers = workers if workers is not None else len(os.sched_getaffinity(0))
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"workers={workers}: 1 to {MAX_WORKERS:,} processes decode; one per core is enough.")
    return workers


def free_output(out: str | Place | None, source: str | Place | Source = "") -> Output:
    """Return where to write: to `out`, else beside `source`.

    Raises:
        ConfigError: the source is no path, and there is no `out`.
        DatasetError: the name is taken: told before a long listing, not after it.
    """
    output = Output(as_place(out) if out is not None else default_output(source), MANIFEST_NAME)
    output.refuse_existing()
    return output


def listed(source: str | Place | Source, split: Mapping[str, float] | None, seed: int) -> Source:
    """Return the samples of a source, with the splits that were asked for."""
    found = source if isinstance(source, Source) else detect(source)
    return cut_splits(found, dict(split), seed) if split else found


def finish(
    plan: Plan,
    output: Output,
    found: Sequence[dict[str, Any] | None],
    digests: Mapping[str, str] | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Close a dataset of which every shard stands in `output.folder`, which this process holds.

    Args:
        plan: what was converted.
        output: where to.
        found: what `finished_shards` said of it.
        digests: SHA-256 (hex) of the files that this process has written; the others are read for it.
        advance: called with the number of samples that are done.

    Raises:
        DatasetError: a shard is missing or belongs to another plan, or the name is taken.
        SourceError: every image was bad.
    """
    splits: dict[str, list[Shard]] = {}
    moments = np.zeros((2, plan.image_shape[2]), object)
    samples: list[tuple[PlannedShard, list[Record]]] = []
    skipped: list[dict[str, str]] = []
    files = [output.folder / shard.file for shard in plan.shards]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # hashing lets go of the GIL
        sha256s = threads.map(lambda file: (digests or {}).get(file.name) or sha256_of(file), files)
        for shard, file, metadata in zip(plan.shards, files, found, strict=True):
            if metadata is None:
                raise DatasetError(f"{printable(file)} is missing or unfinished; run the same command again.")
            if shard.split == "train":
                moments += np.array([metadata["sum"], metadata["square"]], object)
            bad = {entry["path"] for entry in metadata["skipped"]}
            samples.append((shard, [r for r in shard.records if r.path not in bad]))
            skipped += metadata["skipped"]
            entry = Shard(file=shard.file, rows=len(samples[-1][1]), bytes=num_bytes_of(file), sha256=next(sha256s))
            splits.setdefault(shard.split, []).append(entry)
            advance(len(shard.records))
    if not any(kept for _, kept in samples):
        first = f"{printable(skipped[0]['path'])}: {printable(skipped[0]['reason'])}"
        raise SourceError(f"none of the {len(skipped):,} images could be read (first: {first}).")
    num_train = sum(shard.rows for shard in splits.get("train", ()))
    manifest = _manifest(plan, {name: tuple(shards) for name, shards in splits.items()}, moments, num_train, skipped)
    rows = ((r.split, s.file, row, r.label, r.path) for s, kept in samples for row, r in enumerate(kept))
    close(output, manifest, rows)


def close(output: Output, manifest: Manifest, samples: Iterable[tuple[object, ...]]) -> None:
    """Write `samples.csv` (of split, shard, row, label, path), `bad.csv` and the manifest, and name the dataset."""
    folder = output.folder
    file = folder / SAMPLES_NAME
    try:
        write_table(file, SAMPLES_HEAD, samples)
        if manifest.skipped:
            file = folder / BAD_NAME
            write_table(file, ("path", "reason"), ((s["path"], s["reason"]) for s in manifest.skipped))
        else:  # of an earlier try
            (folder / BAD_NAME).unlink(missing_ok=True)
        file = folder / MANIFEST_NAME
        write_text(file, manifest.to_json())
        file = folder / PLAN_NAME  # not before: without it, and without a manifest, `merge` could not go on
        file.unlink(missing_ok=True)
    except OSError as e:
        raise unwritten(file, e) from e
    output.publish()


def _manifest(
    plan: Plan, splits: dict[str, tuple[Shard, ...]], moments: Any, num_train: int, skipped: list[dict[str, str]]
) -> Manifest:
    s, source = plan.settings, plan.source
    num_pixels = max(1, num_train * s.size * s.size)
    mean = [int(total) / num_pixels / 255 for total in moments[0]]
    square = [int(total) / num_pixels / 255**2 for total in moments[1]]
    return Manifest(
        sample=Field(name="image", shape=plan.image_shape, dtype="uint8"),
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


def default_output(source: str | Place | Source) -> Path:
    """Return SOURCE.fastload beside the source, whatever way it was written (`food11/`, `.`, `../x`).

    Of `torchvision:CIFAR10` or `hf:org/CIFAR10` it is `cifar10.fastload`, in the working folder.

    Raises:
        ConfigError: the source is no path.
        SourceError: it cannot be looked at.
    """
    name = library_name(source) if isinstance(source, str | Source) else None
    if name is not None and name not in ("", ".", ".."):
        return Path(f"{name.lower()}.fastload")
    path = source.root if isinstance(source, Source) else as_place(source)
    if isinstance(path, Url) or (not exists(path, SourceError) and ":" in str(path)):
        raise ConfigError(f"{printable(path)} is no path; name the dataset to write as well, e.g. data.fastload.")
    plain = Path(os.path.normpath(path))
    named = plain if plain.name not in ("", "..") else plain.absolute().resolve()
    return named.with_name(named.name + ".fastload")


def _refuse_other_plan(folder: Place, plan: Plan) -> None:
    for name in files_in(folder, ".safetensors"):
        metadata = read_shard_metadata(folder / name)
        if metadata is not None and metadata.get("plan") != plan.digest:
            raise _other_plan(folder)


def _write_plan(plan: Plan, file: Place) -> None:
    """Write what `merge` needs, unless another task has; refuse another plan."""
    if not exists(file, DatasetError):
        try:
            write_whole(file, (text.encode() for text in plan.to_json()))
        except BlockingIOError:
            pass  # another task is just writing the same
        except OSError as e:
            raise unwritten(file, e) from e
    elif not is_plan_of(file, plan.digest):
        raise _other_plan(file.parent)


def _other_plan(folder: Place) -> DatasetError:
    return DatasetError(
        f"{printable(folder)} holds an unfinished conversion with another source or other options; "
        "finish it with its own command, or delete it."
    )


@contextmanager
def progress_bar(name: str, total: int, show: bool) -> Iterator[Callable[[int], object]]:
    """Show `total` images on standard error; yields what is called with the number that are done."""
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)
