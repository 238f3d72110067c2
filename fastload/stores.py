"""Stores: images in one kind of memory, served by sample id.

A store is made of the shards' tensors, uint8 [n, H, W, C]; `gather` gives [len(ids), H, W, C] on the
store's own device, always as new memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch


class Store(Protocol):
    """Images by sample id."""

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the images `ids` (int64 [B], CPU) as uint8 [B, H, W, C]."""
        ...


class TensorStore:
    """All images in one tensor: in GPU memory, or in RAM (pinned where there is a GPU to copy to).

    Args:
        shards: uint8 [n, H, W, C] each; read once, one after the other.
        device: where the tensor lies.
        pinned: page-locked RAM, which a GPU reads at full speed and on its own.
        advance: called with the number of bytes that are in place.
    """

    def __init__(
        self,
        shards: Sequence[torch.Tensor],
        device: torch.device,
        *,
        pinned: bool = False,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        shape = (sum(len(s) for s in shards), *shards[0].shape[1:])
        self._images = torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pinned)
        first = 0
        for shard in shards:
            # In pieces, so that the bar moves and a piece of pageable memory in flight stays small.
            rows = max(1, (64 << 20) // max(1, shard[0].numel()))
            for piece in torch.split(shard, rows):
                self._images[first : first + len(piece)].copy_(piece)
                first += len(piece)
                advance(piece.numel())

    @property
    def images(self) -> torch.Tensor:
        """Return all images, [N, H, W, C], where they lie."""
        return self._images

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """See Store."""
        if self._images.device.type == "cpu":
            out = torch.empty((len(ids), *self._images.shape[1:]), dtype=torch.uint8,
                              pin_memory=self._images.is_pinned())  # fmt: skip
            return torch.index_select(self._images, 0, ids, out=out)
        return self._images.index_select(0, ids.to(self._images.device, non_blocking=True))


class MappedStore:
    """Images in the shards' files, read through the page cache; nothing is held beside the batch."""

    def __init__(self, shards: Sequence[torch.Tensor], *, pinned: bool = False) -> None:
        self._shards = list(shards)
        self._first_rows = np.cumsum([0, *(len(s) for s in shards)])
        self._pinned = pinned

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """See Store."""
        out = torch.empty((len(ids), *self._shards[0].shape[1:]), dtype=torch.uint8, pin_memory=self._pinned)
        shard_of = np.searchsorted(self._first_rows, ids.numpy(), side="right") - 1
        for shard in np.unique(shard_of):
            positions = torch.from_numpy(np.flatnonzero(shard_of == shard))
            rows = ids[positions] - int(self._first_rows[shard])
            if len(positions) == len(ids):
                return torch.index_select(self._shards[shard], 0, rows, out=out)
            out[positions] = self._shards[shard].index_select(0, rows)
        return out
