"""RAM for the samples of one split: this process's own, or one copy for all ranks of a node.

Not page-locked: batches are gathered into page-locked memory, which is what a GPU reads. Locking all of it would cost
each rank a pass over its page tables, and make a fork copy it.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from fastload.errors import PlacementError, printable
from fastload.stores.tensors import fill
from fastload.together import gather_numbers, node_number


def host_tensor(
    shards: Sequence[torch.Tensor],
    device: torch.device,
    *,
    together: bool,
    advance: Callable[[int], object] = lambda _: None,
) -> torch.Tensor:
    """Return the shards laid end to end in RAM.

    Args:
        shards: [n, ...] each.
        device: that this rank works on; what ranks tell each other goes over it.
        together: all ranks call this alike, and those of one node share one copy; each fills a part of it.
        advance: called with the number of bytes that are in place.

    Raises:
        PlacementError: the ranks cannot share memory, or one of them could not fill its part.
    """
    shape = (sum(len(s) for s in shards), *shards[0].shape[1:])
    dtype = shards[0].dtype
    num_bytes = math.prod(shape) * dtype.itemsize
    if not together or num_bytes == 0:
        # From NumPy, which asks the system for large pages: a gather of random rows then misses fewer of them.
        memory = np.empty(num_bytes, np.uint8)
        samples = torch.from_numpy(memory).view(dtype).view(shape)
        fill(samples, shards, advance=advance)
    else:
        mates, number = _mates(device)
        memory = _shared_memory(num_bytes, mates, device)
        samples = torch.from_numpy(memory).view(dtype).view(shape)
        bounds = [shape[0] * n // len(mates) for n in (number, number + 1)]
        failure: Exception | None = None
        try:
            fill(samples, shards, first=bounds[0], stop=bounds[1], advance=advance)
        except Exception as e:
            failure = e  # the others wait to be told
        told = [done for (done,) in gather_numbers([int(failure is None)], device)]
        if failure is not None:
            raise failure
        if not all(told):
            raise PlacementError(f"rank {told.index(0)} could not fill its part of the samples; see what it says.")
    return samples


def _mates(device: torch.device) -> tuple[dict[int, int], int]:
    """Return rank -> process id of the ranks on this node, and which of them this one is."""
    everyone = gather_numbers([node_number(), os.getpid()], device)
    node = node_number()
    mates = {rank: pid for rank, (other, pid) in enumerate(everyone) if other == node}
    return mates, list(mates.values()).index(os.getpid())


def _shared_memory(num_bytes: int, mates: dict[int, int], device: torch.device) -> Any:
    """Return memory that the mates have in common, uint8 [num_bytes]: nameless, so that nothing is left of a crash."""
    leader, leader_pid = next(iter(mates.items()))
    descriptor, failure, memory = -1, "", None
    if leader_pid == os.getpid():
        try:
            descriptor = os.memfd_create("fastload")
            os.ftruncate(descriptor, num_bytes)
        except OSError as e:
            failure = str(e.strerror)
    number = gather_numbers([-1 if failure else descriptor], device)[leader][0]
    if number >= 0:
        try:
            if leader_pid != os.getpid():
                descriptor = os.open(f"/proc/{leader_pid}/fd/{number}", os.O_RDWR)
            mapping = mmap.mmap(descriptor, num_bytes)
            with suppress(OSError):  # a hint, which a kernel without large pages refuses
                mapping.madvise(mmap.MADV_HUGEPAGE)
            memory = np.frombuffer(mapping, np.uint8)
        except (OSError, ValueError) as e:
            failure = str(e)
    whole = all(ok for (ok,) in gather_numbers([int(memory is not None)], device))
    if descriptor >= 0:
        os.close(descriptor)  # the mapping keeps the memory, and is the last to do so
    if not whole or memory is None:
        raise PlacementError(
            f'placement="host": the ranks of this node cannot share memory ({printable(failure or "see the others")}). '
            'Use placement="mapped", which shares the page cache.'
        )
    return memory
