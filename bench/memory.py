"""`bench memory`: what a loader adds to its process, and whether it grows."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fastload
from bench.one_loader import children
from bench.peers import check_enough, training_folder
from fastload.errors import ConfigError
from fastload.profiling.report import described

MIB = 2**20


def measure(folder: Path, *, store: int, size: int, batch_size: int, epochs: int) -> dict[str, Any]:
    """Run epochs in processes of their own and return the result, ready for JSON."""
    if epochs < 10 or batch_size < 1 or not 1 <= size <= store:
        raise ConfigError(
            f"epochs={epochs}, batch_size={batch_size}, size={size}, store={store}: at least 10 epochs, batches of 1 "
            "image, and crops of 1 to store pixels are needed."
        )
    with training_folder(folder, 1 << 62) as (images, count), tempfile.TemporaryDirectory() as scratch:
        check_enough(folder, count, batch_size)
        dataset = fastload.convert(images, Path(scratch) / "bench.fastload", size=store, progress=True)
        num_bytes = fastload.open_dataset(str(dataset)).num_bytes
        # As stored and as handed out.
        batch_bytes = batch_size * 3 * (store * store + 4 * size * size)
        recipes = {
            placement: {
                "maker": "fast_loader", "dataset": str(dataset), "placement": placement, "size": size,
                "batch_size": batch_size, "settled": True,
            }
            for placement in ("host", "mapped")
        }  # fmt: skip
        rows = {}
        with children(recipes) as made, Progress(console=Console(stderr=True), transient=True) as bar:
            for name, child in made.items():
                peaks = [child.epoch()["private_bytes"] for _ in bar.track(range(epochs), description=name)]
                added = max(peaks) - child.private_bytes
                beyond = added - (num_bytes if name == "host" else 0)
                growth = statistics.median(peaks[-5:]) - statistics.median(peaks[3:8])
                rows[name] = {
                    "added_mib": round(added / MIB, 1), "batches": round(beyond / batch_bytes, 2),
                    "growth_mib": round(growth / MIB, 2), "once_mib": round(child.once_bytes / MIB, 1),
                    "peaks_mib": [round(p / MIB, 1) for p in peaks],
                }  # fmt: skip
    return {
        "schema": "fastload-bench-memory", "version": 1, **described(),
        "data": {
            "name": folder.resolve().name, "images": count, "stored": store, "mib": round(num_bytes / MIB, 1),
            "batch_mib": round(batch_bytes / MIB, 2),
        },
        "settings": {"size": size, "batch_size": batch_size, "epochs": epochs},
        "placements": rows,
    }  # fmt: skip


def say(result: dict[str, Any]) -> None:
    """Print the table."""
    data, s = result["data"], result["settings"]
    table = Table(title=f"{data['images']:,} images, {data['mib']:,.0f} MiB; a batch, as stored and as handed out, "
                  f"{data['batch_mib']:.1f} MiB; {s['epochs']} epochs")  # fmt: skip
    for name in ("placement", "added, MiB", "beyond the dataset, batches", "last epochs to first, MiB"):
        table.add_column(name, justify="left" if name == "placement" else "right")
    for name, row in result["placements"].items():
        table.add_row(name, f"{row['added_mib']:,.1f}", f"{row['batches']:.2f}", f"{row['growth_mib']:+.2f}")
    Console().print(table)
    once = max(row["once_mib"] for row in result["placements"].values())
    print(f"Before that, once in a process, for torch's kernels and compiled code: {once:,.0f} MiB.")
