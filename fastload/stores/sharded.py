"""Each rank holds a share of the samples; between epochs the ranks swap parts of their shares."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch
import torch.distributed as dist

from fastload.resharding import Holdings
from fastload.stores import Served, Wanted

# What a rank sends, and what it receives, at a time.
STAGING_BYTES = 64 << 20


class ShardedStore:
    """One rank's share in one tensor.

    Args:
        holdings: who holds what in which round.
        ids: sample id of each position 0 .. N - 1, int64 [N].
        rank: this one.
        read: gives samples by their ids from where all of them are, [B, ...] on the CPU.
        like: an empty tensor with the shape (behind the first axis) and dtype of samples.
        device: where the share lies.
        swap: whether the other ranks are there to swap with; else what changes is read anew.
        advance: called with the number of bytes that are in place.
    """

    def __init__(
        self,
        holdings: Holdings,
        ids: torch.Tensor,
        rank: int,
        read: Callable[[torch.Tensor], torch.Tensor],
        like: torch.Tensor,
        device: torch.device,
        *,
        swap: bool,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._holdings, self._ids, self._rank, self._read, self._swap = holdings, ids, rank, read, swap
        self._everyone = holdings.held(0)
        # A rank without samples still pads the last step, with the first sample of all.
        self._samples = torch.empty((max(1, len(self.held)), *like.shape[1:]), dtype=like.dtype, device=device)
        self._round: int | None = 0
        self._load(advance)

    @property
    def held(self) -> torch.Tensor:
        """Positions of the samples held, by slot, int64 [n]; computed by every rank alike, and never sent."""
        return self._everyone[self._rank]

    def begin_round(self, round: int) -> None:
        """Hold what belongs to this rank in `round`: swapped with the others, or read anew where it is not the next.

        All ranks call it alike. Where it fails, or is interrupted, the next call reads all of it anew.
        """
        if round == self._round or len(self._everyone) == 1:
            return  # one rank holds all of them, always
        before, self._round = self._round, None  # until all of it is in place
        if before is not None and round == before + 1 and self._swap:
            self._exchange(before)
            self._everyone = self._holdings.after(self._everyone, before)
            self._index()
        else:
            self._everyone = self._holdings.held(round)
            self._load()
        self._round = round

    def serve(self, steps: Iterator[Wanted]) -> Generator[Served, None, None]:
        """See Store."""
        for wanted in steps:
            slots = self._slot_of[wanted.ids].to(self._samples.device, non_blocking=True)
            if self._samples.device.type == "cpu":
                yield Served(wanted=wanted, samples=self._samples.index_select(0, slots))
            else:
                yield Served(wanted=wanted, samples=self._samples, rows=slots)

    def _load(self, advance: Callable[[int], object] = lambda _: None) -> None:
        positions = self.held if len(self.held) else torch.zeros(1, dtype=torch.int64, device="cpu")
        rows = max(1, STAGING_BYTES // max(1, self._samples[:1].nbytes))
        for low in range(0, len(positions), rows):
            piece = self._read(self._ids[positions[low : low + rows]])
            # From page-locked memory, which is not taken again before it was read: the next piece is read meanwhile.
            self._samples[low : low + len(piece)].copy_(piece, non_blocking=piece.is_pinned())
            advance(piece.nbytes)
        self._index()

    def _index(self) -> None:
        positions = self.held if len(self.held) else torch.zeros(1, dtype=torch.int64, device="cpu")
        self._slot_of = torch.full((int(self._ids.max()) + 1,), -1, dtype=torch.int64, device="cpu")
        self._slot_of[self._ids[positions]] = torch.arange(len(positions), device="cpu")

    def _exchange(self, round: int) -> None:
        """Swap with every other rank after `round`, a piece at a time: what arrives takes the room of what left."""
        slots = self._holdings.leaving(round, self._rank)
        world_size, count = slots.shape
        others = torch.tensor([d for d in range(world_size) if d != self._rank], device="cpu")
        row_bytes = max(1, self._samples[:1].nbytes)
        rows = max(1, STAGING_BYTES // (world_size * row_bytes))
        on_wire = self._samples.device
        for low in range(0, count, rows):
            piece = slots[:, low : low + rows]
            # The own row goes nowhere: it is sent to itself, so that all parts are of one size.
            leaving = self._samples.index_select(0, piece.flatten().to(on_wire))
            arriving = torch.empty_like(leaving)
            dist.all_to_all_single(arriving, leaving)
            kept = arriving.view(world_size, piece.shape[1], *leaving.shape[1:])[others.to(on_wire)]
            self._samples.index_copy_(0, piece[others].flatten().to(on_wire), kept.flatten(0, 1))
