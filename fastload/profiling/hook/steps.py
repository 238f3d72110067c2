"""Steps, loops and passes as the watcher books them, and the clocks that they are measured with.

Times come from the host where a step is synchronous, as on a CPU; on a GPU from events on the compute stream, which are
read long after they have passed. Nothing is ever synchronized.
"""

from __future__ import annotations

import time
import weakref
from typing import Any

import torch

NUM_WARMUP = 3
MAX_ROWS = 4096  # of each loop: beyond it every second run is dropped, and from then on every second one kept
# Runs, and not steps: with 2, 4, 8 workers every 2nd, 4th, 8th step waits, so that all of these or none would be kept.
NUM_RUNS = 64  # in MAX_ROWS; even


def gpu_in_use() -> torch.device | None:
    """Return the GPU with most of this process's tensors, None where none has any; no GPU is set up by asking.

    The current device does not tell: a script that moves all to `cuda:1` and never calls `set_device` has 0 for it.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    try:
        held = [torch.cuda.memory_allocated(number) for number in range(torch.cuda.device_count())]
    except RuntimeError:  # an allocator of somebody else's, that does not count
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cuda", held.index(max(held))) if any(held) else None


class HostClock:
    """Times of the host: right where the step is synchronous, as on a CPU."""

    name = "cpu"

    def mark(self) -> Any:
        """Return this moment."""
        return time.perf_counter()

    def has_passed(self, mark: Any) -> bool:
        """Tell whether `seconds` can be asked for."""
        return True

    def seconds(self, begin: Any, end: Any) -> float:
        """Return the time between two marks."""
        return float(end - begin)

    def give_back(self, *marks: Any) -> None:
        """Take marks that are not needed any more."""


class CudaClock:
    """Times of the compute stream of one GPU: events, taken from a pool and given back."""

    def __init__(self, device: torch.device) -> None:
        self.name = str(device)
        self.device = device
        self._pool: list[Any] = []

    def mark(self) -> Any:
        """Record an event; None while a graph is captured, which must not contain it."""
        if torch.cuda.is_current_stream_capturing():
            return None
        event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def has_passed(self, mark: Any) -> bool:
        """Tell whether the GPU has come to the event."""
        # Even asking spoils a graph that is being captured.
        return bool(mark is None or (not torch.cuda.is_current_stream_capturing() and mark.query()))

    def seconds(self, begin: Any, end: Any) -> float:
        """Return the time between two events; 0 where one was not recorded."""
        return 0.0 if begin is None or end is None else float(begin.elapsed_time(end)) / 1e3

    def give_back(self, *marks: Any) -> None:
        """Take events that are not needed any more."""
        self._pool += [mark for mark in marks if mark is not None]


class Step:
    """One step: marks of the device, times of the host, and how many rows came."""

    __slots__ = (
        "arrived", "askers", "begin", "clock", "counts", "cpu_begin", "end", "host_begin", "host_wait", "others",
        "ready", "rows", "shared",
    )  # fmt: skip

    def __init__(self, clock: Any, host_begin: float) -> None:
        self.clock, self.begin = clock, clock.mark()
        self.arrived: Any = None  # where the loader's own work on the device begins, else where its batch is there
        self.ready: Any = None  # where that work ends
        self.end: Any = None
        self.host_begin, self.host_wait, self.cpu_begin = host_begin, 0.0, time.thread_time()
        self.others: list[tuple[Any, Any]] = []  # waits of other loops' steps within this one
        self.askers: list[int] = []  # the passes that these were of, by id()
        self.rows, self.counts, self.shared = 0, True, False


class Loop:
    """All passes over the batches of one dataset at one place of the script."""

    def __init__(self, about: dict[str, Any], dataset: Any) -> None:
        self.about = about
        self._dataset: Any = None
        self.take(dataset)
        self.totals = {"steps": 0, "rows": 0, "seconds": 0.0, "wait_seconds": 0.0, "next_seconds": 0.0,
                       "next_cpu_seconds": 0.0}  # fmt: skip
        self.own_seconds: float | None = None
        # Of all passes, and of all but the first: their first steps, and the wait for these and after the last batch.
        self.starts = {"count": 0, "seconds": 0.0, "later_seconds": 0.0, "later_wait_seconds": 0.0}
        self.rows: list[tuple[float, float, float, float, int]] = []
        self.warmup_left = NUM_WARMUP
        self._stride = 1  # of so many runs one is kept
        self.pending: list[Step] = []

    @property
    def dataset(self) -> Any:
        """The dataset, None where the script has let go of it."""
        return self._dataset()

    def take(self, dataset: Any) -> None:
        """Make a dataset this loop's: the first one, or one that was made anew for a later epoch."""
        try:
            self._dataset = weakref.ref(dataset)
        except TypeError:
            self._dataset = lambda: dataset  # a list, say

    def collect(self) -> None:
        """Book the steps that the device has come past."""
        while self.pending and self.pending[0].clock.has_passed(self.pending[0].end):
            self._book(self.pending.pop(0))

    def _book(self, step: Step) -> None:
        clock = step.clock
        seconds = clock.seconds(step.begin, step.end)
        wait = clock.seconds(step.begin, step.arrived) + sum(clock.seconds(*marks) for marks in step.others)
        own = None if step.ready is None else clock.seconds(step.arrived, step.ready)
        if not step.shared:  # with another loop's step, which may still need these marks
            clock.give_back(step.begin, step.arrived, step.ready, step.end)
        if not step.counts or seconds <= 0:
            return
        totals = self.totals
        number = int(totals["steps"])
        totals["steps"] += 1
        totals["rows"] += step.rows
        totals["seconds"] += seconds
        totals["wait_seconds"] += wait
        if own is not None:
            self.own_seconds = (self.own_seconds or 0.0) + own
        length = max(1, MAX_ROWS // NUM_RUNS)
        if number // length % self._stride == 0:
            self.rows.append((step.host_begin, seconds, wait, step.host_wait, step.rows))
            if len(self.rows) >= MAX_ROWS:
                self.rows = [row for place, row in enumerate(self.rows) if place // length % 2 == 0]
                self._stride *= 2

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        rows = [[round(b, 4), round(s, 7), round(w, 7), round(h, 7), n] for b, s, w, h, n in self.rows]
        return {
            **self.about, "totals": self.totals, "starts": self.starts, "own_seconds": self.own_seconds,
            "rows": rows,
        }  # fmt: skip


class Pass:
    """One iterator over a loader: one epoch, or a part of one."""

    __slots__ = ("__weakref__", "loop", "starting", "step")

    def __init__(self, loop: Loop | None, starting: float) -> None:
        self.loop = loop
        self.starting: float | None = starting  # how long iter() took; None once the first step is over
        self.step: Step | None = None
