"""Reading ahead in mapped files: what the next steps want is asked for at once, in the order of the file.

A disk serves many requests in file order several times as fast as one at a time in a shuffled one. The order of
samples stays what it is: only the reading is sorted, within a window of steps. Where the page cache has the rows
already, nothing is asked for.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastload.stores import Wanted

# What is read ahead at most: two windows lie in the page cache at a time.
WINDOW_BYTES = 64 << 20
FIRST_BYTES = 4 << 20  # of the first window, for which the first batch has to wait
MAX_STEPS = 64
NUM_PROBES = 16
CACHED_SHARE = 0.9  # of the probed pages; below, the window is read ahead
_WILLNEED = 3
_PAGE = mmap.PAGESIZE


def read_ahead(
    steps: Iterator[Wanted], shards: Sequence[torch.Tensor], first_rows: np.ndarray[Any, Any], *, told: bool = True
) -> Iterator[Wanted]:
    """Yield the steps as they come, while the rows of later ones are on their way into the page cache.

    Args:
        steps: of a pass.
        shards: backed by their files.
        first_rows: the sample id of each shard's first row.
        told: the system says what of the files is in RAM; else everything is asked for.
    """
    waiting: deque[Wanted] = deque()
    first = next(steps, None)
    if first is None:
        return
    step_bytes = max(1, len(first.ids) * shards[0][:1].nbytes)
    steps, count = chain([first], steps), _num_steps(FIRST_BYTES, step_bytes)
    while True:
        if len(waiting) <= count:
            window = list(islice(steps, count))
            count = _num_steps(WINDOW_BYTES, step_bytes)
            if window:
                ids = np.unique(np.concatenate([w.ids.numpy() for w in window]))
                probed = row_ranges(ids[:: max(1, len(ids) // NUM_PROBES)], shards, first_rows)
                if not told or sum(map(cached_share, probed)) < CACHED_SHARE * len(probed):
                    will_need(row_ranges(ids, shards, first_rows))
            waiting.extend(window)
        if not waiting:
            return
        yield waiting.popleft()


def _num_steps(num_bytes: int, step_bytes: int) -> int:
    return max(1, min(MAX_STEPS, num_bytes // step_bytes))


def row_ranges(
    ids: np.ndarray[Any, Any], shards: Sequence[torch.Tensor], first_rows: np.ndarray[Any, Any]
) -> list[tuple[int, int]]:
    """Return (address, bytes) of whole pages around rows, neighbours in one; `ids` ascend, and so does the file."""
    ranges: list[tuple[int, int]] = []
    shard_of = np.searchsorted(first_rows, ids, side="right") - 1
    for index, number in zip(ids.tolist(), shard_of.tolist(), strict=True):
        shard = shards[number]
        row_bytes = shard.nbytes // len(shard)
        start = shard.data_ptr() + (index - int(first_rows[number])) * row_bytes
        low, high = start // _PAGE * _PAGE, -(-(start + row_bytes) // _PAGE) * _PAGE
        if ranges and ranges[-1][0] <= low <= sum(ranges[-1]):
            ranges[-1] = (ranges[-1][0], high - ranges[-1][0])
        else:
            ranges.append((low, high - low))
    return ranges


def is_told(file: Path) -> bool:
    """Return whether the system says what of a file is in RAM: of another's, Linux calls every page resident."""
    try:
        return os.access(file, os.W_OK) or file.stat().st_uid == os.geteuid()
    except OSError:
        return False


def cached_share(pages: tuple[int, int]) -> float:
    """Return the share of (address, bytes) that is in RAM; 1 where the system does not say."""
    address, num_bytes = pages
    found = np.zeros(num_bytes // _PAGE, np.uint8)
    if _libc().mincore(address, num_bytes, found.ctypes.data) != 0:
        return 1.0
    return np.count_nonzero(found & 1) / len(found)


def will_need(ranges: Sequence[tuple[int, int]]) -> None:
    """Ask the system to read these pages; it does so in the background."""
    for address, num_bytes in ranges:
        _libc().madvise(address, num_bytes, _WILLNEED)


@lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
