"""`bench loader`: how fast batches come, with nothing behind the loader."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fastload
from bench.peers import fast_loader, folder_loader, training_folder
from fastload.errors import ConfigError
from fastload.profiling.report import command, environment, write_json

BASELINE = "ImageFolder + DataLoader"


def measure(folder: Path, *, store: int, size: int, batch_size: int, workers: int, rounds: int) -> dict[str, Any]:
    """Run epochs of every loader in turn and return the result, ready for JSON."""
    if rounds < 1 or not 1 <= size <= store:
        raise ConfigError(
            f"rounds={rounds}, size={size}, store={store}: at least 1 round, and crops of 1 to store pixels."
        )
    device = torch.device("cpu")
    with training_folder(folder, 1 << 62) as (images, count), tempfile.TemporaryDirectory() as scratch:
        dataset = Path(scratch) / "bench.fastload"
        fastload.convert(images, dataset, size=store, progress=True)
        loaders: dict[str, Any] = {
            BASELINE: folder_loader(images, store=store, size=size, batch_size=batch_size, workers=workers)
        }
        for placement in ("host", "mapped"):
            name = f"fastload, {placement}"
            loaders[name] = fast_loader(dataset, size=size, batch_size=batch_size, device=device, placement=placement)
        speeds: dict[str, list[float]] = {name: [] for name in loaders}
        with Progress(console=Console(stderr=True), transient=True) as bar:
            for turn in bar.track(range(rounds + 1), description="epochs of each loader"):
                for name, loader in loaders.items():
                    speed = _epoch(loader)
                    if turn > 0:  # the first starts workers, reads files for the first time
                        speeds[name].append(speed)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "schema": "fastload-bench-loader", "version": 1, "command": command(), **environment(),
        "data": {"name": folder.resolve().name, "images": count, "stored": store},
        "settings": {"size": size, "batch_size": batch_size, "workers": workers, "rounds": rounds,
                     "transforms": "RandomCrop, RandomHorizontalFlip, Normalize", "output": "float32 on the CPU"},
        "images_per_second": {name: round(value) for name, value in medians.items()},
        "all_rounds": {name: [round(v) for v in values] for name, values in speeds.items()},
        "ratio_to_baseline": {name: round(value / medians[BASELINE], 2) for name, value in medians.items()},
        "not_measured": "ffcv, timm, a GPU",
    }  # fmt: skip


def _epoch(loader: Any) -> float:
    count, begin = 0, time.perf_counter()
    for images, _ in loader:
        count += len(images)
    return count / (time.perf_counter() - begin)


def say(result: dict[str, Any], file: Path | None) -> None:
    """Print the table; write the JSON where asked."""
    s, data = result["settings"], result["data"]
    table = Table(title=f"{data['images']:,} images, {data['stored']} -> {s['size']} px, batches of {s['batch_size']}, "
                  f"{result['machine']['cores']} cores")  # fmt: skip
    table.add_column("loader")
    table.add_column("images/s", justify="right")
    table.add_column("times the first", justify="right")
    for name, speed in result["images_per_second"].items():
        shown = f"{name}({s['workers']})" if name == BASELINE else name
        table.add_row(shown, f"{speed:,}", f"{result['ratio_to_baseline'][name]:.1f}")
    Console().print(table)
    if file is not None:
        write_json(file, result)
        print(f"wrote {file}")
