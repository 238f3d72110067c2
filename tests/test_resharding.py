"""Who holds what: every sample once in every round, equal swaps, and over rounds every sample at every rank."""

import pytest
import torch

from fastload.resharding import Holdings
from fastload.shares import Shares


def holdings(num_samples: int, batch_size: int, world_size: int, seed: int = 0) -> Holdings:
    return Holdings(Shares(num_samples=num_samples, batch_size=batch_size, world_size=world_size), seed)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_in_every_round_every_sample_is_held_once(batch_size: int, world_size: int) -> None:
    for num_samples in range(1, 61, 3):
        whole = holdings(num_samples, batch_size, world_size)
        now = whole.held(0)
        shares = whole.shares
        for rank in range(world_size):
            rows = [shares.rows(step, rank) for step in range(shares.num_steps)]
            assert now[rank].tolist() == [i for start, stop, _ in rows for i in range(start, stop)]
        for round in range(4):
            assert sorted(torch.cat(now).tolist()) == list(range(num_samples))
            assert [len(h) for h in now] == [len(whole.first(rank)) for rank in range(world_size)]
            leaving = [whole.leaving(round, rank) for rank in range(world_size)]
            assert len({rows.shape for rows in leaving}) == 1
            for rank, rows in enumerate(leaving):
                slots = torch.cat([rows[:rank], rows[rank + 1 :]]).flatten().tolist()
                assert len(set(slots)) == len(slots)
            now = whole.after(now, round)
        assert all(torch.equal(a, b) for a, b in zip(now, whole.held(4), strict=True))


@pytest.mark.parametrize(("num_samples", "batch_size", "world_size"), [(61, 3, 2), (101, 4, 3), (47, 1, 5), (12, 1, 4)])
def test_over_rounds_every_sample_meets_every_rank(num_samples: int, batch_size: int, world_size: int) -> None:
    whole = holdings(num_samples, batch_size, world_size, seed=4)
    met = torch.zeros(num_samples, world_size, dtype=torch.bool)
    now = whole.held(0)
    for round in range(60):
        for rank, held in enumerate(now):
            met[held, rank] = True
        now = whole.after(now, round)
    assert met.all()


def test_orders_are_new_by_epoch_rank_and_seed() -> None:
    whole = holdings(60, 3, 2)
    orders = [whole.order(0, 0), whole.order(1, 0), whole.order(0, 1), holdings(60, 3, 2, seed=1).order(0, 0)]
    assert all(sorted(o.tolist()) == list(range(30)) for o in orders)
    assert len({tuple(o.tolist()) for o in orders}) == 4
    assert torch.equal(whole.order(0, 0), holdings(60, 3, 2).order(0, 0))
