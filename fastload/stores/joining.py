"""Several mapped shards as one tensor: their files are mapped again, behind one another, in one range of addresses.

A row of any shard is then a row of that tensor, so a batch is one gather, or none where augmentation reads in place.
Only addresses are taken: the pages are those of the page cache, whoever maps them.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

# MAP_FIXED and MAP_NORESERVE, as Linux numbers them: Python names the first never and the second from 3.12 on.
_FIXED, _NORESERVE = 0x10, 0x4000


def join(shards: Sequence[torch.Tensor], places: Sequence[tuple[Path, int]]) -> tuple[torch.Tensor, list[int]] | None:
    """Return one tensor in which the rows of all shards lie.

    Args:
        shards: [n, ...] each, contiguous, backed by their files.
        places: the file of each, and the byte at which its rows begin there.

    Returns:
        Samples [V, ...], only to be read, and the row at which each shard begins; between two shards are rows that are
        nobody's. None where the system cannot.
    """
    if sys.platform != "linux" or any(offset % mmap.PAGESIZE for _, offset in places):
        return None
    row_bytes = math.prod(shards[0].shape[1:]) * shards[0].element_size()
    # A shard begins at a whole page and at a whole row.
    unit = math.lcm(mmap.PAGESIZE, row_bytes)
    starts, end = [], 0
    for shard in shards:
        starts.append(-(-end // unit) * unit)
        end = starts[-1] + shard.nbytes
    try:
        # Goes when nobody holds the tensor any more, and what is mapped over it with it.
        region = mmap.mmap(-1, end, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        memory = np.frombuffer(region, np.uint8)
        for shard, start, (file, offset) in zip(shards, starts, places, strict=True):
            _map_over(memory.ctypes.data + start, shard.nbytes, file, offset)
    except (OSError, OverflowError):  # a limit on addresses, or more than there are
        return None
    samples = torch.from_numpy(memory).view(shards[0].dtype).view(-1, *shards[0].shape[1:])
    return samples, [start // row_bytes for start in starts]


def _map_over(address: int, num_bytes: int, file: Path, offset: int) -> None:
    """Map a part of a file at an address, in place of what is there."""
    if num_bytes == 0:
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if os.fstat(descriptor).st_size < offset + num_bytes:  # a read behind a file's end kills the process
            raise OSError
        found = _mmap()(address, num_bytes, mmap.PROT_READ, mmap.MAP_PRIVATE | _FIXED, descriptor, offset)
    finally:
        os.close(descriptor)
    if found != address:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mmap() -> Any:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    return function
