"""`bench growth`: what a larger dataset costs, from a thousand to a million made images."""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fastload
from bench.peers import transforms
from fastload.errors import ConfigError
from fastload.placement import Kind
from fastload.profiling.report import described
from fastload.records import Record, Source

SIDE = 32
PLACEMENTS: tuple[Kind, ...] = ("host", "mapped")
SECONDS = 1.0  # of one measurement: a million images need no whole epoch


def measure(thousands: tuple[int, ...], *, batch_size: int, rounds: int) -> dict[str, Any]:
    """Make datasets, load them in turn and return the result, ready for JSON."""
    if rounds < 1 or min(thousands) < 1 or not 1 <= batch_size <= 1000:
        raise ConfigError(f"rounds={rounds}, thousands={thousands}, batch_size={batch_size}: at least 1, at most 1000.")
    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True), transient=True) as bar:
        datasets = {
            n: _make(Path(scratch), 1000 * n) for n in bar.track(thousands, description="make images")
        }  # fmt: skip
        opened = {n: [_open_seconds(dataset, batch_size) for _ in range(rounds)] for n, dataset in datasets.items()}
        loaders = {
            (n, placement): fastload.Loader(
                fastload.open_dataset(dataset), batch_size, device="cpu", placement=placement, augment=_augment()
            )
            for n, dataset in datasets.items()
            for placement in PLACEMENTS
        }  # fmt: skip
        speeds: dict[tuple[int, str], list[float]] = {key: [] for key in loaders}
        for turn in bar.track(range(rounds + 1), description="batches of each"):
            for key, loader in loaders.items():
                speed = _speed(loader)
                if turn > 0:
                    speeds[key].append(speed)
    return {
        "schema": "fastload-bench-growth", "version": 1, **described(),
        "data": {"name": "made", "images": [1000 * n for n in thousands], "stored": SIDE},
        "settings": {"batch_size": batch_size, "rounds": rounds, "seconds": SECONDS,
                     "transforms": "RandomCrop with padding 4, RandomHorizontalFlip, Normalize"},
        "sizes": [
            {
                "images": 1000 * n, "open_seconds": round(statistics.median(opened[n]), 4),
                "images_per_second": {p: round(statistics.median(speeds[n, p])) for p in PLACEMENTS},
                "all_rounds": {p: [round(v) for v in speeds[n, p]] for p in PLACEMENTS},
            }
            for n in thousands
        ],
    }  # fmt: skip


def _augment() -> fastload.Augment:
    return fastload.Augment(transforms(SIDE, "padded"))


def _make(folder: Path, count: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (257, SIDE, SIDE, 3), dtype=np.uint8)
    records = tuple(Record(path=f"{n:07d}", label=n % 10, split="train") for n in range(count))
    source = Source(
        root=folder, layout="made", classes=tuple("0123456789"), records=records, name="made",
        reader=lambda record: pixels[int(record.path) % len(pixels)],
    )  # fmt: skip
    return Path(str(fastload.convert(source, folder / f"{count}.fastload", size=SIDE)))


def _open_seconds(dataset: Path, batch_size: int) -> float:
    begin = time.perf_counter()
    fastload.Loader(fastload.open_dataset(dataset), batch_size, device="cpu", placement="mapped", augment=_augment())
    return time.perf_counter() - begin


def _speed(loader: fastload.Loader) -> float:
    count, begin = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < SECONDS:
        for images, _ in islice(loader, 1000):
            count += len(images)
            if time.perf_counter() - begin > SECONDS:
                break
    return count / seconds


def say(result: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title=f"images of {SIDE} px, batches of {result['settings']['batch_size']}")
    for name in ("images", *(f"{p}, images/s" for p in PLACEMENTS), "opened in, s"):
        table.add_column(name, justify="right")
    for row in result["sizes"]:
        speeds = (f"{row['images_per_second'][p]:,}" for p in PLACEMENTS)
        table.add_row(f"{row['images']:,}", *speeds, f"{row['open_seconds']:.3f}")
    Console().print(table)
