"""Is what the profiler says true? In virtual time, where loaders and steps take exactly so long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from bench.truth import (
    RATIOS,
    TOLERANCE,
    Point,
    _told,
    lengths,
    measure_cost,
    measure_point,
    nominal,
    read_ahead,
    run_case,
)
from bench.truth_cases import CASES, Case, evidence_cases, made
from fastload.profiling import Timing, WaitMeter
from fastload.profiling.intervals import ratio_interval

CPU = torch.device("cpu")
# Every word that profiling/causes.py has.
CAUSES = {
    "decode-bound", "augment-bound", "workers-bound", "storage-bound", "loader-sleeps", "one-worker", "epoch-starts",
    "starved-cores", "copy-bound", "launch-bound", "interference", "balanced",
}  # fmt: skip
STEP = 1.0
COUNT = 120


class Clock:
    """Moves only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def batches(clock: Clock, loads: list[float], *, ahead: int) -> Iterator[torch.Tensor]:
    """A loader that takes so long for each batch; one that is up to `ahead` batches before its reader."""
    made_at, taken_at = [clock.now], [clock.now]
    for number, load in enumerate(loads):
        if not ahead:
            clock.now += load
        else:
            # It begins when the last one is made and there is room for it.
            room = taken_at[max(0, number - ahead)]
            made_at.append(max(made_at[-1], room) + load)
            clock.now = max(clock.now, made_at[-1])
            taken_at.append(clock.now)
        yield torch.zeros(2, 3)


def run(clock: Clock, loads: list[float], steps: list[float], *, ahead: int) -> tuple[Timing, float]:
    """Return what the meter says, and the share of time that no step ran, warm-up left out."""
    meter = WaitMeter(CPU, num_warmup=3)
    work, begin, ended = 0.0, 0.0, 0.0
    for number, (_, step) in enumerate(zip(meter.watch(batches(clock, loads, ahead=ahead)), steps, strict=False)):
        if number == 3:  # warm-up lies behind, and waiting for this batch counts
            begin = ended
        clock.now += step
        ended = clock.now
        work += step if number >= 3 else 0.0
    return meter.result(), 1 - work / (ended - begin)


@pytest.mark.parametrize("jitter", [False, True])
@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize("ratio", RATIOS)
def test_wait_and_headspace_are_the_truth(clock: Clock, ratio: float, ahead: int, jitter: bool) -> None:
    loads = lengths(ratio * STEP, COUNT, jitter=jitter)
    steps = lengths(STEP, COUNT, jitter=jitter, seed=1)
    timing, true = run(clock, loads, steps, ahead=ahead)
    assert timing.wait_share == pytest.approx(true, abs=1e-9)
    # The mean of the steps alone is that of the loop's own steps only about, where they vary.
    alone, _ = run(clock, [0.0] * COUNT, steps, ahead=0)
    assert timing.images_per_second is not None
    assert alone.images_per_second is not None
    assert 1 - timing.images_per_second / alone.images_per_second == pytest.approx(true, abs=TOLERANCE)
    if not jitter:
        assert true == pytest.approx(nominal(ratio, ahead=ahead > 0), abs=0.01 if ahead else 1e-9)
    low, high = ratio_interval(timing.step_waits, timing.step_seconds) or (1, 0)
    assert low - 1e-9 <= true <= high + 1e-9


def test_a_point_of_the_grid_runs_in_real_time() -> None:
    point = measure_point(2.0, ahead=True, jitter=False, step_seconds=0.003, num_steps=12)
    assert point.nominal == 0.5
    assert 0 < point.measured < 1
    # Others use these cores: no figure of theirs is asserted, but that both clocks tell of the same loop.
    assert point.measured == pytest.approx(point.true, abs=0.25)
    far = Point(ratio=1, ahead=False, jitter=False, measured=0.5, true=0.46, nominal=0.5, headspace=0.46, disturbed=0)
    assert not far.is_right


def test_a_reading_thread_ends_with_its_loop() -> None:
    made = read_ahead([0.0] * 50)
    next(made)
    made.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "bench-truth"]


@pytest.mark.parametrize(
    ("expected", "loading"),
    [("one-worker", {"augment_seconds": 0.002}), ("loader-sleeps", {"pause_seconds": 0.003})],
)
def test_a_made_loader_is_run_and_its_cause_is_found(expected: str, loading: dict[str, float]) -> None:
    setting = made(count=120, workers=0, decode=False, **loading)  # type: ignore[arg-type]
    result = run_case(Case(name="made", expected=expected, setting=setting), tries=1)
    assert result["verdict"] == "INPUT-BOUND", "four samples take longer than a step, whatever else runs"
    assert result["wait_share"] > 0.2
    assert result["right"] == (result["said"][-1] == expected)
    assert result["evidence"][0].startswith("data wait ")
    # Where others take the cores, they are the cause, and so it says.
    assert result["said"][-1] in (expected, "starved-cores")


def test_what_only_a_gpu_shows_is_told_and_no_cause_is_left_out() -> None:
    told = [_told(*case) for case in evidence_cases()]
    assert all(case["right"] for case in told), told
    expected = {case.expected for case in CASES} | {case["expected"] for case in told}
    assert CAUSES - expected == {"workers-bound"}, "it is what is said where nothing more is known"
    assert expected <= CAUSES


def test_the_cost_of_watching_is_that_of_paired_blocks() -> None:
    cost = measure_cost(1e-3, rounds=1, num_steps=6)
    assert cost["step_us"] >= 1000
    assert cost["share"] == pytest.approx(cost["added_us"] / cost["step_us"])
    assert cost["empty_added_us"] > 0
    assert cost["empty_share"] == pytest.approx(cost["empty_added_us"] / 1000)
