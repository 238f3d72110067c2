"""Samples in one tensor: in GPU memory, or in RAM."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

import torch

from fastload.recycling import Blocks, take
from fastload.stores import Served, Wanted

# In pieces, so that a bar moves and a piece of pageable memory in flight stays small.
PIECE_BYTES = 64 << 20


class TensorStore:
    """All samples in one tensor, [N, H, W, C] or [N, D].

    Args:
        samples: the tensor; `fill` fills it.
        pinned: give batches in page-locked RAM, which a GPU reads at full speed and on its own.
        in_place: serve the tensor itself also in RAM, and the rows that a step wants.
    """

    def __init__(self, samples: torch.Tensor, *, pinned: bool = False, in_place: bool = False) -> None:
        self.samples = samples
        self._in_place = in_place
        self._pinned = pinned
        self._blocks = Blocks()

    def serve(self, steps: Iterator[Wanted]) -> Generator[Served, None, None]:
        """See Store."""
        for wanted in steps:
            if self.samples.device.type == "cpu" and not self._in_place:
                yield Served(wanted=wanted, samples=self.gather(wanted.ids))
            else:
                rows = wanted.ids.to(self.samples.device, non_blocking=True)
                yield Served(wanted=wanted, samples=self.samples, rows=rows)

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the samples `ids` (int64 [B], CPU) as new memory, on this store's device."""
        if self.samples.device.type != "cpu":
            return self.samples.index_select(0, ids.to(self.samples.device, non_blocking=True))
        out = batch_memory(len(ids), self.samples, self._blocks, pinned=self._pinned)
        return take(self.samples, ids, out)


def batch_memory(num_rows: int, like: torch.Tensor, blocks: Blocks, *, pinned: bool) -> torch.Tensor:
    """Return memory for a batch of rows `like` those of a tensor; pinned memory is recycled by torch itself."""
    shape = (num_rows, *like.shape[1:])
    if pinned:
        return torch.empty(shape, dtype=like.dtype, device="cpu", pin_memory=True)
    return blocks.empty(shape, like.dtype)


def fill(
    samples: torch.Tensor,
    shards: Sequence[torch.Tensor],
    *,
    first: int = 0,
    stop: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Copy rows first .. stop - 1 of the shards, laid end to end, to the same rows of `samples`.

    A GPU is filled through two page-locked pieces in turn: one is read from the file while the other is copied.
    """
    stop = len(samples) if stop is None else stop
    staging = _Staging(samples) if samples.device.type == "cuda" else None
    begin = 0
    for shard in shards:
        rows = max(1, PIECE_BYTES * len(shard) // max(1, shard.nbytes))
        low, high = max(first, begin), min(stop, begin + len(shard))
        for at in range(low, high, rows):
            piece = shard[at - begin : min(at + rows, high) - begin]
            target = samples[at : at + len(piece)]
            if staging is None:
                target.copy_(piece)
            else:
                staging.copy(piece, target)
            advance(piece.nbytes)
        begin += len(shard)
    if staging is not None:
        torch.cuda.current_stream(samples.device).synchronize()


class _Staging:
    """Two page-locked buffers, each used again when the GPU has read it."""

    def __init__(self, samples: torch.Tensor) -> None:
        row_bytes = max(1, samples[:1].nbytes)
        rows = max(1, min(PIECE_BYTES // row_bytes, len(samples)))
        shape = (rows, *samples.shape[1:])
        self._buffers = [torch.empty(shape, dtype=samples.dtype, device="cpu", pin_memory=True) for _ in range(2)]
        self._read: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def copy(self, piece: torch.Tensor, target: torch.Tensor) -> None:
        """Copy rows of a file to rows on the GPU, a buffer at a time."""
        for low in range(0, len(piece), len(self._buffers[0])):
            turn, self._turn = self._turn, 1 - self._turn
            event = self._read[turn]
            if event is not None:
                event.synchronize()
            rows = piece[low : low + len(self._buffers[turn])]
            staged = self._buffers[turn][: len(rows)].copy_(rows)
            target[low : low + len(rows)].copy_(staged, non_blocking=True)
            self._read[turn] = torch.cuda.current_stream(target.device).record_event()
