"""Which samples each rank gets in each step: pure arithmetic, nothing else.

N samples, W ranks, B rows per rank and step, S steps, R = N mod WB.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastload.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Exact shares of N samples for W ranks.

    Step k, rank r takes `order[kBW + rB : kBW + (r + 1)B]`. Without `drop_last`, the last step of
    several ranks is padded to equal shapes, all padding at the end in rank-major order, so that
    concatenating the ranks' rows and keeping the first R gives every sample exactly once. One rank
    is never padded: its last batch is simply short.
    """

    num_samples: int
    batch_size: int
    world_size: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: a batch needs at least one sample; pass 1 or more.")
        if self.world_size < 1:
            raise ConfigError(f"world_size={self.world_size}: there is at least one rank; pass 1 or more.")

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks, WB."""
        return self.batch_size * self.world_size

    @property
    def remainder(self) -> int:
        """Samples that count in the last, partial step over all ranks; 0 where every step is full."""
        return 0 if self.drop_last else self.num_samples % self.global_batch

    @property
    def num_steps(self) -> int:
        """Steps in one epoch, S; the same on every rank."""
        return self.num_samples // self.global_batch + (self.remainder > 0)

    def rows(self, step: int, rank: int) -> tuple[int, int, int]:
        """Return (start, stop, num_padding): positions in the order, then rows to add behind them.

        Raises:
            IndexError: no such step or rank.
        """
        if not 0 <= step < self.num_steps or not 0 <= rank < self.world_size:
            raise IndexError(f"step {step} of {self.num_steps}, rank {rank} of {self.world_size}")
        start = step * self.global_batch + rank * self.batch_size
        stop = start + self.batch_size
        kept_start, kept_stop = min(start, self.num_samples), min(stop, self.num_samples)
        num_padding = 0 if self.world_size == 1 else self.batch_size - (kept_stop - kept_start)
        return kept_start, kept_stop, num_padding
