"""`bench truth`: is what the profiler says true? Loaders and steps of known length, and what it makes of them.

The grid: a loader that takes so long, a step that takes so long, in turn or with a thread that reads ahead, steady or
jittered. What the device really waited is read from clocks in the loop itself, which the profiler does not see; beside
it stands what the lengths alone come to. The cases are loaders that are slow for a known reason. The cost is what
watching adds to a step.
"""

from __future__ import annotations

import itertools
import queue
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fastload
from bench.truth_cases import CASES, Case, evidence_cases
from fastload.errors import ConfigError
from fastload.profiling.causes import find_cause
from fastload.profiling.report import described, rounded
from fastload.profiling.timing import Timing, WaitMeter

RATIOS = (0.2, 0.5, 0.8, 1.0, 1.25, 2.0, 5.0)
NUM_WARMUP = 3
READ_AHEAD = 2
TOLERANCE = 0.03
CALM = 0.01
CPU = torch.device("cpu")


def busy(seconds: float) -> None:
    """Keep the processor busy for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def lengths(mean: float, count: int, *, jitter: bool, seed: int = 0) -> list[float]:
    """Return `count` lengths with a mean near `mean`: all of them it, or from half to one and a half of it."""
    draw = random.Random(seed)
    return [mean * draw.uniform(0.5, 1.5) if jitter else mean for _ in range(count)]


def in_turn(seconds: list[float]) -> Iterator[torch.Tensor]:
    """Yield batches of one image, each after sleeping so long."""
    for length in seconds:
        time.sleep(length)
        yield torch.zeros(1, 3)


def read_ahead(seconds: list[float]) -> Iterator[torch.Tensor]:
    """Yield the same, made by a thread that is up to two batches ahead."""
    made: queue.Queue[torch.Tensor | None] = queue.Queue(READ_AHEAD)
    left = threading.Event()

    def put(batch: torch.Tensor | None) -> None:
        while not left.is_set():
            try:
                return made.put(batch, timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        for batch in in_turn(seconds):
            put(batch)
            if left.is_set():
                return
        put(None)

    thread = threading.Thread(target=make, name="bench-truth")
    thread.start()
    try:
        while (batch := made.get()) is not None:
            yield batch
    finally:
        left.set()
        thread.join()


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the grid; shares of the wall time.

    Attributes:
        ratio: length of the loader over that of the step.
        ahead: whether a thread reads ahead.
        jitter: whether both lengths vary.
        measured: data wait as the profiler has it.
        true: as the loop's own clocks have it.
        nominal: as the lengths alone come to, where nothing varies.
        headspace: 1 - X_real / X_replay.
        disturbed: by what share steps came out longer than they should be, since others used the processor.
    """

    ratio: float
    ahead: bool
    jitter: bool
    measured: float
    true: float
    nominal: float | None
    headspace: float
    disturbed: float

    @property
    def is_right(self) -> bool:
        """Whether both measures lie within three points of the truth."""
        return abs(self.measured - self.true) <= TOLERANCE and abs(self.headspace - self.true) <= TOLERANCE


class _Log:
    """When batches came and steps ended, by the loop's own clock."""

    def __init__(self) -> None:
        self.arrived: list[float] = []
        self.ended: list[float] = []
        self.asked_seconds = 0.0

    def run(self, batches: Any, steps: Iterable[float]) -> None:
        """Run steps of these lengths, then leave."""
        lengths = iter(steps)
        for _ in batches:
            length = next(lengths, None)
            if length is None:  # the last step ended where this batch was asked for
                break
            self.arrived.append(time.perf_counter())
            busy(length)
            self.ended.append(time.perf_counter())
            self.asked_seconds += length
        batches.close()

    @property
    def disturbed(self) -> float:
        """By what share steps were longer than they should be: others used the processor."""
        return sum(b - a for a, b in zip(self.arrived, self.ended, strict=True)) / self.asked_seconds - 1

    def waited(self, num_steps: int) -> float:
        """Return the share of the last `num_steps` whole steps in which the loop waited."""
        last = len(self.ended) - 1
        first = last - num_steps
        return sum(self.arrived[k] - self.ended[k - 1] for k in range(first + 1, last + 1)) / (
            self.ended[last] - self.ended[first]
        )


def measure_point(
    ratio: float, *, ahead: bool, jitter: bool, step_seconds: float, num_steps: int, tries: int = 1
) -> Point:
    """Run a loop, and its steps alone; again where others disturbed the steps, and keep the calmest."""
    points: list[tuple[float, Point]] = []
    while len(points) < tries and (not points or min(tried[0] for tried in points) > CALM):
        points.append(_try_point(ratio, ahead=ahead, jitter=jitter, step_seconds=step_seconds, num_steps=num_steps))
    return min(points, key=lambda tried: tried[0])[1]


def _try_point(ratio: float, *, ahead: bool, jitter: bool, step_seconds: float, num_steps: int) -> tuple[float, Point]:
    count = num_steps + NUM_WARMUP + 1
    loads = lengths(ratio * step_seconds, count + READ_AHEAD + 2, jitter=jitter)
    steps = lengths(step_seconds, count, jitter=jitter, seed=1)
    meter, replay = WaitMeter(CPU, num_warmup=NUM_WARMUP), WaitMeter(CPU, num_warmup=NUM_WARMUP)
    real_log, replay_log = _Log(), _Log()
    with _prompt_threads():
        real_log.run(meter.watch((read_ahead if ahead else in_turn)(loads)), steps)
        replay_log.run(replay.watch(itertools.repeat(torch.zeros(1, 3))), steps)
    timing, alone = meter.result(), replay.result()
    return max(real_log.disturbed, replay_log.disturbed), Point(
        ratio=ratio, ahead=ahead, jitter=jitter, measured=timing.wait_share or 0.0,
        true=real_log.waited(timing.num_steps), nominal=None if jitter else nominal(ratio, ahead=ahead),
        headspace=1 - _speed(timing) / _speed(alone), disturbed=max(real_log.disturbed, replay_log.disturbed),
    )  # fmt: skip


def nominal(ratio: float, *, ahead: bool) -> float:
    """Return the share that a loader of `ratio` steps' length makes a step wait."""
    return max(0.0, 1 - 1 / ratio) if ahead else ratio / (1 + ratio)


def _speed(timing: Timing) -> float:
    return timing.images_per_second or 0.0


@contextmanager
def _prompt_threads() -> Iterator[None]:
    """Let a thread that reads ahead run soon: a busy loop in Python gives way only every five milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def measure_cost(step_seconds: float, *, rounds: int = 21, num_steps: int = 60) -> dict[str, float]:
    """Return what watching adds to a step: paired blocks with and without it, and of steps that do nothing.

    Returns:
        `step_us`, microseconds of the median step of the plain loop; `added_us`, what the watched loop's median step
        takes more, the median of the rounds; `share`, of it; `empty_added_us`, what watching adds to the mean of many
        empty steps, looks at the system included; `empty_share`, of `step_seconds`.
    """
    batches = [torch.zeros(1, 3)] * num_steps
    differences, plain_steps = [], []
    for _ in range(rounds):
        plain = _median_step(batches, step_seconds)
        plain_steps.append(plain)
        differences.append(_median_step(_watched(batches), step_seconds) - plain)
    many = [torch.zeros(1, 3)] * 20_000
    empty = statistics.median(_mean_step(_watched(many)) - _mean_step(many) for _ in range(3))
    added, step = statistics.median(differences), statistics.median(plain_steps)
    return {
        "step_us": 1e6 * step, "added_us": 1e6 * added, "share": added / step, "empty_added_us": 1e6 * empty,
        "empty_share": empty / step_seconds,
    }  # fmt: skip


def _watched(batches: list[torch.Tensor]) -> Iterable[torch.Tensor]:
    return fastload.profile(batches, device="cpu", quiet=True)


def _median_step(batches: Iterable[torch.Tensor], step_seconds: float) -> float:
    ended = []
    for _ in batches:
        busy(step_seconds)
        ended.append(time.perf_counter())
    return statistics.median(b - a for a, b in itertools.pairwise(ended))


def _mean_step(batches: Iterable[torch.Tensor]) -> float:
    begin, count, end = time.perf_counter(), 0, 0.0
    for _ in batches:
        count += 1
        end = time.perf_counter()
    return (end - begin) / count


def run_case(case: Case, tries: int = 3) -> dict[str, Any]:
    """Run a made loader under Profile; return what was expected and said. A busy machine gets another try."""
    said: list[str | None] = []
    report: dict[str, Any] = {}
    while len(said) < tries and (not said or said[-1] != case.expected):
        with case.setting() as (loader, step):
            with fastload.Profile(loader, replay=True, device="cpu", quiet=True, num_warmup=2) as watched:
                for _ in range(case.epochs):
                    for batch in watched:
                        step(batch)
            report = watched.report or {}
        said.append(None if report.get("cause") is None else report["cause"]["word"])
    loop = report["loops"][0]
    return {
        "case": case.name, "expected": case.expected, "said": said, "right": said[-1] == case.expected,
        "verdict": report["verdict"]["word"], "wait_share": rounded(loop["wait"]["share"]),
        "evidence": report["cause"]["evidence"] if report["cause"] else [],
    }  # fmt: skip


def measure(*, step_ms: float, num_steps: int, only: str | None = None) -> dict[str, Any]:
    """Run grid, cases and cost; return the result, ready for JSON.

    Args:
        step_ms: length of a step of the grid, in milliseconds.
        num_steps: that count, per point.
        only: `grid`, `cases` or `cost`; all where not given.
    """
    if step_ms <= 0 or num_steps < 1 or only not in (None, "grid", "cases", "cost"):
        raise ConfigError(f"step_ms={step_ms}, num_steps={num_steps}, only={only!r}: more than 0, at least 1 step, and "
                          "grid, cases or cost.")  # fmt: skip
    result: dict[str, Any] = {"schema": "fastload-bench-truth", "version": 1, **described(),
                              "data": {"name": "loaders and steps of known length"},
                              "settings": {"step_ms": step_ms, "steps": num_steps, "tolerance": TOLERANCE}}  # fmt: skip
    with Progress(console=Console(stderr=True), transient=True) as bar:
        if only in (None, "grid"):
            ways = [(r, a, j) for r in RATIOS for a in (False, True) for j in (False, True)]
            points = [measure_point(r, ahead=a, jitter=j, step_seconds=step_ms / 1e3, num_steps=num_steps, tries=3)
                      for r, a, j in bar.track(ways, description="points of the grid")]  # fmt: skip
            result["grid"] = [_point(point) for point in points]
        if only in (None, "cases"):
            made = [run_case(case) for case in bar.track(CASES, description="made loaders")]
            told = [_told(name, word, seen) for name, word, seen in evidence_cases()]
            result["cases"] = [*made, *told]
        if only in (None, "cost"):
            result["cost"] = {key: rounded(value, 5) for key, value in measure_cost(5e-3).items()}
    return result


def _point(point: Point) -> dict[str, Any]:
    fields = ("ratio", "ahead", "jitter", "measured", "true", "nominal", "headspace", "disturbed")
    shown = {name: getattr(point, name) for name in fields}
    return {**{k: rounded(v) if isinstance(v, float) else v for k, v in shown.items()}, "right": point.is_right}


def _told(name: str, word: str, seen: Any) -> dict[str, Any]:
    cause = find_cause(seen)
    said = None if cause is None else cause.word
    return {"case": name, "expected": word, "said": [said], "right": said == word, "verdict": None,
            "wait_share": seen.wait_share, "evidence": list(cause.evidence) if cause else []}  # fmt: skip


def say(result: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console(soft_wrap=True, highlight=False)
    yes: Callable[[bool], str] = lambda right: "yes" if right else "NO"  # noqa: E731
    if "grid" in result:
        table = Table(
            "loader / step", "reads ahead", "jitter", "true", "measured", "1 - X_real/X_replay", "disturbed", "within 3"
        )
        for p in result["grid"]:
            table.add_row(f"{p['ratio']:g}", yes(p["ahead"]), yes(p["jitter"]), f"{p['true']:.1%}",
                          f"{p['measured']:.1%}", f"{p['headspace']:.1%}", f"{p['disturbed']:.1%}",
                          yes(p["right"]))  # fmt: skip
        console.print(table)
    if "cases" in result:
        table = Table("made loader", "expected", "said", "verdict")
        for case in result["cases"]:
            table.add_row(case["case"], case["expected"], ", ".join(map(str, case["said"])), case["verdict"] or "")
        console.print(table)
    if "cost" in result:
        cost = result["cost"]
        console.print(
            f"Watching adds {cost['added_us']:.0f} us to a step of {cost['step_us']:,.0f} us ({cost['share']:.2%}); to "
            f"an empty one {cost['empty_added_us']:.1f} us."
        )
