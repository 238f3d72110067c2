"""Memory for batches that is taken again once nobody holds it any more.

A fresh block of some megabytes comes from the system page by page, zeroed: 2 ms per 10 MB, as long as gathering
the batch takes. A block from here was touched before. Whoever holds a tensor of it, or a view of one, owns it:
it comes back when the last of them is gone, and not before.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch

# One in use, one on its way, one being filled: what is given back beyond that goes to the system.
MAX_FREE = 3
# Up to here one thread gathers: 7 GB/s. torch's threads wait for each other by spinning, and where other processes
# want the cores, a batch of 3 MB takes them 2 to 6 ms and one thread 0.8 ms.
ONE_THREAD_BYTES = 16 << 20


class Blocks:
    """Blocks of memory by their size, at most MAX_FREE of each kept while nobody holds them."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[npt.NDArray[np.uint8]]] = defaultdict(list)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a contiguous CPU tensor [*shape] with any content, as torch.empty does."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes == 0:
            return torch.empty(shape, dtype=dtype, device="cpu")
        try:
            block = self._free[num_bytes].pop()
        except IndexError:
            block = np.empty(num_bytes, np.uint8)
        # A view of its own, which the tensor's storage holds: it dies with the storage, whoever shares that.
        lease = block[:]
        weakref.finalize(lease, _give_back, self._free, block).atexit = False
        return torch.from_numpy(lease).view(dtype).view(shape)


def _give_back(free: defaultdict[int, list[npt.NDArray[np.uint8]]], block: npt.NDArray[np.uint8]) -> None:
    blocks = free[block.nbytes]
    if len(blocks) < MAX_FREE:
        blocks.append(block)


def take(samples: torch.Tensor, ids: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Copy the rows `ids` (int64 [B]) of CPU samples to `out`, and return it."""
    if out.nbytes > ONE_THREAD_BYTES:
        return torch.index_select(samples, 0, ids, out=out)
    # "clip" is never needed, and spares NumPy a copy through a buffer.
    np.take(samples.numpy(), ids.numpy(), 0, out=out.numpy(), mode="clip")
    return out
