"""Bytes needed against bytes free -> where a dataset is kept, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fastload.errors import ConfigError, PlacementError, printable
from fastload.memory import free_host_bytes

Kind = Literal["gpu", "gpu_sharded", "host", "mapped", "ffcv", "folder", "auto"]

# Left to the model, its gradients and its activations. A guess that errs towards `host`, which costs
# a few percent at worst, where a full GPU costs the run.
GPU_RESERVE_SHARE = 0.5
# Left to the rest of the machine.
HOST_RESERVE_SHARE = 0.2
# Batches under way: one in use, one on its way, one being gathered; each as stored and as float32.
BATCHES_UNDER_WAY = 3


@dataclass(frozen=True, kw_only=True)
class Need:
    """What has to lie in memory.

    Attributes:
        num_samples: of the split.
        sample_shape: of one sample: (H, W, C) or (D,).
        itemsize: bytes of one stored number.
        batch_size: samples per rank and step.
        what: the split in words, e.g. `3,887 x 128x128x3 uint8`.
        world_size: ranks that share one copy where it is sharded.
    """

    num_samples: int
    sample_shape: tuple[int, ...]
    itemsize: int
    batch_size: int
    what: str
    world_size: int = 1

    @property
    def num_bytes(self) -> int:
        """Bytes of all samples."""
        return self.num_samples * math.prod(self.sample_shape) * self.itemsize

    @property
    def working_bytes(self) -> int:
        """Bytes of the batches under way."""
        return BATCHES_UNDER_WAY * self.batch_size * math.prod(self.sample_shape) * (self.itemsize + 4)

    def __str__(self) -> str:
        return f"{gib(self.num_bytes)} ({self.what}) and {gib(self.working_bytes)} of batches"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The memory that serves batches, and the sentence that says why; as text, one line with both."""

    kind: Literal["gpu", "gpu_sharded", "host", "mapped", "ffcv", "folder"]
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


def choose(kind: str, need: Need, device: torch.device, *, reserve_bytes: int | None = None) -> Placement:
    """Choose the memory for one split of a resident dataset.

    Args:
        kind: what was asked for; `auto` takes the fastest that fits: gpu, else host, else mapped.
        need: the split.
        device: where the batches are wanted.
        reserve_bytes: kept free on the device for the model; where not given, `auto` keeps half of what is free.

    Raises:
        ConfigError: no such placement, or not for such a dataset.
        PlacementError: the asked-for memory does not hold them; says what would.
    """
    check_kind(kind)
    if reserve_bytes is not None and reserve_bytes < 0:
        raise ConfigError(f"reserve_bytes={reserve_bytes}: a number of bytes from 0 on is needed.")
    fits = _Fits(need, device, reserve_bytes)
    if kind == "auto":
        return fits.best()
    if kind in ("gpu", "gpu_sharded"):
        return fits.gpu("gpu" if kind == "gpu" else "gpu_sharded")
    if kind == "host":
        if need.num_bytes + need.working_bytes > fits.host_free:
            raise PlacementError(
                f'placement="host" needs {need}; {gib(fits.host_free)} of RAM are free. {fits.advice(fits.host_free)}'
            )
        return Placement(kind="host", reason=f"{need}, {gib(fits.host_free)} of RAM free")
    if kind == "folder":
        return Placement(kind="folder", reason=f"{need.what}, one by one through DataLoader")
    if kind == "ffcv":
        raise ConfigError('placement="ffcv" is for .beton files; use placement="auto", or convert with --format ffcv.')
    return Placement(kind="mapped", reason=f"{need}, read through the page cache")


def check_kind(kind: str) -> None:
    """Raise ConfigError where there is no such placement."""
    if kind not in get_args(Kind):
        raise ConfigError(f"placement={printable(repr(kind))}: not one of {', '.join(get_args(Kind))}.")


class _Fits:
    """What this device and this host have free, held against one need."""

    def __init__(self, need: Need, device: torch.device, reserve_bytes: int | None) -> None:
        self.need, self.device, self.reserve_bytes = need, device, reserve_bytes
        self.gpu_free = _free_gpu_bytes(device)
        self.host_free = free_host_bytes()

    def best(self) -> Placement:
        """Return gpu, else host, else mapped."""
        need, wanted = self.need, self.need.num_bytes + self.need.working_bytes
        why = ""
        if self.gpu_free is not None:
            reserve = int(self.gpu_free * GPU_RESERVE_SHARE) if self.reserve_bytes is None else self.reserve_bytes
            numbers = f"{self.device}, {gib(self.gpu_free)} free, {gib(reserve)} of it for the model"
            if wanted <= self.gpu_free - reserve:
                return Placement(kind="gpu", reason=f"{need} fit {numbers}")
            why = f"do not fit {numbers}; they "
        if wanted <= self.host_free * (1 - HOST_RESERVE_SHARE):
            return Placement(kind="host", reason=f"{need} {why}fit RAM, {gib(self.host_free)} free")
        left = gib(int(self.host_free * HOST_RESERVE_SHARE))
        return Placement(
            kind="mapped", reason=f"{need} {why}do not fit RAM, {gib(self.host_free)} free, {left} of it for the rest"
        )

    def gpu(self, kind: Literal["gpu", "gpu_sharded"]) -> Placement:
        """Return `gpu` or `gpu_sharded`, or raise PlacementError."""
        need, kept = self.need, ""
        if self.gpu_free is not None:
            free, where = max(0, self.gpu_free - (self.reserve_bytes or 0)), str(self.device)
            if self.reserve_bytes:
                kept = f" beside {gib(self.reserve_bytes)} for the model"
        elif kind == "gpu_sharded" and self.device.type == "cpu":
            free, where = self.host_free, "this process's RAM"
        else:
            raise PlacementError(f'placement="{kind}" needs a GPU, and the device is {self.device}. '
                                 'Use placement="auto".')  # fmt: skip
        share = f"1 of {need.world_size} shares of " if kind == "gpu_sharded" else ""
        ranks = need.world_size if kind == "gpu_sharded" else 1
        if -(-need.num_bytes // ranks) + need.working_bytes > free:
            raise PlacementError(
                f'placement="{kind}" needs {share}{need}; {where} has {gib(free)} free{kept}. '
                f"{self.advice(free, share_fits=kind == 'gpu')}"
            )
        return Placement(kind=kind, reason=f"{share}{need}, {gib(free)} free on {self.device}{kept}")

    def advice(self, free: int, *, share_fits: bool = False) -> str:
        """Return what would fit where `free` bytes do not hold the split: other memory, smaller images."""
        need = self.need
        instead = ["mapped"]
        if self.need.num_bytes + need.working_bytes <= self.host_free:
            instead = ["host"]
        if share_fits and need.world_size > 1 and need.num_bytes // need.world_size + need.working_bytes <= free:
            instead = ["gpu_sharded", *instead]
        words = f"Use placement={' or '.join(f'{chr(34)}{kind}{chr(34)}' for kind in instead)}"
        if len(need.sample_shape) == 3:
            # Both the samples and the batches shrink with the square of the side.
            side = int(need.sample_shape[0] * math.sqrt(free / (need.num_bytes + need.working_bytes))) // 16 * 16
            if side >= 16:
                words += f", or convert with --size {side} ({gib(_at(need, side))})"
        return f"{words}."


def _at(need: Need, side: int) -> int:
    return need.num_samples * side * side * need.sample_shape[2] * need.itemsize


def gib(num_bytes: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 2**10:.1f} KiB"


def _free_gpu_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds and does not use is free to us too; but for holes in segments of which a part is in use:
        # it takes no large block out of them, and cannot give them back.
        holes = torch.cuda.memory_stats(device).get("inactive_split_bytes.all.current", 0)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) - holes)
    if device.type == "mps":
        return max(0, int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory()))
    return None
