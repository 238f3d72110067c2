"""Which steps of a watched script count, and which of a long run's are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from fastload.profiling.hook.records import make_report, read
from fastload.profiling.hook.steps import MAX_ROWS, HostClock, Loop, Step
from fastload.profiling.intervals import ratio_interval
from fastload.profiling.loops import Measured
from tests import test_watching
from tests.reports_help import check_report
from tests.test_watching import Clock, Slow

seen = test_watching.seen
Seen = Callable[[], dict[str, dict[str, Any]]]


class Again:
    """A sampler of batches without an end."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from iter(self.sampler)


class Kept(DataLoader[Any]):
    """Keeps one iterator for all epochs, made at once, as Ultralytics' InfiniteDataLoader does."""

    def __init__(self, dataset: Any, batch_size: int) -> None:
        super().__init__(dataset, batch_size)
        object.__setattr__(self, "batch_sampler", Again(self.batch_sampler))
        self.iterator = super().__iter__()

    def __len__(self) -> int:
        return len(self.batch_sampler.sampler)

    def __iter__(self) -> Any:
        for _ in range(len(self)):
            yield next(self.iterator)


class Train(Slow):
    pass


class Valid(Slow):
    pass


def test_of_iterators_that_are_kept_each_loops_own_steps_count(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    train, valid = Kept(Train(clock, 160, 1.0), 8), Kept(Valid(clock, 80, 1.0), 8)
    clock.now += 10_000.0  # a network is made, and moved to its device
    for _ in range(3):
        for _ in train:
            clock.now += 6.0
        for _ in valid:
            clock.now += 2.0
    loops = seen()
    # The last step of all is open, three are warm-up, and two hold the other loop's pass each.
    for name, count, seconds in (("Train160", 60 - 1 - 3 - 2, 14.0), ("Valid80", 30 - 1 - 3 - 2, 10.0)):
        totals = loops[name]["totals"]
        assert (totals["steps"], totals["rows"]) == (count, 8 * count)
        assert totals["seconds"] == pytest.approx(count * seconds)
        assert totals["wait_seconds"] == pytest.approx(count * 8.0)
        assert {row[1] for row in loops[name]["rows"]} == {seconds}
        assert loops[name]["starts"]["seconds"] == pytest.approx(seconds)
    report = make_report(read(tmp_path), {}, Measured()).as_dict()
    check_report(report)
    assert ["Train" in loop["name"] for loop in report["loops"]] == [True, False]
    assert report["loops"][0]["throughput"]["x_real"]["value"] == pytest.approx(8 / 14)


@pytest.mark.parametrize("num_workers", [2, 8, 15])
def test_the_steps_that_a_long_run_keeps_have_the_share_of_all(num_workers: int) -> None:
    clock, loop, now = HostClock(), Loop({}, [0]), 0.0
    for number in range(10_000):
        wait = 0.8 if number % num_workers == num_workers - 1 else 0.0
        step = Step(clock, now)
        step.begin, step.arrived, step.end = now, now + wait, now + wait + 0.1
        now, step.rows = step.end, 1
        loop.pending.append(step)
        loop.collect()
    totals = loop.totals
    share = 0.8 / (0.8 + 0.1 * num_workers)
    assert totals["wait_seconds"] / totals["seconds"] == pytest.approx(share, rel=0.01)
    assert MAX_ROWS / 2 <= len(loop.rows) < MAX_ROWS
    waits, seconds = [row[2] for row in loop.rows], [row[1] for row in loop.rows]
    low, high = ratio_interval(waits, seconds, period=num_workers) or (1.0, 0.0)
    assert low - 1e-9 <= share <= high + 1e-9
    assert sum(waits) / sum(seconds) == pytest.approx(share, rel=0.02)
