"""What is judged from numbers alone: intervals, verdicts, causes, actions, the driver's and the profiler's events."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.truth_cases import evidence_cases
from fastload.profiling.actions import Advice, advise
from fastload.profiling.busy import Span, summarize
from fastload.profiling.causes import Evidence, find_cause
from fastload.profiling.intervals import outside_seconds, quantile, ratio_interval, thinned, union_seconds
from fastload.profiling.loops import Feeding, Measured, make_loop, worst
from fastload.profiling.nvml import NvmlSamples, histogram
from fastload.profiling.ranks import merge
from fastload.profiling.report import Loop, Rate, Report, ResidentGain, Run, Sample
from fastload.profiling.timing import Timing
from fastload.profiling.verdict import judge

# Whole numbers: the brute-force twin counts unit cells.
SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)
Spans = list[tuple[int, int]]


def cells(spans: list[tuple[int, int]]) -> set[int]:
    return {cell for begin, end in spans for cell in range(begin, end)}


@given(SPANS)
def test_a_union_covers_each_moment_once(spans: list[tuple[int, int]]) -> None:
    assert union_seconds(spans) == len(cells(spans))


@given(SPANS, SPANS)
def test_what_lies_outside_is_in_none_of_the_others(spans: Spans, others: Spans) -> None:
    assert outside_seconds(spans, others) == len(cells(spans) - cells(others))


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30), st.floats(0.01, 1))
def test_a_quantile_is_the_smallest_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(v <= found for v in values) >= share * len(values) - 1e-9
    below = [v for v in values if v < found]
    assert len(below) < share * len(values) + 1e-9


@given(st.integers(1, 500), st.integers(2, 50))
def test_thinned_keeps_both_ends(count: int, most: int) -> None:
    kept = thinned(count, most)
    assert len(kept) == min(count, most)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert sorted(set(kept)) == kept


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw, covered, rounds = np.random.default_rng(0), 0, 100
    for _ in range(rounds):
        # Slow spells, as of a disk: neighbours are alike, and steps drawn one by one would be too sure.
        spells = np.repeat(draw.exponential(1.0, 40), 3)
        waits, steps = spells, spells + 2.0
        low, high = ratio_interval(waits, steps) or (0, 0)
        covered += low <= 1 / 3 <= high
    assert covered >= 80
    assert ratio_interval(waits, steps) == ratio_interval(waits, steps), "the same measurements, the same interval"
    assert ratio_interval([1.0] * 9, [2.0] * 9) is None
    assert ratio_interval([0.5] * 50, [2.0] * 50) == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize(
    ("share", "interval", "word", "confidence"),
    [
        (0.40, (0.35, 0.45), "INPUT-BOUND", "high"),
        (0.22, (0.17, 0.27), "INPUT-BOUND", "medium"),
        (0.10, (0.01, 0.30), "INCONCLUSIVE", "low"),
        (0.01, (0.005, 0.02), "NOT INPUT-BOUND", "high"),
        (0.04, (0.03, 0.08), "NOT INPUT-BOUND", "medium"),
    ],
)
def test_a_verdict_is_as_sure_as_its_interval(
    share: float, interval: tuple[float, float], word: str, confidence: str
) -> None:
    verdict = judge(share, 60, "cuda", interval=interval)
    assert (verdict.word, verdict.confidence) == (word, confidence)


def test_a_gpu_that_waits_for_something_else_is_told_apart() -> None:
    assert judge(0.02, 60, "cuda", copy_share=0.3, busy_share=0.5).word == "COPY-BOUND"
    assert judge(0.02, 60, "cuda", copy_share=0.1, busy_share=0.5).word == "LAUNCH-BOUND"
    assert judge(0.02, 60, "cuda", copy_share=0.1, busy_share=0.9).word == "NOT INPUT-BOUND"
    for busy, zeros, sure in ((None, 0.6, "low"), (None, 0.1, "high"), (0.9, 0.6, "high")):
        found = judge(0.02, 60, "cuda", busy_share=busy, zeros_share=zeros)
        assert (found.word, found.confidence) == ("NOT INPUT-BOUND", sure)
        assert ("at 0 for 60% of the time" in found.why) == (sure == "low")
    assert judge(0.02, 60, "cpu", start_share=0.3).word == "INPUT-BOUND"
    assert judge(0.02, 60, "cpu", start_share=0.1).word == "PARTLY INPUT-BOUND"


DECODING = Sample(open=0.001, decode=0.006, transform=0.002, collate=None, count=64)
TRANSFORMS = dataclasses.replace(DECODING, transform=0.02)
READING = dataclasses.replace(DECODING, open=0.02)
BUSY = Evidence(wait_share=0.5, num_steps=50, num_workers=2, worker_cpu=(0.97, 0.95), cpu_per_core=(0.9, 0.9, 0.1))
IDLE = dataclasses.replace(BUSY, worker_cpu=(0.05, 0.04))
FINE = Evidence(wait_share=0.01, num_steps=50, num_workers=2, worker_cpu=(0.5, 0.5))


@pytest.mark.parametrize(
    ("seen", "more", "word"),
    [
        (BUSY, {"sample": DECODING}, "decode-bound"),
        (BUSY, {"sample": TRANSFORMS}, "augment-bound"),
        (BUSY, {"sample": READING}, "storage-bound"),
        (BUSY, {}, "workers-bound"),
        (BUSY, {"num_workers": 1, "worker_cpu": (0.98,), "sample": DECODING}, "one-worker"),
        (BUSY, {"num_workers": 0, "worker_cpu": None, "next_cpu": 0.97}, "one-worker"),
        (BUSY, {"num_workers": None, "worker_cpu": None, "next_cpu": 0.97}, "one-worker"),
        (BUSY, {"num_workers": None, "worker_cpu": None, "in_memory": True, "next_cpu": 0.97}, "augment-bound"),
        (BUSY, {"starved_share": 0.6, "sample": DECODING}, "starved-cores"),
        (IDLE, {"cpu_per_core": (1.0, 0.99, 0.98)}, "starved-cores"),
        (IDLE, {"starved_share": 0.02, "disk_read_bytes_per_second": 8e7}, "storage-bound"),
        (IDLE, {"starved_share": 0.02, "major_faults_per_second": 900.0}, "storage-bound"),
        (IDLE, {"sample": READING}, "storage-bound"),
        (IDLE, {"sample": DECODING}, "loader-sleeps"),
        (IDLE, {"sample": READING, "read_bytes_per_image": 300.0}, "loader-sleeps"),
        (IDLE, {"sample": DECODING, "read_bytes_per_image": 90_000.0}, "storage-bound"),
        (IDLE, {"num_workers": 0, "worker_cpu": None, "next_cpu": 0.02, "sample": READING}, "storage-bound"),
        (BUSY, {"start_share": 0.6, "persistent_workers": False}, "epoch-starts"),
        (FINE, {"start_share": 0.2, "persistent_workers": False}, "epoch-starts"),
        (FINE, {"copy_share": 0.4, "pinned": False, "busy_share": 0.5}, "copy-bound"),
        (FINE, {"copy_share": 0.0, "busy_share": 0.5, "syncs_per_step": 1.0}, "launch-bound"),
        (FINE, {"efficiency": 0.8}, "interference"),
        (FINE, {"efficiency": 0.97, "busy_share": 0.95, "copy_share": 0.0}, "balanced"),
        (FINE, {}, "balanced"),
    ],
)  # fmt: skip
def test_causes(seen: Evidence, more: dict[str, Any], word: str) -> None:
    cause = find_cause(dataclasses.replace(seen, **more))
    assert cause is not None
    assert cause.word == word
    assert cause.evidence[0].startswith("data wait ")


def test_what_needs_a_gpu_is_found_by_its_evidence() -> None:
    for _, word, seen in evidence_cases():
        cause = find_cause(seen)
        assert cause is not None
        assert cause.word == word


def test_of_too_few_steps_no_cause_is_named() -> None:
    assert find_cause(dataclasses.replace(BUSY, num_steps=19)) is None
    assert find_cause(Evidence()) is None


def a_loop(
    wait: float = 0.5, *, efficiency: float | None = None, rank: int = 0, epochs: int = 1, own: float | None = None
) -> Loop:
    """A loop of 60 steps of 0.1 s and 10 images; on a GPU where the loader's own work there takes a share."""
    timing = Timing(
        num_steps=60, num_images=600, wall_seconds=6.0, wait_seconds=6.0 * wait, step_seconds=(0.1,) * 60,
        step_waits=(0.1 * wait,) * 60, step_images=(10,) * 60, step_ends=tuple(0.1 * (k + 1) for k in range(60)),
        num_epochs=epochs, later_seconds=1.0, later_waits=0.9,
        own_seconds=None if own is None else 6.0 * own,
    )  # fmt: skip
    load = None if efficiency is None else Rate(value=100 / efficiency, interval=None)
    replay = None if efficiency is None else Rate(value=100 / efficiency, interval=None)
    return make_loop(
        "a loader", timing, "cpu" if own is None else "cuda", Feeding(num_workers=1),
        Measured(x_load=load, x_replay=replay), rank=rank, warmup=3,
    )  # fmt: skip


def test_a_loop_has_rates_shares_and_intervals() -> None:
    loop = a_loop(0.25, efficiency=0.8)
    assert loop.throughput.x_real is not None
    assert loop.throughput.x_real.value == pytest.approx(100)
    assert loop.throughput.x_real.interval == pytest.approx((100, 100))
    assert (loop.step_seconds.p50, loop.step_seconds.p95, loop.step_seconds.mean) == pytest.approx((0.1, 0.1, 0.1))
    assert loop.headspace == pytest.approx(0.2)
    assert loop.efficiency == pytest.approx(0.8)
    assert loop.wait.interval == pytest.approx((0.25, 0.25))
    assert (loop.wait.start_seconds, loop.wait.own_seconds) == (None, None)
    assert len(loop.series.step_seconds) == 60
    assert a_loop(0.01, epochs=2).cause == find_cause(
        Evidence(wait_share=0.01, num_steps=60, num_workers=1, start_share=0.9 / (1.0 + 3.0))
    )


def test_a_loaders_own_work_on_the_gpu_is_named_and_is_no_interference() -> None:
    # Replayed batches are augmented already: without these 25% the step alone is faster by just them.
    loop = a_loop(0.01, efficiency=0.75, own=0.25)
    assert loop.efficiency == pytest.approx(1)
    assert loop.verdict.word == "NOT INPUT-BOUND"
    assert "25% of it went to the loader's own" in loop.verdict.why
    assert loop.cause is not None
    assert loop.cause.word == "balanced"
    assert "the loader's own work on the device 25%" in loop.cause.evidence
    slowed = a_loop(0.01, efficiency=0.5, own=0.25)
    assert slowed.efficiency == pytest.approx(0.75)
    assert slowed.verdict.word == "INTERFERENCE"


@pytest.mark.parametrize(
    ("loop", "options", "first", "gain"),
    [
        (a_loop(0.5), {"source": "my photos", "store": 128}, "fastload convert 'my photos' --size 128", 2.0),
        (a_loop(0.5), {"gain": ResidentGain(speedup=1.7, basis="measured", memory_bytes=9, num_images=3)},
         "fastload convert FOLDER", 1.7),
        (a_loop(0.01), {}, None, 1 / 0.99),
        (a_loop(0.01, efficiency=0.5), {}, "fastload convert FOLDER", 1 / 0.99),
        (a_loop(0.01, epochs=2), {"num_workers": 2}, "persistent_workers=True", None),
    ],
)  # fmt: skip
def test_the_first_action_is_the_next_command(
    loop: Loop, options: dict[str, Any], first: str | None, gain: float | None
) -> None:
    action = advise(Advice(loop=loop, **options))[0]
    assert (action.command is None) if first is None else (action.command is not None and first in action.command)
    if gain is not None:
        assert action.gain == pytest.approx(gain)


def test_an_input_that_is_no_problem_is_called_so_and_a_gpu_is_predicted() -> None:
    gain = ResidentGain(speedup=1.02, basis="measured", memory_bytes=9, num_images=3)
    loop = a_loop(0.01, efficiency=0.99)
    nothing, predicted = advise(Advice(loop=loop, gain=gain, assume_gpu_rate=404.0))
    assert "not the problem" in nothing.text
    assert "gain 2% of" in nothing.text
    # What is converted already gains nothing from converting.
    (step_only,) = advise(Advice(loop=loop, converted=True))
    assert "onver" not in step_only.text
    assert step_only.gain is None
    # The loader alone makes 100 / 0.99 images/s: a quarter of what such a GPU takes.
    assert "wait 75% of the time" in predicted.text
    assert predicted.text.endswith("INPUT-BOUND.")
    assert predicted.gain == pytest.approx(4.0, rel=0.01)


def test_a_report_of_several_ranks_is_about_the_one_that_waited_most() -> None:
    reports = [
        Report(environment={}, run=Run(entry="profile", device="cpu"), loops=(loop,), verdict=loop.verdict).as_dict()
        for loop in (a_loop(0.01), a_loop(0.3, rank=1), a_loop(0.02, rank=2))
    ]
    merged = merge(reports)
    assert [loop["rank"] for loop in merged["loops"]] == [0, 1, 2]
    assert merged["verdict"]["word"] == "INPUT-BOUND"
    assert merged["run"]["num_ranks"] == 3
    assert worst([a_loop(0.01), a_loop(0.3, rank=1)]).rank == 1
    json.dumps(merged, allow_nan=False)


def test_a_window_of_steps_tells_kernels_copies_and_waits_apart() -> None:
    traced = [
        Span("Activity Buffer Request", False, -3.0, -1.0),  # the tracer's own
        Span("cudaLaunchKernel", False, 0.0, 1.0),
        Span("kernel_a", True, 1.0, 4.0),
        Span("kernel_b", True, 3.0, 5.0),  # on another stream, beside the first
        Span("Memcpy HtoD (Pageable -> Device)", True, 4.5, 7.0),
        Span("Memcpy DtoH (Device -> Pageable)", True, 7.0, 8.0),
        *(Span("cudaStreamSynchronize", False, k, k + 0.1) for k in (2, 4, 6, 8)),
        # The window's own end: its wait, the profiler's, and what that does behind them.
        *(Span("cudaDeviceSynchronize", False, k, k + 0.1) for k in (8.0, 8.2)),
        Span("Buffer Flush", False, 9.0, 10.0),
    ]
    found = summarize(traced, 4)
    assert found is not None
    assert (found.busy_share, found.copy_share, found.syncs_per_step) == pytest.approx((0.5, 0.25, 1.0))
    assert summarize([], 3) is None
    assert summarize(traced[:2], 3) is None


class FakeNvml:
    """What pynvml does, over a buffer of (microseconds, percent)."""

    NVML_GPU_UTILIZATION_SAMPLES, NVML_ERROR_NOT_FOUND = 1, 6

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"NVML error {value}")
            self.value = value

    def __init__(self) -> None:
        self.buffer: list[tuple[int, int]] = [(5, 99)]
        self.asked: list[str] = []
        self.broken = False

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        self.asked.append("shut down")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetSamples(self, handle: str, kind: int, last: int) -> tuple[int, list[Any]]:
        assert (handle, kind) == ("handle", 1)
        if self.broken:
            raise self.NVMLError(999)
        new = [s for s in self.buffer if s[0] > last]
        if not new:
            raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)
        empty = SimpleNamespace(timeStamp=0, sampleValue=SimpleNamespace(uiVal=77))
        return 1, [empty, *(SimpleNamespace(timeStamp=t, sampleValue=SimpleNamespace(uiVal=v)) for t, v in new)]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1-2"))
    return FakeNvml()


def test_the_drivers_samples_are_drained_without_gaps_or_doubles(nvml: FakeNvml) -> None:
    samples = NvmlSamples(torch.device("cuda", 0), nvml=nvml)
    assert samples.result() is None, "what was there before is not this loop's"
    # Within a second, what a sample says is also of what ran before; so is the first one, whenever it comes.
    nvml.buffer += [(500_000, 77), (1_000_000, 77), (1_500_000, 0), (2_000_000, 55)]
    samples.drain()
    samples.drain()
    nvml.buffer += [(3_000_000, 100)]
    samples.skip()
    nvml.buffer += [(4_500_000, 77), (5_000_000, 0), (5_500_000, 100)]
    samples.drain()
    assert samples.result() is None, "four are too few"
    nvml.buffer += [(6_000_000, 100)]
    samples.drain()
    found = samples.result()
    assert found is not None
    assert found.histogram == (2, 0, 0, 0, 0, 1, 0, 0, 0, 2)
    assert (found.zeros_share, found.num_samples) == (0.4, 5)
    assert samples.series == ((0.0, 0.0), (0.5, 55.0), (3.5, 0.0), (4.0, 100.0), (4.5, 100.0))
    samples.close()
    assert nvml.asked == ["GPU-1-2", "shut down"]
    NvmlSamples("GPU-3-4", nvml=nvml)
    assert nvml.asked[-1] == "GPU-3-4", "one that another process names"


def test_a_driver_that_fails_is_told_and_harms_nobody(nvml: FakeNvml) -> None:
    samples = NvmlSamples(torch.device("cuda", 0), nvml=nvml)
    nvml.broken = True
    samples.drain()
    samples.drain()
    assert samples.failure == "NVMLError: NVML error 999"
    assert samples.result() is None


@given(st.lists(st.integers(0, 100), min_size=1, max_size=50))
def test_every_sample_is_in_one_bin(percents: list[int]) -> None:
    found = histogram([float(p) for p in percents])
    assert found is not None
    assert sum(found.histogram) == found.num_samples == len(percents)
    assert found.zeros_share == percents.count(0) / len(percents)


@pytest.mark.gpu
def test_the_real_driver_gives_samples() -> None:
    import time

    samples = NvmlSamples(torch.device("cuda", torch.cuda.current_device()))
    end = time.monotonic() + 15  # a driver may sample once in a second
    while samples.result() is None and time.monotonic() < end:
        torch.cuda._sleep(10_000_000)
        torch.cuda.synchronize()
        samples.drain()
    found = samples.result()
    assert samples.failure is None
    assert found is not None
    assert found.zeros_share < 1
