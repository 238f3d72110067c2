"""Where the time of a training loop goes. Watches any iterable of batches from outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from rich.console import Console

from fastload.devices import parse_device
from fastload.profiling.timing import Timing, WaitMeter
from fastload.profiling.verdict import judge

Batch = TypeVar("Batch")


def profile(
    batches: Iterable[Batch], *, device: str | torch.device | None = None, num_warmup: int = 3
) -> Iterator[Batch]:
    """Yield what `batches` yields, and print at the end how long the device waited for data.

    `for images, labels in fastload.profile(loader):` is all it takes; leaving the loop early is fine.

    Args:
        batches: a DataLoader, a fastload Loader, any iterable of batches.
        device: where the steps run; Accelerate's, else cuda, else mps, else cpu.
        num_warmup: steps at the beginning that do not count.

    Raises:
        ConfigError: no such device.
    """
    where = parse_device(device)
    meter = WaitMeter(where, num_warmup=num_warmup)
    return _reported(meter, meter.watch(batches), where)


def _reported(meter: WaitMeter, watched: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    try:
        yield from watched
    finally:
        timing = meter.result()
        speed = timing.images_per_second
        line = f"{speed:,.0f} images/s over {timing.num_steps:,} steps. " if speed else ""
        verdict = judge(timing.wait_share, timing.num_steps, device.type)
        Console(stderr=True).print(f"{line}{verdict}", markup=False, highlight=False)


__all__ = ["Timing", "WaitMeter", "judge", "profile"]
