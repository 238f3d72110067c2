"""How many processes and threads the peers get where nobody says: all the cores that there are, as fastload does."""

from __future__ import annotations

import os

FEW_WORKERS = (1, 2, 4)  # a DataLoader's best number may lie below that of the cores


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def workers_to_try() -> tuple[int, ...]:
    """Return the numbers of a DataLoader's workers of which the best is kept."""
    cores = num_cores()
    return tuple(sorted({*FEW_WORKERS, max(1, cores // 2), cores}))


def workers_beside_a_step() -> int:
    """Return how many workers a DataLoader gets beside a training step: a core is the step's, but two load at least."""
    return max(2, num_cores() - 1)
