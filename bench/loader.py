"""`bench loader`: how fast batches come, with nothing behind the loader; the peers beside it, in turn."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fastload
from bench.cores import num_cores, workers_to_try
from bench.one_loader import children
from bench.peers import Crop, check_enough, training_folder
from fastload.conversion_ffcv import convert_to_ffcv
from fastload.errors import ConfigError, printable
from fastload.formats.ffcv import Mode
from fastload.profiling.report import described

BASELINE = "ImageFolder + DataLoader"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured: pixels stored and cropped to, images per batch, DataLoader's workers to choose from, threads or
    workers of each of the others, rounds.
    """

    store: int = 128
    size: int = 112
    batch_size: int = 64
    workers: tuple[int, ...] = field(default_factory=workers_to_try)
    threads: int = field(default_factory=num_cores)
    rounds: int = 5
    crop: Crop = "plain"
    max_images: int = 1 << 62

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "rounds", "max_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: at least 1 is needed.")
        if not self.workers or min(self.workers) < 0 or not 1 <= self.size <= self.store:
            raise ConfigError(
                f"workers={self.workers}, size={self.size}, store={self.store}: 0 or more workers, and crops of 1 to "
                "store pixels are needed."
            )
        if self.crop not in get_args(Crop):
            raise ConfigError(f"crop={printable(self.crop)!r}: not one of {', '.join(get_args(Crop))}.")
        if self.crop == "padded" and self.size != self.store:
            raise ConfigError(f"padded crops are of the stored size: size={self.size}, store={self.store}.")


def measure(folder: Path, options: Options) -> dict[str, Any]:
    """Run epochs of every loader in turn and return the result, ready for JSON."""
    with training_folder(folder, options.max_images) as (images, count), ExitStack() as stack:
        check_enough(folder, count, options.batch_size)
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        loaders = stack.enter_context(children(_recipes(images, Path(scratch), options)))
        speeds: dict[str, list[float]] = {name: [] for name in loaders}
        with Progress(console=Console(stderr=True), transient=True) as bar:
            for _ in bar.track(range(options.rounds), description="epochs of each loader"):
                for name, child in loaders.items():
                    epoch = child.epoch()
                    speeds[name].append(epoch["images"] / epoch["seconds"])
        first_batch = {name: child.first_batch_seconds for name, child in loaders.items()}
        threads = {name: child.threads for name, child in loaders.items() if name.startswith("fastload")}
    return {**_result(folder, count, options, speeds, first_batch), "threads_of_fastload": threads}


def _recipes(images: Path, scratch: Path, options: Options) -> dict[str, dict[str, Any]]:
    """Convert the images to every format, and return what makes each loader."""
    sizes = {"size": options.size, "batch_size": options.batch_size, "crop": options.crop}
    peer, threads = {**sizes, "store": options.store}, options.threads
    dataset = str(fastload.convert(images, scratch / "bench.fastload", size=options.store, progress=True))
    recipes: dict[str, dict[str, Any]] = {}
    for workers in options.workers:
        recipes[f"{BASELINE}({workers})"] = {
            "maker": "folder_loader", "folder": str(images), "workers": workers, **peer
        }  # fmt: skip
    if options.crop != "padded":
        recipes[f"timm create_loader({threads})"] = {
            "maker": "timm_loader", "folder": str(images), "workers": threads, **peer
        }  # fmt: skip
    betons: dict[str, str] = {}
    # ffcv's writer keeps images of their own sizes, and a loader without a crop that resizes needs one size.
    if importlib.util.find_spec("ffcv") is not None and _all_are(images, options.store):
        modes: tuple[Mode, ...] = ("raw", "jpg")
        for mode in modes:
            betons[mode] = str(convert_to_ffcv(images, scratch / mode, mode=mode, progress=True) / "train.beton")
    for kind, beton in betons.items():
        recipes[f"ffcv Loader({threads}), {kind}"] = {
            "maker": "ffcv_loader", "beton": beton, "workers": threads, **peer
        }  # fmt: skip
    # Where no workers read, the batch is spread over threads.
    fast = {"maker": "fast_loader", "workers": threads, "threads": threads, **sizes}
    for placement in ("host", "mapped"):
        recipes[f"fastload, {placement}"] = {**fast, "dataset": dataset, "placement": placement}
    recipes[f"fastload, folder({threads}) of stored pixels"] = {**fast, "dataset": dataset, "placement": "folder"}
    for kind, beton in betons.items():
        recipes[f"fastload, ffcv({threads}), {kind}"] = {**fast, "dataset": beton, "placement": "ffcv"}
    return recipes


def _all_are(images: Path, side: int) -> bool:
    from PIL import Image

    def size(file: Path) -> tuple[int, int]:
        with Image.open(file) as image:
            return image.size

    return all(size(file) == (side, side) for file in images.rglob("*.*"))


def _result(
    folder: Path, count: int, options: Options, speeds: dict[str, list[float]], first_batch: dict[str, float]
) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    best = max((name for name in medians if name.startswith(BASELINE)), key=medians.__getitem__)
    baseline = medians[best]
    crop = {"plain": "RandomCrop", "resized": "RandomResizedCrop", "padded": "RandomCrop with padding 4"}[options.crop]
    return {
        "schema": "fastload-bench-loader", "version": 2, **described(),
        "data": {"name": folder.resolve().name, "images": count, "stored": options.store},
        "settings": {
            "size": options.size, "batch_size": options.batch_size, "workers": list(options.workers),
            "threads": options.threads, "rounds": options.rounds,
            "transforms": f"{crop}, RandomHorizontalFlip, Normalize", "output": "float32 on the CPU",
        },
        "baseline": best,
        "images_per_second": {name: round(value) for name, value in medians.items()},
        "all_rounds": {name: [round(v) for v in values] for name, values in speeds.items()},
        "ratio_to_baseline": {name: round(value / baseline, 2) for name, value in medians.items()},
        "first_batch_seconds": {name: round(value, 2) for name, value in first_batch.items()},
        "not_measured": "a GPU; a copy of ffcv's batches, which are memory that it writes again",
    }  # fmt: skip


def say(result: dict[str, Any]) -> None:
    """Print the table."""
    s, data = result["settings"], result["data"]
    table = Table(title=f"{data['images']:,} images, {data['stored']} -> {s['size']} px, batches of {s['batch_size']}, "
                  f"{result['machine']['cores']} cores; {s['transforms']}")  # fmt: skip
    table.add_column("loader")
    table.add_column("images/s", justify="right")
    table.add_column("times DataLoader's best", justify="right")
    table.add_column("first batch, s", justify="right")
    for name, speed in result["images_per_second"].items():
        ratio, first = result["ratio_to_baseline"][name], result["first_batch_seconds"][name]
        table.add_row(name, f"{speed:,}", f"{ratio:.1f}", f"{first:.2f}")
    Console().print(table)
