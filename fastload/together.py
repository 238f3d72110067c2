"""What ranks tell each other before they load: small whole numbers, gathered from all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist


def can_talk(world_size: int) -> bool:
    """Whether a process group of so many ranks is set up here, and there is anybody to talk to."""
    return world_size > 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() == world_size


def gather_numbers(numbers: Sequence[int], device: torch.device) -> list[list[int]]:
    """Return every rank's `numbers`, of the same count and within int64 on all of them; by rank.

    Args:
        numbers: this rank's.
        device: that this rank works on: NCCL carries what lies on a GPU, and refuses one that two ranks name.
    """
    own = torch.tensor(list(numbers), dtype=torch.int64, device=_carrier(device))
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return [row.tolist() for row in everyone]


def _carrier(device: torch.device) -> torch.device:
    """Return where numbers have to lie for the group to carry them, of a rank that works on `device`."""
    if dist.get_backend() != "nccl":
        return torch.device("cpu")
    if device.type == "cuda":
        return device
    bound: torch.device | None = getattr(dist.group.WORLD, "bound_device_id", None)
    # The current device is the same on all ranks unless somebody set it: the last thing to ask.
    return bound or torch.device("cuda", torch.cuda.current_device())


def node_number() -> int:
    """Return a number that processes share where they can see each other's /proc: of the boot and the PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot, space = "", f"process {os.getpid()} alone"
    return int.from_bytes(hashlib.blake2b(f"{boot}{space}".encode(), digest_size=7).digest())
