"""Bytes needed against bytes free -> where a dataset is kept, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fastload.devices import free_host_bytes
from fastload.errors import ConfigError, PlacementError, printable

Kind = Literal["gpu", "host", "mapped", "auto"]

# Left to the model, its gradients and its activations. A guess that errs towards `host`, which costs
# a few percent at worst, where a full GPU costs the run.
GPU_RESERVE_SHARE = 0.5
# Left to the rest of the machine.
HOST_RESERVE_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The memory that serves batches: `gpu`, `host` or `mapped`, and the sentence that says why."""

    kind: Literal["gpu", "host", "mapped"]
    reason: str


def choose(kind: str, num_bytes: int, what: str, device: torch.device) -> Placement:
    """Choose the memory for `num_bytes` of images.

    Args:
        kind: what was asked for; `auto` takes the fastest that fits: gpu, else host, else mapped.
        num_bytes: the split's images.
        what: the split in words, e.g. `3,887 x 128x128x3 uint8`.
        device: where the batches are wanted.

    Raises:
        ConfigError: no such placement.
        PlacementError: the asked-for memory does not hold them.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"placement={printable(repr(kind))}: not one of {', '.join(get_args(Kind))}.")
    need = f"{gib(num_bytes)} ({what})"
    gpu_free = _free_gpu_bytes(device)
    host_free = free_host_bytes()
    if kind == "auto":
        if gpu_free is not None and num_bytes <= gpu_free * (1 - GPU_RESERVE_SHARE):
            return Placement(kind="gpu", reason=f"{need} fits {device}, {gib(gpu_free)} free")
        if num_bytes <= host_free * (1 - HOST_RESERVE_SHARE):
            why = "" if gpu_free is None else f"does not fit {device} ({gib(gpu_free)} free) beside a model; "
            return Placement(kind="host", reason=f"{need} {why}fits RAM, {gib(host_free)} free")
        return Placement(kind="mapped", reason=f"{need} does not fit RAM, {gib(host_free)} free")
    if kind == "gpu":
        if gpu_free is None:
            raise PlacementError(f'placement="gpu" needs a GPU, and the device is {device}. Use placement="auto".')
        if num_bytes > gpu_free:
            instead = "host" if num_bytes <= host_free else "mapped"
            raise PlacementError(
                f'placement="gpu" needs {need}; {device} has {gib(gpu_free)} free. '
                f'Use placement="{instead}", or convert with a smaller --size.'
            )
        return Placement(kind="gpu", reason=f"{need}, {gib(gpu_free)} free on {device}")
    if kind == "host":
        if num_bytes > host_free:
            raise PlacementError(
                f'placement="host" needs {need}; {gib(host_free)} of RAM are free. '
                'Use placement="mapped", or convert with a smaller --size.'
            )
        return Placement(kind="host", reason=f"{need}, {gib(host_free)} of RAM free")
    return Placement(kind="mapped", reason=f"{need}, read through the page cache")


def gib(num_bytes: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 2**10:.1f} KiB"


def _free_gpu_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds and does not use is free to us too.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return max(0, int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory()))
    return None
