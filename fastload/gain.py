"""What converting would give, before anything is converted: measured on about a thousand of the user's own images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2 as T

from fastload.augment import Augment
from fastload.conversion import convert
from fastload.errors import FastloadError
from fastload.formats import open_dataset
from fastload.loader import Loader
from fastload.profiling.actions import resident_bytes, stored_side
from fastload.profiling.intervals import thinned
from fastload.profiling.loops import rate
from fastload.profiling.report import Rate, ResidentGain
from fastload.profiling.samples import innermost
from fastload.profiling.timing import WaitMeter

NUM_IMAGES = 1000
NUM_WARMUP = 3
NUM_BATCHES = 24


def predicted_rate(x_replay: float, x_load: float) -> float:
    """Return the images/s of a step fed from memory: step and loader take the same time as alone, one after the other.

    fastload's Loader gathers and augments in the training process (on the GPU, on the step's own stream), so their
    times add up; on a GPU copies run beside the step, and it may come out a little faster.
    """
    return 1 / (1 / x_replay + 1 / x_load)


def estimate(
    dataset: Any, *, size: int, batch_size: int, device: torch.device, x_real: float, x_replay: float, basis: str
) -> ResidentGain | None:
    """Return what converting gives a loop; None where its images cannot be found.

    About a thousand of them are converted to a temporary folder, and fastload's Loader is timed on these, alone.

    Args:
        dataset: map-style, with the image files in `samples` (torchvision's ImageFolder), or a Subset of one.
        size: side that the loop trains on, in pixels.
        batch_size: images per step.
        device: where the steps run.
        x_real, x_replay: images/s of the loop and of its step alone.
        basis: of x_replay: `measured`, or `upper bound` where it is what is left without the data wait.
    """
    files = image_files(dataset)
    if not files:
        return None
    store = stored_side(size)
    chosen = [files[i] for i in thinned(len(files), max(NUM_IMAGES, batch_size))]
    try:
        load = _load_rate(chosen, store, size, batch_size, device, getattr(innermost(dataset), "transform", None))
    except (FastloadError, OSError):
        return None
    if load is None:
        return None
    return ResidentGain(
        speedup=predicted_rate(x_replay, load.value) / x_real, basis=basis,
        memory_bytes=resident_bytes(len(files), store), num_images=len(chosen),
    )  # fmt: skip


def image_files(dataset: Any) -> list[Path]:
    """Return the image files of a dataset that lists them in `samples` or `imgs`; of a wrapped one, the inner's."""
    dataset = innermost(dataset)
    listed = getattr(dataset, "samples", None) or getattr(dataset, "imgs", None)
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], tuple | list):
        return []
    first = listed[0][0]
    return [Path(row[0]) for row in listed] if isinstance(first, str | Path) and Path(first).is_file() else []


def _load_rate(
    files: list[Path], store: int, size: int, batch_size: int, device: torch.device, transform: Any
) -> Rate | None:
    with tempfile.TemporaryDirectory(prefix="fastload-gain-") as temporary:
        folder = Path(temporary) / "images"
        for number, file in enumerate(files):
            target = folder / "0" / f"{number:08d}{file.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.absolute())
        dataset = Path(temporary) / "gain.fastload"
        convert(folder, dataset, size=store, on_bad="skip")
        split = open_dataset(dataset, "train")
        loader = Loader(
            split, min(batch_size, len(split)), augment=_augment(transform, size), device=device, rank=0, world_size=1
        )
        meter = WaitMeter(device, num_warmup=NUM_WARMUP)
        for _ in meter.watch(islice(_forever(loader), NUM_WARMUP + NUM_BATCHES)):
            pass
        return rate(meter.result())


def _forever(loader: Loader) -> Iterator[Any]:
    while True:
        yield from loader


def _augment(transform: Any, size: int) -> Augment:
    """Return the user's own transforms where fastload knows them all, else a random crop and a mirror."""
    try:
        return Augment(transform, size=size)
    except (FastloadError, TypeError, AttributeError):
        return Augment(T.Compose([T.RandomCrop(size), T.RandomHorizontalFlip()]))
