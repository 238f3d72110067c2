"""Samples in the shards' files, read through the page cache, ahead where it lacks them; only batches are held."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch

from fastload.recycling import Blocks, take
from fastload.stores import Served, Wanted
from fastload.stores.readahead import read_ahead
from fastload.stores.tensors import batch_memory


class MappedStore:
    """Samples in mapped files.

    Args:
        shards: [n, H, W, C] or [n, D] each, backed by their files.
        pinned: give batches in page-locked RAM.
        in_place: serve the mapped samples themselves where they are one shard, and the rows that a step wants.
    """

    def __init__(self, shards: Sequence[torch.Tensor], *, pinned: bool = False, in_place: bool = False) -> None:
        self._shards = list(shards)
        self._in_place = in_place and len(self._shards) == 1 and self._shards[0].is_contiguous()
        self._first_rows = np.cumsum([0, *(len(s) for s in shards)])
        self._pinned = pinned
        self._blocks = Blocks()

    def serve(self, steps: Iterator[Wanted]) -> Generator[Served, None, None]:
        """See Store."""
        for wanted in read_ahead(steps, self._shards, self._first_rows):
            if self._in_place:
                yield Served(wanted=wanted, samples=self._shards[0], rows=wanted.ids)
            else:
                yield Served(wanted=wanted, samples=self.gather(wanted.ids))

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the samples `ids` (int64 [B], CPU) as new memory."""
        out = batch_memory(len(ids), self._shards[0], self._blocks, pinned=self._pinned)
        shard_of = np.searchsorted(self._first_rows, ids.numpy(), side="right") - 1
        for shard in np.unique(shard_of):
            positions = torch.from_numpy(np.flatnonzero(shard_of == shard))
            rows = ids[positions] - int(self._first_rows[shard])
            if len(positions) == len(ids):
                return take(self._shards[shard], rows, out)
            out.numpy()[positions.numpy()] = self._shards[shard].numpy()[rows.numpy()]
        return out
