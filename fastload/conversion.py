"""source -> plan -> decode pool -> shards -> manifest.

The plan is computed first and is a pure function of source and settings, so the same source and
settings give the same bytes, whatever the number of workers and however often the run was interrupted.
Everything is written to `NAME.fastload.partial/`, which is renamed when it is whole.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastload import __version__
from fastload.decode import Fit, check_size_and_fit, decode
from fastload.errors import ConfigError, DatasetError, DecodeError, printable
from fastload.formats.resident import (
    MANIFEST_NAME,
    SAMPLES_NAME,
    VERSION,
    Manifest,
    Shard,
    read_shard_metadata,
    sha256_of,
    sync,
    write_shard,
)
from fastload.records import Record, Source, stable_rank
from fastload.sources import cut_splits, detect

# Large enough to read at the disk's speed, small enough that a killed run repeats little.
SHARD_BYTES = 256 << 20
# Rows that one task of the pool decodes: fewer, and handing tasks out costs more than the smallest decode.
TASK_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the bytes of a dataset, beside its source."""

    size: int = 256
    fit: Fit = "stretch"
    seed: int = 0
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        check_size_and_fit(self.size, self.fit)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed}: seeds lie between 0 and 2**63 - 1.")

    @property
    def rows_per_shard(self) -> int:
        """Images in a full shard."""
        return max(1, self.shard_bytes // (self.size * self.size * 3))


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """The records that one shard will hold, in row order."""

    file: str
    split: str
    records: tuple[Record, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which sample goes to which shard and row: a pure function of source and settings."""

    source: Source
    settings: Settings

    @cached_property
    def shards(self) -> tuple[PlannedShard, ...]:
        """All shards, split by split. `train` is permuted once, so that any shard is a fair sample."""
        shards = []
        for split in self.source.counts():
            records = [r for r in self.source.records if r.split == split]
            if split == "train":
                records.sort(key=lambda r: stable_rank(self.settings.seed, r.path))
            for number, first in enumerate(range(0, len(records), self.settings.rows_per_shard)):
                rows = tuple(records[first : first + self.settings.rows_per_shard])
                shards.append(PlannedShard(file=f"{split}-{number:05d}.safetensors", split=split, records=rows))
        return tuple(shards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides the bytes; each shard carries it."""
        s = self.settings
        parts = (VERSION, self.source.digest(), s.size, s.fit, s.seed, s.rows_per_shard)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def convert(
    source: str | Path,
    out: str | Path | None = None,
    *,
    size: int = 256,
    fit: Fit = "stretch",
    split: Mapping[str, float] | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Path:
    """Turn a folder of images into a resident dataset.

    Args:
        source: class folders, with or without split folders (train, valid, test and their usual other names).
        out: the dataset to write; without it `SOURCE.fastload` beside the source.
        size: side of the stored images in pixels.
        fit: `stretch` both sides, `crop` the centre square, or `pad` to a square.
        split: shares to cut from `train`, e.g. `{"valid": 0.1}`: stratified, and fixed by `seed`.
        seed: of the cut and of the one permutation of `train`.
        workers: threads that decode; without it one per available core.
        progress: show a progress bar on standard error.

    Returns:
        Path of the dataset.

    Raises:
        ConfigError: an option cannot be right.
        SourceError: no images, or in no known layout.
        DecodeError: a file is no whole image; finished shards are kept for the next try.
        DatasetError: the output exists, is being written by another process, or cannot be written.
    """
    settings = Settings(size=size, fit=fit, seed=seed, shard_bytes=SHARD_BYTES)
    workers = workers if workers is not None else len(os.sched_getaffinity(0))
    if workers < 1:
        raise ConfigError(f"workers={workers}: at least one thread has to decode; pass 1 or more.")
    source = Path(source)
    out = Path(out) if out is not None else _beside(source)
    if out.exists() or out.is_symlink():
        raise DatasetError(f"{printable(out)} exists; pass another output path, or delete it first.")
    found = detect(source)
    if split:
        found = cut_splits(found, dict(split), seed)
    plan = Plan(source=found, settings=settings)
    with _partial(out) as partial:
        _refuse_other_plan(partial, plan)
        with (
            ThreadPoolExecutor(workers, thread_name_prefix="fastload-decode") as pool,
            _bar(plan, progress) as advance,
        ):
            for number in range(len(plan.shards)):
                convert_shard(plan, number, partial, pool, advance)
        _write_samples(partial / SAMPLES_NAME, plan)
        _write_text(partial / MANIFEST_NAME, merge(plan, partial).to_json())
        try:
            partial.rename(out)
        except OSError as e:
            raise DatasetError(f"{printable(out)} cannot be written ({e.strerror}); pass another output path.") from e
        sync(out.parent)
    return out


def convert_shard(
    plan: Plan, number: int, folder: Path, pool: ThreadPoolExecutor, advance: Callable[[int], object]
) -> None:
    """Write shard `number` of the plan, unless it already stands there whole. Idempotent."""
    shard = plan.shards[number]
    file = folder / shard.file
    if (metadata := read_shard_metadata(file)) and metadata.get("plan") == plan.digest:
        advance(len(shard.records))
        return
    size = plan.settings.size
    image = np.empty((len(shard.records), size, size, 3), np.uint8)

    def decode_rows(first: int) -> npt.NDArray[np.uint64]:
        moments = np.zeros((2, 3), np.uint64)
        for row in range(first, min(first + TASK_ROWS, len(shard.records))):
            path = shard.records[row].path
            image[row] = decode(_read(plan.source.root, path), path, size=size, fit=plan.settings.fit)
            moments += _moments(image[row])
            advance(1)
        return moments

    tasks = [pool.submit(decode_rows, first) for first in range(0, len(shard.records), TASK_ROWS)]
    done, waiting = wait(tasks, return_when=FIRST_EXCEPTION)
    for task in waiting:
        task.cancel()
    moments = sum((task.result() for task in tasks if task in done), np.zeros((2, 3), np.uint64))
    label = np.array([r.label for r in shard.records], np.int64)
    # Whole numbers, so that mean and std do not depend on the order of adding.
    sums = {"sum": [int(n) for n in moments[0]], "square": [int(n) for n in moments[1]]}
    write_shard(file, image, label, {"plan": plan.digest, **sums})


def merge(plan: Plan, folder: Path) -> Manifest:
    """Return the manifest of a folder in which every shard of the plan stands.

    Raises:
        DatasetError: a shard is missing or belongs to another plan.
    """
    splits: dict[str, list[Shard]] = {}
    moments = np.zeros((2, 3), object)
    for shard in plan.shards:
        file = folder / shard.file
        metadata = read_shard_metadata(file)
        if metadata is None or metadata.get("plan") != plan.digest:
            raise DatasetError(f"{printable(file)} is missing or unfinished; run the same command again.")
        if shard.split == "train":
            moments += np.array([metadata["sum"], metadata["square"]], object)
        entry = Shard(file=shard.file, rows=len(shard.records), bytes=file.stat().st_size, sha256=sha256_of(file))
        splits.setdefault(shard.split, []).append(entry)
    s = plan.settings
    num_pixels = max(1, plan.source.counts().get("train", 0) * s.size * s.size)
    mean = [int(total) / num_pixels / 255 for total in moments[0]]
    square = [int(total) / num_pixels / 255**2 for total in moments[1]]
    std = [max(0.0, q - m * m) ** 0.5 for m, q in zip(mean, square, strict=True)]
    return Manifest(
        image_shape=(s.size, s.size, 3),
        classes=plan.source.classes,
        display_names=plan.source.classes,
        splits={split: tuple(shards) for split, shards in splits.items()},
        mean=tuple(mean),
        std=tuple(std),
        settings={"size": s.size, "fit": s.fit, "interpolation": "bilinear, antialiased", "seed": s.seed},
        source={
            "name": plan.source.root.resolve().name,
            "layout": plan.source.layout,
            "digest": plan.source.digest(),
        },
        skipped=(),
        fastload=__version__,
    )


def _moments(image_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return [sum, sum of squares] per channel, exact, uint64 [2, 3]."""
    rows = image_HWC.reshape(image_HWC.shape[0], -1)
    # Down the rows first: numpy adds long contiguous rows an order of magnitude faster than groups of 3.
    total = rows.sum(0, dtype=np.uint64)
    square = np.multiply(rows, rows, dtype=np.uint16).sum(0, dtype=np.uint64)  # 255 squared fits 16 bits
    return np.stack([total.reshape(-1, 3).sum(0), square.reshape(-1, 3).sum(0)])


def _beside(source: Path) -> Path:
    """Return SOURCE.fastload beside the source, whatever way the source was written (`food11/`, `.`, `../x`)."""
    plain = Path(os.path.normpath(source))
    named = plain if plain.name not in ("", "..") else plain.absolute().resolve()
    return named.with_name(named.name + ".fastload")


def _read(root: Path, path: str) -> bytes:
    try:
        return (root / path).read_bytes()
    except OSError as e:
        raise DecodeError(path, f"cannot be read ({e.strerror})") from e


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


def _write_samples(file: Path, plan: Plan) -> None:
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(["split", "shard", "row", "label", "path"])
        for shard in plan.shards:
            for row, r in enumerate(shard.records):
                table.writerow([r.split, shard.file, row, r.label, r.path])
    sync(file)


def _write_text(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(file)


@contextmanager
def _bar(plan: Plan, show: bool) -> Iterator[Callable[[int], object]]:
    from rich.console import Console

    columns = (TextColumn("[bold]convert"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("convert", total=len(plan.source.records))
        yield lambda count: bar.advance(task, count)
