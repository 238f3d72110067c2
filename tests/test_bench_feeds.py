"""What feeds of `bench gpu-util` measure with many workers, in virtual time: the loop, not where a block begins."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastload
from bench import feeds
from bench.feeds import Feed
from bench.gpu_util import Options, _feed
from fastload.profiling.verdict import judge
from tests.test_truth import Clock

CPU = torch.device("cpu")
BATCH = torch.zeros(64, 3), torch.zeros(64)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


class Workers:
    """A DataLoader in virtual time: each worker takes so long for a batch, and has two to make at any time."""

    persistent_workers, pin_memory, prefetch_factor = True, False, 2

    def __init__(self, clock: Clock, num_workers: int, seconds: float, num_batches: int = 1 << 40) -> None:
        self.clock, self.num_workers, self.seconds, self.num_batches = clock, num_workers, seconds, num_batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        free, ready = [self.clock.now] * self.num_workers, deque[float]()
        num_asked = 0

        def ask() -> None:
            nonlocal num_asked
            if num_asked < self.num_batches:
                worker = num_asked % self.num_workers
                free[worker] = max(free[worker], self.clock.now) + self.seconds
                ready.append(free[worker])
                num_asked += 1

        for _ in range(2 * self.num_workers):
            ask()
        while ready:
            self.clock.now = max(self.clock.now, ready.popleft())
            ask()
            yield BATCH


@pytest.mark.parametrize("step_seconds", [0.006, 0.015, 0.025])
@pytest.mark.parametrize("num_workers", [1, 2, 15, 16])
def test_bursts_of_many_workers_are_counted_whole(clock: Clock, num_workers: int, step_seconds: float) -> None:
    batch_seconds = 0.02 * num_workers
    feed = Feed("workers", Workers(clock, num_workers, batch_seconds), CPU)

    def step(*_: object) -> None:
        clock.now += step_seconds

    for _ in range(3):
        clock.now += 10.0  # what the other ways of feeding take: the queue is full again
        feed.run_block(step, 10)
        clock.now += 10.0
        feed.load_block()
    timing = feed.timing
    assert timing.wait_share == pytest.approx(max(0.0, 1 - step_seconds / 0.02), rel=0.05, abs=1e-9)
    assert feed.x_real is not None
    assert feed.x_real.value == pytest.approx(64 / max(step_seconds, 0.02), rel=0.05)
    assert feed.x_real.interval is not None, "enough steps for one"
    assert feed.x_load is not None
    assert feed.x_load.value == pytest.approx(64 / 0.02, rel=0.05)
    assert timing.num_steps == {1: 30, 2: 30, 15: 90, 16: 96}[num_workers]


@pytest.mark.parametrize("num_workers", [2, 16])
def test_a_traced_window_holds_whole_bursts(clock: Clock, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    traced: list[float] = []

    class Window:
        """Takes a while to set up, and says how long a step of the window took."""

        def __init__(self, _: torch.device) -> None:
            self.begin = 0.0

        def prepare(self) -> None:
            clock.now += 5.0

        def start(self) -> None:
            self.begin = clock.now

        def stop(self, num_steps: int) -> None:
            traced.append((clock.now - self.begin) / num_steps)

    def step(*_: object) -> None:
        clock.now += 0.006

    monkeypatch.setattr(feeds, "BusyWindow", Window)
    Feed("workers", Workers(clock, num_workers, 0.02 * num_workers), CPU).window(step)
    assert traced == [pytest.approx(0.02, rel=0.05)]


def test_epochs_of_a_part_of_the_images_say_nothing_of_the_users(clock: Clock) -> None:
    feed = Feed("workers", Workers(clock, 4, 0.08, num_batches=7), CPU)

    def step(*_: object) -> None:
        clock.now += 0.025

    for _ in range(3):
        feed.run_block(step, 10)
    assert feed.timing.start_share is None
    assert judge(feed.timing.wait_share, 30, "cpu", start_share=feed.timing.start_share).word == "NOT INPUT-BOUND"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_feeds_without_an_end(folder: Path, workers: int) -> None:
    options = Options(model="resnet18", size=16, batch_size=5, workers=workers, steps=1, precision="no", device="cpu",
                      max_images=13)  # fmt: skip
    feed = _feed("folder", folder / "train", None, folder, 20, options, CPU)
    batches = iter(feed.loader)
    assert [len(next(batches)[0]) for _ in range(9)] == [5] * 9, "13 images, and no batch is cut at an epoch's end"
    assert feed.feeding.num_workers == workers


@pytest.mark.parametrize("num_workers", [15, 16])
def test_a_profile_counts_whole_bursts_of_the_loader_alone(clock: Clock, num_workers: int) -> None:
    watched = fastload.Profile(Workers(clock, num_workers, 0.02 * num_workers), device="cpu", quiet=True)
    load = watched._load_alone()
    watched.close()
    assert load is not None
    assert load.value == pytest.approx(64 / 0.02, rel=0.05)
