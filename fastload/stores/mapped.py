"""Samples in the shards' files, read through the page cache, ahead where it lacks them; only batches are held."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastload.recycling import Blocks, take
from fastload.stores import Served, Wanted
from fastload.stores.joining import join
from fastload.stores.readahead import is_told, read_ahead
from fastload.stores.tensors import batch_memory


class MappedStore:
    """Samples in mapped files.

    Args:
        shards: [n, H, W, C] or [n, D] each, backed by their files.
        places: the file of each shard, and the byte at which its rows begin there; none where there are no such files.
        pinned: give batches in page-locked RAM.
        in_place: serve the mapped samples themselves, and the rows that a step wants, where the system can show all
            shards as one tensor.
    """

    def __init__(
        self,
        shards: Sequence[torch.Tensor],
        places: Sequence[tuple[Path, int]] = (),
        *,
        pinned: bool = False,
        in_place: bool = False,
    ) -> None:
        self._shards = list(shards)
        self._first_rows = np.cumsum([0, *(len(s) for s in shards)])
        self._samples: torch.Tensor | None = None
        shifts = np.zeros(len(shards), np.int64)
        if len(shards) == 1:
            self._samples = self._shards[0]
        elif places and (joined := join(self._shards, places)) is not None:
            self._samples = joined[0]
            shifts = np.array(joined[1]) - self._first_rows[:-1]
        self._shifts = shifts
        self._in_place = in_place and self._samples is not None
        self._pinned = pinned
        self._told = all(is_told(file) for file, _ in places)
        self._blocks = Blocks()

    def serve(self, steps: Iterator[Wanted]) -> Generator[Served, None, None]:
        """See Store."""
        for wanted in read_ahead(steps, self._shards, self._first_rows, told=self._told):
            if self._in_place and self._samples is not None:
                yield Served(wanted=wanted, samples=self._samples, rows=self._rows(wanted.ids))
            else:
                yield Served(wanted=wanted, samples=self.gather(wanted.ids))

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the samples `ids` (int64 [B], CPU) as new memory."""
        out = batch_memory(len(ids), self._shards[0], self._blocks, pinned=self._pinned)
        if self._samples is not None:
            return take(self._samples, self._rows(ids), out)
        shard_of = self._shard_of(ids)
        for shard in np.unique(shard_of):
            positions = np.flatnonzero(shard_of == shard)
            out.numpy()[positions] = self._shards[shard].numpy()[ids.numpy()[positions] - self._first_rows[shard]]
        return out

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return where the samples are in the one tensor."""
        return ids if len(self._shards) == 1 else ids + torch.from_numpy(self._shifts[self._shard_of(ids)])

    def _shard_of(self, ids: torch.Tensor) -> npt.NDArray[np.int64]:
        return np.searchsorted(self._first_rows, ids.numpy(), side="right") - 1
