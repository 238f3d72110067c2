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
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from fastload.pool import Pool, open_pool, shared_bytes
from fastload.records import Record, Source, stable_rank
from fastload.sources import detect
from fastload.sources.folders import cut_splits

# Large enough to read at the disk's speed, small enough that a killed run repeats little.
SHARD_BYTES = 256 << 20


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
    settings = Settings(size=size, fit=fit, seed=seed, shard_bytes=SHARD_BYTES)
    workers = workers if workers is not None else len(os.sched_getaffinity(0))
    if workers < 1:
        raise ConfigError(f"workers={workers}: at least one process has to decode; pass 1 or more.")
    source = Path(source)
    out = Path(out) if out is not None else _beside(source)
    if out.exists() or out.is_symlink():
        raise DatasetError(f"{printable(out)} exists; pass another output path, or delete it first.")
    found = detect(source)
    if split:
        found = cut_splits(found, dict(split), seed)
    plan = Plan(source=found, settings=settings)
    filler = Filler(plan, range(len(plan.shards)), 1 + num_writers(workers))
    # The pool first: its processes would hold the lock on the output for as long as they live.
    with open_pool(filler, filler.path, workers) as pool, _partial(out) as partial:
        _refuse_other_plan(partial, plan)
        with _bar(plan, progress) as advance:
            digests = convert_shards(filler, partial, pool, advance)
        _write_samples(partial / SAMPLES_NAME, plan)
        _write_text(partial / MANIFEST_NAME, merge(plan, partial, digests).to_json())
        try:
            partial.rename(out)
        except OSError as e:
            raise DatasetError(f"{printable(out)} cannot be written ({e.strerror}); pass another output path.") from e
        sync(out.parent)
    return out


class Filler:
    """Decodes samples into the memory that the pool's processes share.

    Args:
        plan: what to convert.
        numbers: the shards to convert, in this order.
        num_buffers: shards that are in memory at a time; one is filled while the others are written.
    """

    def __init__(self, plan: Plan, numbers: Sequence[int], num_buffers: int) -> None:
        self.plan = plan
        self.numbers = tuple(numbers)
        side = plan.settings.size
        self._shape = (side, side, 3)
        most = max((len(plan.shards[n].records) for n in numbers), default=0)
        self.num_buffers = min(num_buffers, max(1, len(self.numbers)))
        self._buffers = [shared_bytes(most * side * side * 3) for _ in range(self.num_buffers)]
        self.slots = {number: place % self.num_buffers for place, number in enumerate(self.numbers)}

    def image(self, number: int) -> npt.NDArray[np.uint8]:
        """Return the memory of a shard's images, uint8 [n, H, W, C]."""
        shape = (len(self.plan.shards[number].records), *self._shape)
        return self._buffers[self.slots[number]][: math.prod(shape)].reshape(shape)

    def path(self, number: int, row: int) -> str:
        """Return the path of one sample."""
        return self.plan.shards[number].records[row].path

    def __call__(self, number: int, row: int) -> bytes:
        """Decode one sample into its row; return its moments, uint64 [2, C]."""
        path, settings = self.path(number, row), self.plan.settings
        image_HWC = decode(_read(self.plan.source.root, path), path, size=settings.size, fit=settings.fit)
        self.image(number)[row] = image_HWC
        return _moments(image_HWC).tobytes()


def num_writers(workers: int) -> int:
    """Return how many shards to write at a time: one for four processes that decode, a rule of thumb."""
    return -(-workers // 4)


def convert_shards(filler: Filler, folder: Path, pool: Pool, advance: Callable[[int], object]) -> dict[str, str]:
    """Write the shards of `filler`, unless they already stand there whole. Idempotent.

    Each is written while the pool decodes the next ones.

    Returns:
        SHA-256 (hex) of each file that was written now.
    """
    plan = filler.plan
    writing: dict[int, Future[str]] = {}
    digests: dict[str, str] = {}

    def finish(slot: int) -> None:
        if (task := writing.pop(slot, None)) is not None:
            digests[names[slot]] = task.result()

    names: dict[int, str] = {}
    with ThreadPoolExecutor(max(1, filler.num_buffers - 1), thread_name_prefix="fastload-write") as writers:
        for number in filler.numbers:
            shard, slot = plan.shards[number], filler.slots[number]
            if (metadata := read_shard_metadata(folder / shard.file)) and metadata.get("plan") == plan.digest:
                advance(len(shard.records))
                continue
            finish(slot)
            moments = b"".join(pool.run(number, len(shard.records), advance))
            names[slot] = shard.file
            writing[slot] = writers.submit(_write, filler, number, folder, moments)
        for slot in list(writing):
            finish(slot)
    return digests


def _write(filler: Filler, number: int, folder: Path, moments: bytes) -> str:
    shard = filler.plan.shards[number]
    label = np.array([r.label for r in shard.records], np.int64)
    # Whole numbers, so that mean and std do not depend on the order of adding.
    total = np.frombuffer(moments, np.uint64).reshape(len(shard.records), 2, -1).sum(0)
    sums = {"sum": [int(n) for n in total[0]], "square": [int(n) for n in total[1]]}
    return write_shard(folder / shard.file, filler.image(number), label, {"plan": filler.plan.digest, **sums})


def merge(plan: Plan, folder: Path, digests: Mapping[str, str] | None = None) -> Manifest:
    """Return the manifest of a folder in which every shard of the plan stands.

    Args:
        plan: what was converted.
        folder: where its shards are.
        digests: SHA-256 (hex) of the files that this process has written; the others are read for it.

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
        digest = (digests or {}).get(shard.file) or sha256_of(file)
        entry = Shard(file=shard.file, rows=len(shard.records), bytes=file.stat().st_size, sha256=digest)
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
    """Return [sum, sum of squares] per channel, exact, uint64 [2, C]."""
    height, width, channels = image_HWC.shape
    moments = np.zeros((2, channels), np.uint64)
    # Down the rows first: numpy adds long contiguous rows an order of magnitude faster than groups of 3. In
    # float32, the fastest, and exact: 256 squares of at most 255 stay below 2**24.
    for first in range(0, height, 256):
        rows = image_HWC[first : first + 256].reshape(-1, width * channels).astype(np.float32)
        for which, added in enumerate((rows.sum(0), np.einsum("ij,ij->j", rows, rows))):
            moments[which] += added.astype(np.uint64).reshape(width, channels).sum(0)
    return moments


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
