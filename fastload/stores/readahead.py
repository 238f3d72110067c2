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
import numpy.typing as npt
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

_Ints = npt.NDArray[np.int64]


def read_ahead(
    steps: Iterator[Wanted], shards: Sequence[torch.Tensor], first_rows: _Ints, *, told: bool = True
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
    starts, row_bytes = np.array([shard.data_ptr() for shard in shards]), shards[0][:1].nbytes
    step_bytes = max(1, len(first.ids) * row_bytes)
    steps, count = chain([first], steps), _num_steps(FIRST_BYTES, step_bytes)
    while True:
        if len(waiting) <= count:
            window = list(islice(steps, count))
            count = _num_steps(WINDOW_BYTES, step_bytes)
            if window:
                ids = np.concatenate([w.ids.numpy() for w in window])
                # Only some are sorted where all are there already: of a short epoch, sorting all is a tenth.
                some = np.sort(ids[:: max(1, len(ids) // NUM_PROBES)])
                probed = row_ranges(some, starts, first_rows, row_bytes)
                if not told or sum(cached_share(pages) for pages in probed.tolist()) < CACHED_SHARE * len(probed):
                    will_need(row_ranges(np.sort(ids), starts, first_rows, row_bytes))
            waiting.extend(window)
        if not waiting:
            return
        yield waiting.popleft()


def _num_steps(num_bytes: int, step_bytes: int) -> int:
    return max(1, min(MAX_STEPS, num_bytes // step_bytes))


def row_ranges(ids: _Ints, starts: _Ints, first_rows: _Ints, row_bytes: int) -> _Ints:
    """Return whole pages around rows, neighbours in one.

    Args:
        ids: of samples, ascending; int64 [N].
        starts: the address of each shard's first row; int64 [S].
        first_rows: the sample id of each shard's first row.
        row_bytes: of one sample.

    Returns:
        Addresses and bytes, int64 [R, 2].
    """
    shard_of = np.searchsorted(first_rows, ids, side="right") - 1
    addresses = starts[shard_of] + (ids - first_rows[shard_of]) * row_bytes
    low, high = addresses // _PAGE * _PAGE, -(-(addresses + row_bytes) // _PAGE) * _PAGE
    # A range begins where it does not touch the one before; a shard may lie before its predecessor.
    begins = np.flatnonzero(np.concatenate([[True], (low[1:] > high[:-1]) | (low[1:] < low[:-1])]))
    low, high = low[begins], high[np.append(begins[1:], len(high)) - 1]
    return np.stack([low, high - low], axis=1)


def is_told(file: Path) -> bool:
    """Return whether the system says what of a file is in RAM: of another's, Linux calls every page resident."""
    try:
        return os.access(file, os.W_OK) or file.stat().st_uid == os.geteuid()
    except OSError:
        return False


def cached_share(pages: Sequence[int]) -> float:
    """Return the share of (address, bytes) that is in RAM; 1 where the system does not say."""
    address, num_bytes = pages
    found = bytearray(num_bytes // _PAGE)
    if _libc().mincore(address, num_bytes, (ctypes.c_char * len(found)).from_buffer(found)) != 0:
        return 1.0
    return sum(page & 1 for page in found) / len(found)


def will_need(ranges: _Ints) -> None:
    """Ask the system to read these pages; it does so in the background."""
    for address, num_bytes in ranges.tolist():
        _libc().madvise(address, num_bytes, _WILLNEED)


@lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
