"""Which rank holds which sample where no rank holds all: pure arithmetic, nothing else.

N samples, W ranks, B rows per rank and step. Round 0: rank r holds what Shares gives it of the samples in file
order. From each round to the next, every pair of ranks swaps the same number of samples, chosen at random by both:
what goes to a peer leaves just the room for what comes from it, so no rank ever needs more memory than its share.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch

from fastload.errors import ConfigError
from fastload.shares import Shares


@dataclass(frozen=True)
class Holdings:
    """Samples by rank and round; all of it a function of N, W, B and the seed.

    Args:
        shares: N, W and B; `drop_last` is without meaning here: every sample is held by a rank.
        seed: of the choice of what is swapped, and of each rank's order.
    """

    shares: Shares
    seed: int = 0

    def first(self, rank: int) -> torch.Tensor:
        """Return what a rank holds in round 0, int64 [n]: positions 0 .. N - 1, step by step."""
        s = self.shares
        end = max(s.num_samples, rank * s.batch_size)
        starts = torch.arange(rank * s.batch_size, end, s.global_batch, device="cpu")
        positions = (starts[:, None] + torch.arange(s.batch_size, device="cpu")).flatten()
        return positions[positions < s.num_samples]

    @cached_property
    def num_swapped(self) -> int:
        """Samples that each pair of ranks swaps: a fair share of the smallest holding, at least 1 where it has them."""
        smallest, world_size = len(self.first(self.shares.world_size - 1)), self.shares.world_size
        return max(smallest // world_size, int(smallest >= world_size - 1 > 0))

    def check(self) -> None:
        """Raise ConfigError where there are several ranks and too few samples for them to swap."""
        if self.shares.world_size > 1 and not self.num_swapped:
            raise ConfigError(
                f'placement="gpu_sharded": {self.shares.num_samples:,} samples are too few for '
                f'{self.shares.world_size} ranks to swap; use placement="gpu".'
            )

    def leaving(self, round: int, rank: int) -> torch.Tensor:
        """Return the slots a rank empties after a round, int64 [W, q]: row d goes to rank d; its own row has no use.

        What comes from rank d takes the slots of row d, in the same order.
        """
        count, world_size = self.num_swapped, self.shares.world_size
        size = len(self.first(rank))
        order = torch.randperm(size, generator=self._generator("swap", round, rank), device="cpu")
        chosen = order[: (world_size - 1) * count]
        rows = torch.zeros(world_size, count, dtype=torch.int64, device="cpu")
        rows[[d for d in range(world_size) if d != rank]] = chosen.view(world_size - 1, count)
        return rows

    def held(self, round: int) -> list[torch.Tensor]:
        """Return what every rank holds in a round, by slot: int64 [n] each; the rounds before it are replayed."""
        now = [self.first(rank) for rank in range(self.shares.world_size)]
        for earlier in range(round):
            now = self.after(now, earlier)
        return now

    def after(self, now: list[torch.Tensor], round: int) -> list[torch.Tensor]:
        """Return what every rank holds in the round behind `round`, in which they hold `now`."""
        ranks = range(self.shares.world_size)
        leaving = [self.leaving(round, rank) for rank in ranks]
        then = [held.clone() for held in now]
        for r in ranks:
            for d in ranks:
                if d != r:
                    then[r][leaving[r][d]] = now[d][leaving[d][r]]
        return then

    def order(self, epoch: int, rank: int) -> torch.Tensor:
        """Return the order in which a rank takes its slots in an epoch, int64 [n]."""
        return torch.randperm(len(self.first(rank)), generator=self._generator("order", epoch, rank), device="cpu")

    def _generator(self, what: str, number: int, rank: int) -> torch.Generator:
        key = hashlib.blake2b(f"{self.seed} {what} {number} {rank}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "little", signed=True))
