"""How long the device waited for data: two events around `next()`, never a synchronization per step.

On CUDA both events lie on the compute stream, so what counts is the time the GPU had nothing to do,
not the time the host spent in `next()`. On the CPU the step is synchronous and both are the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one watched loop came to. Times are in seconds; warm-up and epoch starts lie apart.

    Attributes:
        num_steps: steps that count.
        num_images: images of these steps.
        wall_seconds: their duration, data wait included.
        wait_seconds: the part of it in which the device waited for data.
        step_seconds: duration of each of them.
        num_starts, start_seconds: first batches of epochs and warm-up steps, and their duration.
    """

    num_steps: int
    num_images: int
    wall_seconds: float
    wait_seconds: float
    step_seconds: tuple[float, ...] = field(repr=False)
    num_starts: int
    start_seconds: float

    @property
    def images_per_second(self) -> float | None:
        """Throughput of the steps that count; None where there were none."""
        return self.num_images / self.wall_seconds if self.wall_seconds > 0 else None

    @property
    def wait_share(self) -> float | None:
        """Data wait over wall time; None where no step counted."""
        return self.wait_seconds / self.wall_seconds if self.wall_seconds > 0 else None


class WaitMeter:
    """Watches loops over batches and adds up how long the device waited for data.

    Args:
        device: where the steps run.
        num_warmup: steps at the very beginning that do not count.
    """

    def __init__(self, device: torch.device, *, num_warmup: int = 0) -> None:
        self._clock: _HostClock | _CudaClock = _CudaClock(device) if device.type == "cuda" else _HostClock()
        self._warmup_left = num_warmup
        self._steps: list[tuple[float, float, int]] = []  # duration, wait, images
        self._starts: list[float] = []

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
            loader.on_device_work = clock.data_arrived
        iterator = iter(batches)
        first, num_images = True, 0
        try:
            while True:
                clock.step_begins()
                try:
                    batch = next(iterator)
                except StopIteration:
                    break
                clock.data_arrived()
                num_images = _num_rows(batch)
                yield batch
                counts = not first and self._warmup_left <= 0
                self._warmup_left -= 1
                clock.step_ends(num_images if counts else None)
                first = False
                self._collect()
        finally:
            if hooked:
                loader.on_device_work = None
            # A loop that was left early: the generator made for it must not wait for the garbage collector.
            close = getattr(iterator, "close", None)
            if iterator is not batches and close is not None:
                close()

    def result(self) -> Timing:
        """Return everything so far; waits once for the device."""
        self._clock.wait()
        self._collect()
        durations = tuple(duration for duration, _, _ in self._steps)
        return Timing(
            num_steps=len(self._steps),
            num_images=sum(images for _, _, images in self._steps),
            wall_seconds=sum(durations),
            wait_seconds=sum(wait for _, wait, _ in self._steps),
            step_seconds=durations,
            num_starts=len(self._starts),
            start_seconds=sum(self._starts),
        )

    @property
    def num_steps(self) -> int:
        """Steps that count and have ended; does not wait for the device."""
        return len(self._steps)

    @property
    def share_so_far(self) -> float | None:
        """Data wait over wall time of the last 100 steps that have ended; does not wait for the device."""
        wall = sum(duration for duration, _, _ in self._steps[-100:])
        return sum(wait for _, wait, _ in self._steps[-100:]) / wall if wall > 0 else None

    def _collect(self) -> None:
        for duration, wait, num_images in self._clock.finished():
            if num_images is None:
                self._starts.append(duration)
            else:
                self._steps.append((duration, wait, num_images))


class _HostClock:
    def __init__(self) -> None:
        self._done: list[tuple[float, float, int | None]] = []
        self._begin = self._arrived = 0.0

    def step_begins(self) -> None:
        self._begin = time.perf_counter()

    def data_arrived(self) -> None:
        # Called at the loader's hook too: the last call, after next(), is the one that stays.
        self._arrived = time.perf_counter()

    def step_ends(self, num_images: int | None) -> None:
        self._done.append((time.perf_counter() - self._begin, self._arrived - self._begin, num_images))

    def finished(self) -> Iterator[tuple[float, float, int | None]]:
        done, self._done = self._done, []
        yield from done

    def wait(self) -> None:
        pass


class _CudaClock:
    """Events on the current stream, taken from a pool and read when they have passed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: list[Any] = []
        self._pending: deque[tuple[Any, Any, Any, int | None]] = deque()
        self._begin: Any = None
        self._arrived: Any = None

    def step_begins(self) -> None:
        self._begin, self._arrived = self._event(), None

    def data_arrived(self) -> None:
        # The first call counts: at the hook, before the loader's own copy and augmentation.
        if self._arrived is None:
            self._arrived = self._event()

    def step_ends(self, num_images: int | None) -> None:
        self._pending.append((self._begin, self._arrived, self._event(), num_images))

    def finished(self) -> Iterator[tuple[float, float, int | None]]:
        while self._pending and self._pending[0][2].query():
            begin, arrived, end, num_images = self._pending.popleft()
            yield begin.elapsed_time(end) / 1e3, begin.elapsed_time(arrived) / 1e3, num_images
            self._pool += [begin, arrived, end]

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)

    def _event(self) -> Any:
        event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


def _num_rows(batch: Any) -> int:
    """Return the number of samples in a batch: the length of the first tensor found in it."""
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0]) if batch.ndim else 1
    inner = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return next((n for n in map(_num_rows, inner) if n), 0)
