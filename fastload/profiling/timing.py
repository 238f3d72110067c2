"""How long the device waited for data: two events around `next()`, never a synchronization per step.

On CUDA both events lie on the compute stream, so what counts is the time the GPU had nothing to do,
not the time the host spent in `next()`. On the CPU the step is synchronous and both are the same.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from fastload.profiling.hook.describing import shape_of
from fastload.profiling.hook.steps import CudaClock

Batch = TypeVar("Batch")

_SEQUENCES, _TENSOR = (tuple, list), torch.Tensor

CPU_EVERY = 8  # steps: asking for a thread's processor time is a system call
COLLECT_EVERY = 32


# Kinds of steps; plain numbers, since an enumeration's members are looked up slowly, at every step.
_STEP, _WARMUP = 0, 1
_START = 2  # the first batch of an epoch
_END = 3  # asking for a batch after the last one: workers end here


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one watched loop came to. Times are in seconds; warm-up and epoch starts lie apart.

    Attributes:
        num_steps: steps that count.
        num_images: images of these steps.
        wall_seconds: their duration, data wait included.
        wait_seconds: the part of it in which the device waited for data.
        step_seconds, step_waits, step_images, step_ends: of each of them; it ended so long after the loop began.
        own_seconds: the loader's own work on the device, no part of the wait; None where it does not tell.
        num_epochs: loops that were begun.
        later_seconds, later_waits: duration of the first and data wait of the first and the last `next()` of all
            epochs but the first.
        next_seconds, next_cpu_seconds: the host's time in every eighth `next()`, and the processor time that the thread
            which called it used meanwhile.
    """

    num_steps: int
    num_images: int
    wall_seconds: float
    wait_seconds: float
    step_seconds: tuple[float, ...] = field(repr=False)
    step_waits: tuple[float, ...] = field(default=(), repr=False)
    step_images: tuple[int, ...] = field(default=(), repr=False)
    step_ends: tuple[float, ...] = field(default=(), repr=False)
    own_seconds: float | None = None
    num_epochs: int = 0
    later_seconds: float = 0.0
    later_waits: float = 0.0
    next_seconds: float = 0.0
    next_cpu_seconds: float = 0.0

    @property
    def images_per_second(self) -> float | None:
        """Throughput of the steps that count; None where there were none."""
        return self.num_images / self.wall_seconds if self.wall_seconds > 0 else None

    @property
    def wait_share(self) -> float | None:
        """Data wait over wall time; None where no step counted."""
        return self.wait_seconds / self.wall_seconds if self.wall_seconds > 0 else None

    @property
    def start_share(self) -> float | None:
        """Data wait at the edges of epochs over the wall time of whole epochs; None where there was only one epoch."""
        if self.num_epochs < 2 or self.wall_seconds <= 0:
            return None
        within = self.wall_seconds * (self.num_epochs - 1) / self.num_epochs
        return self.later_waits / (self.later_seconds + within)


# A step that is over: its kind, number (of its images where it counts, else of its epoch), duration, wait, the loader's
# own work on the device, and when it ended. A plain tuple: a named one takes six times as long to make.
_Step = tuple[int, int, float, float, float | None, float]


class WaitMeter:
    """Watches loops over batches and adds up how long the device waited for data.

    It never harms the loop: where a clock of its own fails, it stops measuring and says why in `failure`.

    Args:
        device: where the steps run.
        num_warmup: steps at the very beginning that do not count.
    """

    def __init__(self, device: torch.device, *, num_warmup: int = 0) -> None:
        self._clock: _HostClock | _CudaClock = _CudaClock(device) if device.type == "cuda" else _HostClock()
        self._warmup_left = num_warmup
        # Of the steps that count, as plain numbers: a loop may have millions.
        self._seconds, self._waits, self._ends = array("d"), array("d"), array("d")
        self._images = array("q")
        self._own: float | None = None
        self._num_epochs, self._later_seconds, self._later_waits = 0, 0.0, 0.0
        self._next_began: tuple[float, float] | None = None
        self._next_seconds, self._next_cpu_seconds = 0.0, 0.0
        self._num_seen = self._num_counted = 0
        self.failure: Exception | None = None

    def settle(self, num_steps: int) -> None:
        """Let the step under way and the `num_steps` after it not count: something else came in between."""
        self._warmup_left = num_steps + 1

    def watch(self, batches: Iterable[Batch], *, loader: Any = None) -> Iterator[Batch]:
        """Yield what `batches` yields; leaving it early is fine.

        The first batch is a start and does not count: one call is one epoch, or the rest of one.

        Args:
            batches: a loader, or an iterator over one, which stays open when it is left early.
            loader: whose hook tells where its own device work begins; `batches` where not given.
        """
        clock = self._clock
        loader = batches if loader is None else loader
        hooked = getattr(loader, "on_device_work", self) is not self
        if hooked:
            loader.on_device_work = partial(self._safely, clock.own_work_begins)
        kind, iterator, epoch = _START, None, self._num_epochs
        self._num_epochs += 1
        try:
            # Before iter(): a DataLoader starts its workers there, and that is waiting too.
            self._safely(clock.step_begins)
            iterator = iter(batches)
            while True:
                if not self._num_seen % CPU_EVERY:
                    self._next_begins()
                try:
                    batch = next(iterator)
                except StopIteration:
                    self._next_began = None
                    self._safely(clock.data_arrived)
                    self._safely(clock.step_ends, _END, epoch)
                    break
                num_images = self._arrived(batch)
                yield batch
                del batch  # the caller's alone
                if kind != _START:
                    kind = _WARMUP if self._warmup_left > 0 else _STEP
                self._ended(kind, num_images if kind == _STEP else epoch)
                kind = _STEP
        finally:
            if hooked:
                loader.on_device_work = None
            # A loop that was left early: the generator made for it must not wait for the garbage collector.
            close = getattr(iterator, "close", None)
            if iterator is not batches and close is not None:
                close()

    def result(self) -> Timing:
        """Return everything so far; waits once for the device."""
        self._safely(self._clock.wait)
        self._safely(self._collect)
        return Timing(
            num_steps=len(self._seconds), num_images=sum(self._images), wall_seconds=math.fsum(self._seconds),
            wait_seconds=math.fsum(self._waits), step_seconds=tuple(self._seconds), step_waits=tuple(self._waits),
            step_images=tuple(self._images), step_ends=tuple(self._ends), own_seconds=self._own,
            num_epochs=self._num_epochs, later_seconds=self._later_seconds, later_waits=self._later_waits,
            next_seconds=self._next_seconds, next_cpu_seconds=self._next_cpu_seconds,
        )  # fmt: skip

    @property
    def num_steps(self) -> int:
        """Steps that count and that the host is done with; does not wait for the device."""
        return self._num_counted

    @property
    def share_so_far(self) -> float | None:
        """Data wait over wall time of the last 100 steps that have ended; does not wait for the device."""
        self._safely(self._collect)
        wall = sum(self._seconds[-100:])
        return sum(self._waits[-100:]) / wall if wall > 0 else None

    # What happens at every step is kept short, in few calls: behind a real step their code is in no cache, and each
    # costs some microseconds.

    def _arrived(self, batch: Any) -> int:
        if self.failure is not None:
            return 0
        try:
            self._clock.data_arrived()
            if self._next_began is not None:
                self._next_ends()
            first = batch[0] if type(batch) in _SEQUENCES and batch else batch
            # As shape_of, for what nearly every batch is: size(0) takes three times as long as shape[0].
            if type(first) is _TENSOR and (shape := first.shape):
                return shape[0]
            return (shape_of(batch) or [0])[0]
        except Exception as failure:  # the user's loop goes on whatever happens to a clock
            self.failure = failure
            return 0

    def _ended(self, kind: int, number: int) -> None:
        self._warmup_left -= 1
        self._num_seen += 1
        if self.failure is not None:
            return
        try:
            self._clock.step_ends(kind, number)
            self._num_counted += kind == _STEP
            if not self._num_seen % COLLECT_EVERY:
                self._collect()
        except Exception as failure:
            self.failure = failure

    def _next_begins(self) -> None:
        self._next_began = time.perf_counter(), time.thread_time()

    def _next_ends(self) -> None:
        if self._next_began is not None:
            self._next_seconds += time.perf_counter() - self._next_began[0]
            self._next_cpu_seconds += time.thread_time() - self._next_began[1]
            self._next_began = None

    def _safely(self, call: Callable[..., object], *arguments: object) -> None:
        if self.failure is None:
            try:
                call(*arguments)
            except Exception as failure:
                self.failure = failure

    def _collect(self) -> None:
        for kind, number, seconds, wait, own, ended in self._clock.finished():
            if kind == _STEP:
                if own is not None:
                    self._own = (self._own or 0.0) + own
                self._seconds.append(seconds)
                self._waits.append(wait)
                self._ends.append(ended)
                self._images.append(number)
                continue
            if kind != _WARMUP and number > 0:
                self._later_seconds += seconds
                self._later_waits += wait


class _HostClock:
    def __init__(self) -> None:
        self._done: list[tuple[int, int, float, float, float]] = []
        self._origin: float | None = None
        self._begin = self._arrived = 0.0

    def step_begins(self) -> None:
        self._begin = time.perf_counter()
        if self._origin is None:
            self._origin = self._begin

    def own_work_begins(self) -> None:
        pass  # on the host, copy and augmentation take the step's own time: they are waiting

    def data_arrived(self) -> None:
        self._arrived = time.perf_counter()

    def step_ends(self, kind: int, number: int) -> None:
        # The next one begins here: no time is lost between the two.
        begin, self._begin = self._begin, time.perf_counter()
        self._done.append((kind, number, begin, self._arrived, self._begin))

    def finished(self) -> Iterator[_Step]:
        done, self._done = self._done, []
        origin = self._origin or 0.0
        for kind, number, begin, arrived, end in done:
            yield kind, number, end - begin, arrived - begin, None, end - origin

    def wait(self) -> None:
        pass


class _CudaClock:
    """Events on the current stream, taken from a pool and read when they have passed.

    A step that is captured into a graph is left out: an event recorded then would become a part of the graph.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = CudaClock(device)
        self._event = self._events.mark
        self._pending: deque[tuple[int, int, float, tuple[Any, Any, Any, Any]]] = deque()
        self._origin: float | None = None
        self._begin: Any = None
        self._arrived: Any = None
        self._ready: Any = None

    def step_begins(self) -> None:
        if self._origin is None:
            self._origin = time.perf_counter()
        self._begin, self._arrived, self._ready = self._event(), None, None

    def own_work_begins(self) -> None:
        if self._arrived is None:
            self._arrived = self._event()

    def data_arrived(self) -> None:
        if self._arrived is None:
            self._arrived = self._event()
        else:
            self._ready = self._event()

    def step_ends(self, kind: int, number: int) -> None:
        events = (self._begin, self._arrived, self._ready, self._event())
        # The next one begins where this one ends: one event for both.
        self._begin, self._arrived, self._ready = events[3], None, None
        if events[0] is not None and events[1] is not None and events[3] is not None:
            self._pending.append((kind, number, time.perf_counter() - (self._origin or 0.0), events))

    def finished(self) -> Iterator[_Step]:
        seconds = self._events.seconds
        while self._pending and self._events.has_passed(self._pending[0][3][3]):
            kind, number, ended, events = self._pending.popleft()
            begin, arrived, ready, end = events
            own = None if ready is None else seconds(arrived, ready)
            step = (kind, number, seconds(begin, end), seconds(begin, arrived), own, ended)
            self._events.give_back(*events[:3])  # the last one is the next step's first
            yield step

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)


def joined(timings: Sequence[Timing]) -> Timing:
    """Return several timings as one: what they counted, one after the other."""
    ends, steps_ended = 0.0, []
    for timing in timings:
        steps_ended += [ends + ended for ended in timing.step_ends]
        ends += timing.step_ends[-1] if timing.step_ends else 0.0
    own = [t.own_seconds for t in timings if t.own_seconds is not None]

    def total(name: str) -> Any:
        return sum(getattr(t, name) for t in timings)

    def chain(name: str) -> tuple[Any, ...]:
        return tuple(value for t in timings for value in getattr(t, name))

    return Timing(
        step_seconds=chain("step_seconds"), step_waits=chain("step_waits"), step_images=chain("step_images"),
        step_ends=tuple(steps_ended), own_seconds=sum(own) if own else None,
        **{name: total(name) for name in (
            "num_steps", "num_images", "wall_seconds", "wait_seconds", "num_epochs", "later_seconds", "later_waits",
            "next_seconds", "next_cpu_seconds",
        )},
    )  # fmt: skip
