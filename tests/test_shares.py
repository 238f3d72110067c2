import pytest

from fastload.errors import ConfigError
from fastload.shares import Shares


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_evaluation_counts_every_sample_once_and_padding_lies_at_the_end(batch_size: int, world_size: int) -> None:
    for num_samples in range(1, 61):
        shares = Shares(num_samples=num_samples, batch_size=batch_size, world_size=world_size)
        seen: list[int] = []
        for step in range(shares.num_steps):
            rows = [shares.rows(step, rank) for rank in range(world_size)]
            # What gather_for_metrics sees: the ranks' rows in order, all of one shape.
            gathered: list[int | None] = []
            for start, stop, padding in rows:
                gathered += [*range(start, stop), *[None] * padding]
            if world_size > 1:
                assert len(gathered) == shares.global_batch
            last = step + 1 == shares.num_steps
            kept = gathered[: shares.remainder] if last and shares.remainder else gathered
            assert None not in kept, "trimming to the remainder leaves padding"
            assert all(g is None for g in gathered[len(kept) :]), "trimming cuts a real sample"
            seen += kept  # type: ignore[arg-type]
        assert seen == list(range(num_samples))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_drops_the_partial_step_and_nothing_is_seen_twice(world_size: int) -> None:
    for num_samples in range(60):
        shares = Shares(num_samples=num_samples, batch_size=4, world_size=world_size, drop_last=True)
        seen = []
        for step in range(shares.num_steps):
            for rank in range(world_size):
                start, stop, padding = shares.rows(step, rank)
                assert (stop - start, padding) == (4, 0)
                seen += range(start, stop)
        assert seen == list(range(len(seen)))
        assert num_samples - len(seen) < shares.global_batch
        assert shares.remainder == 0


def test_one_rank_ends_with_a_short_batch() -> None:
    assert Shares(num_samples=11, batch_size=4).rows(2, 0) == (8, 11, 0)


def test_a_rank_without_samples_gets_padding_alone() -> None:
    assert Shares(num_samples=5, batch_size=4, world_size=3).rows(0, 2) == (5, 5, 4)


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (4, 0), (-1, 2)])
def test_impossible_sizes_are_refused(batch_size: int, world_size: int) -> None:
    with pytest.raises(ConfigError):
        Shares(num_samples=5, batch_size=batch_size, world_size=world_size)


def test_no_such_step() -> None:
    with pytest.raises(IndexError):
        Shares(num_samples=5, batch_size=4).rows(2, 0)
