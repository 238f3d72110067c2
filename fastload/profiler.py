"""`fastload.profile` and `fastload.Profile`: one line around any iterable of batches, and a report at the end."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count, cycle, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

from fastload.devices import generators_kept, parse_device
from fastload.errors import ConfigError, printable
from fastload.profiling import ranks, terminal
from fastload.profiling.actions import MEASURED, UPPER_BOUND, Advice, advise, folder_to_convert, stored_side
from fastload.profiling.busy import NUM_STEPS as WINDOW_STEPS
from fastload.profiling.busy import Busy, BusyWindow
from fastload.profiling.hook.describing import origin, shape_of
from fastload.profiling.hook.steps import gpu_in_use
from fastload.profiling.intervals import whole_rounds
from fastload.profiling.live import LiveLine
from fastload.profiling.loops import Feeding, Measured, image_side, make_loop, rate
from fastload.profiling.nvml import NvmlSamples
from fastload.profiling.report import Rate, Report, ResidentGain, Run, Sample, described, write_json
from fastload.profiling.samples import time_samples
from fastload.profiling.system import SECONDS_BETWEEN_LOOKS, SystemMeter
from fastload.profiling.timing import Timing, WaitMeter
from fastload.profiling.verdict import MIN_STEPS

Batch = TypeVar("Batch")

NUM_CACHED = 4
REAL_STEPS = 20  # between two blocks of replayed ones
REPLAY_STEPS = 10  # of a block, behind its warm-up
REPLAY_WARMUP = 2
MAX_BLOCKS = 6  # of short epochs: each may end before a block has its steps
MIN_WINDOW_STEPS = 5  # of those traced on a GPU, 15 where the loop is long enough
NUM_LOAD = 24  # batches of the loader alone, at least
MAX_LOAD_SECONDS = 20.0
_numbers = count()  # of the profiles of this process: ranks make theirs alike


class Profile(Generic[Batch]):
    """Watches loops over a loader's batches, and says at the end how long the device waited for them and why.

    `with fastload.Profile(loader, replay=True) as loader:` and the loops inside stay as they are, any number of
    epochs. The profiler never harms them: a failure of its own ends the measuring, is told at the end, and nothing
    else. Where a loop fails or is interrupted, the report is of what ran until then, and the error passes on.

    Args:
        loader: a DataLoader, a fastload Loader, any iterable of batches.
        replay: also measure the step alone and the loader alone, and where the time of a sample goes. That changes
            the training a little: after 20 steps, twice, the first batches are given again for 13 steps, in the place
            of the 13 that come next (fewer where the epoch ends before); the loop has as many steps as without, so a
            schedule of the learning rate still ends with it. At the end the loader is iterated once more, and 64
            samples are asked for.
        device: where the steps run; where not given, that of a fastload Loader, else the GPU with most tensors of this
            process, else Accelerate's, else cuda, else mps, else cpu.
        num_warmup: steps at the very beginning that do not count.
        name: of the loader, in the report.
        model: of the network, in the report.
        json: write the report to this file; of several ranks, the first one does.
        assume_gpu_rate: images/s of a GPU that is not here, to say whether this loader would do for it.
        quiet: print neither the line while it runs nor the report.

    Attributes:
        report: a dict of schema `fastload-gpu-util`, once it is closed; of several ranks, on the first one.

    Raises:
        ConfigError: no such device.
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        *,
        replay: bool = False,
        device: str | torch.device | None = None,
        num_warmup: int = 3,
        name: str | None = None,
        model: str | None = None,
        json: str | Path | None = None,
        assume_gpu_rate: float | None = None,
        quiet: bool = False,
    ) -> None:
        if assume_gpu_rate is not None and not assume_gpu_rate > 0:
            raise ConfigError(f"assume_gpu_rate={assume_gpu_rate}: images per second, more than 0, are needed.")
        self._loader: Any = loader
        # Asked without an import: a loop of a DataLoader has no need of all that ours brings along.
        ours = getattr(sys.modules.get("fastload.loader"), "Loader", None)
        self._is_ours = ours is not None and isinstance(loader, ours)
        self._replay, self._model = replay, model
        self._name = type(loader).__name__ if name is None else name
        self._json = None if json is None else Path(json)
        self._quiet, self._num_warmup, self._assume_gpu_rate = quiet, num_warmup, assume_gpu_rate
        if device is None:
            device = getattr(loader, "device", None) if self._is_ours else gpu_in_use()
        self._device = parse_device(device)
        self._rank, self._world_size = ranks.current()
        self._known_as, self._made_at = f"profile{next(_numbers)}", time.time()
        self._feeding = Feeding.of(loader)
        self._meter, self._replay_meter = WaitMeter(self._device, num_warmup=num_warmup), WaitMeter(self._device)
        self._system = SystemMeter(num_workers=self._feeding.num_workers)
        self._line = LiveLine(shown=not quiet and self._rank == 0)
        self._nvml = NvmlSamples(self._device) if self._device.type == "cuda" else None
        self._window: BusyWindow | None = None
        self._busy: Busy | None = None
        self._cached: list[Batch] = []
        self._batch_shape: tuple[int, ...] | None = None
        self._blocks, self._traced = 0, False  # blocks of replayed steps so far; whether a window was traced
        self._since, self._open = 0, True  # steps since the last of these
        self._next_tick = 0.0
        self._failures: list[str] = []
        self.report: dict[str, Any] | None = None
        # An error in the loop keeps a generator alive with its traceback: then the report comes at the end.
        atexit.register(self.close)

    def __enter__(self) -> Profile[Batch]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(complete=error is None)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Batch]:
        self._safely(self._tick)
        batches = self._meter.watch(self._loader)
        try:
            for batch in batches:
                if self._batch_shape is None or self._replay:
                    self._safely(self._see, batch)
                yield batch
                del batch
                if time.monotonic() >= self._next_tick:
                    self._safely(self._tick)
                if self._replay and self._open:
                    yield from self._between(batches)
        finally:  # what comes behind a loop, a validation perhaps, is none of its steps
            self._safely(self._end_window)

    def close(self, *, complete: bool = False) -> None:
        """End the measuring, and say what came of it; once.

        Args:
            complete: the loop ended well: what needs the loader once more may be measured too.
        """
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        self._safely(self._line.clear)
        self._safely(self._end_window)  # of a loop that an error holds on to
        self._safely(self._finish, complete and self._replay, complete)
        if self._failures and not self._quiet:
            failed = f"The profiler itself failed, and the loop went on without it: {self._failures[0]}"
            self._say(lambda console: console.print(failed, markup=False, highlight=False))
        self._cached.clear()

    def _see(self, batch: Batch) -> None:
        if self._replay and len(self._cached) < NUM_CACHED:
            self._cached.append(batch)
        if self._batch_shape is None:
            self._batch_shape = tuple(shape_of(batch) or ())

    def _tick(self) -> None:
        self._next_tick = time.monotonic() + SECONDS_BETWEEN_LOOKS
        looked = self._system.tick()
        self._line.tick(self._meter)
        if looked and self._nvml is not None:
            self._nvml.drain()

    def _between(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """What happens between two real steps: blocks of replayed ones, and on a GPU a window that is traced."""
        self._since += self._meter.num_steps > 0
        if self._window is not None:
            if self._since >= WINDOW_STEPS:
                self._safely(self._end_window)
        elif self._since < REAL_STEPS:
            return
        elif self._replay_meter.num_steps < MIN_STEPS and self._blocks < MAX_BLOCKS and self._cached:
            self._blocks, self._since = self._blocks + 1, 0
            yield from self._replayed(batches)
        elif self._device.type == "cuda" and not self._traced:
            self._traced, self._since, self._window = True, 0, BusyWindow(self._device)
            self._meter.settle(WINDOW_STEPS)
            self._safely(self._window.start)

    def _end_window(self) -> None:
        window, self._window = self._window, None
        if window is None:
            return
        self._busy = window.stop(self._since)
        self._meter.settle(self._read_ahead)
        if self._since < MIN_WINDOW_STEPS:  # its loop ended: another one in the next epoch
            self._busy, self._traced = None, False

    def _replayed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches again, in the place of as many of the loader's: a longer loop would outrun its schedule."""
        most = 1 + REPLAY_WARMUP + REPLAY_STEPS
        self._meter.settle(most)
        num_left_out = sum(1 for _ in islice(batches, most))
        # What workers read ahead meanwhile is used up before real steps count again.
        self._meter.settle(self._read_ahead)
        self._replay_meter.settle(REPLAY_WARMUP)
        yield from self._replay_meter.watch(islice(cycle(self._cached), num_left_out))

    @property
    def _read_ahead(self) -> int:
        return 1 + (self._feeding.num_workers or 0) * (getattr(self._loader, "prefetch_factor", None) or 2)

    def _finish(self, again: bool, complete: bool) -> None:
        self._safely(self._tick_last)
        timing, load, sample = self._meter.result(), None, None
        replay = rate(self._replay_meter.result())
        for meter in (self._meter, self._replay_meter):
            if meter.failure is not None:
                self._failures.append(f"{type(meter.failure).__name__}: {printable(meter.failure)}")
        system, starved, read = self._system.result(), self._system.starved_share, self._system.read_chars_per_second
        if complete:
            self._safely(ranks.announce, self._rank, self._world_size, self._known_as)
        if again:
            with generators_kept():
                load = self._attempt(self._load_alone)
                sample = self._attempt(self._sample)
        loop = make_loop(
            self._name, timing, self._device.type, self._feeding,
            Measured(
                x_load=load, x_replay=replay, busy=self._busy, sample=sample,
                nvml=None if self._nvml is None else self._nvml.result(),
                nvml_series=() if self._nvml is None else self._nvml.series,
                gpu_memory_bytes=torch.cuda.max_memory_allocated(self._device) if self._nvml is not None else None,
                system=system, starved_share=starved, read_chars_per_second=read,
            ),
            rank=self._rank, warmup=self._num_warmup,
        )  # fmt: skip
        gain = self._attempt(lambda: self._gain(timing, replay)) if again else None
        shape, side, (source, library) = self._batch_shape, image_side(self._batch_shape), self._origin()
        report = Report(
            environment=described(),
            run=Run(
                entry="profile", model=self._model, size=side, batch_size=shape[0] if shape else None,
                device=self._device.type, num_ranks=self._world_size, num_warmup=self._num_warmup,
            ),
            loops=(loop,), verdict=loop.verdict, cause=loop.cause, resident_gain=gain,
            actions=advise(Advice(
                loop=loop, gain=gain, source=folder_to_convert(source, library), library=library,
                converted=self._feeding.in_memory, are_images=side is not None,
                store=None if side is None else stored_side(side),
                num_cores=max(1, len(os.sched_getaffinity(0)) // ranks.num_here(self._world_size)),
                num_workers=self._feeding.num_workers, persistent_workers=self._feeding.persistent_workers,
                pinned=self._feeding.pinned, assume_gpu_rate=self._assume_gpu_rate,
            )),
        ).as_dict()  # fmt: skip
        if complete:
            self.report = ranks.gather(report, self._rank, self._world_size, self._known_as, self._made_at)
            if self.report is not None and self.report["run"]["num_ranks"] < ranks.num_here(self._world_size):
                self._failures.append("the report of another rank did not come in time, and is left out")
        else:
            self.report = report if self._rank == 0 else None
        self._hand_out()

    def _hand_out(self) -> None:
        """Print the report and write it, where this rank has it."""
        if self.report is not None:
            if self._json is not None:
                write_json(self._json, self.report)
            if not self._quiet:
                self._say(lambda console: terminal.say(self.report or {}, console))

    def _tick_last(self) -> None:
        self._system.look()
        if self._nvml is not None:
            self._nvml.drain()

    def _load_alone(self) -> Rate | None:
        """Iterate the loader once more, without steps; None of an iterator, which has no second time."""
        if iter(self._loader) is self._loader:
            return None
        state = self._loader.state_dict() if self._is_ours else None
        meter, end = WaitMeter(self._device, num_warmup=self._read_ahead), time.monotonic() + MAX_LOAD_SECONDS
        workers = self._feeding.num_workers or 1
        num_load = whole_rounds(NUM_LOAD, workers)

        def is_enough() -> bool:
            is_late = time.monotonic() >= end and not meter.num_steps % workers  # see whole_rounds
            return meter.num_steps >= num_load or is_late or meter.failure is not None

        try:
            several = True
            # The first batch of a pass never counts: of passes without a second one (a spent iterator), none ever does.
            while several and not is_enough():
                several = False
                for number, _ in enumerate(meter.watch(self._loader)):
                    several = number > 0
                    if is_enough():
                        break
        finally:
            if state is not None:
                self._loader.load_state_dict(state)
        return rate(meter.result(), period=self._feeding.num_workers or 1)

    def _sample(self) -> Sample | None:
        dataset = getattr(self._loader, "dataset", None)
        if dataset is None or self._is_ours:
            return None
        return time_samples(
            dataset, collate=getattr(self._loader, "collate_fn", None),
            batch_size=self._batch_shape[0] if self._batch_shape else 1,
        )  # fmt: skip

    def _gain(self, timing: Timing, replay: Rate | None) -> ResidentGain | None:
        real, share, size = timing.images_per_second, timing.wait_share, image_side(self._batch_shape)
        dataset = getattr(self._loader, "dataset", None)
        if not real or share is None or share >= 1 or size is None or self._is_ours:
            return None
        from fastload.gain import estimate

        x_replay, basis = (real / (1 - share), UPPER_BOUND) if replay is None else (replay.value, MEASURED)
        assert self._batch_shape is not None
        return estimate(
            dataset, size=size, batch_size=self._batch_shape[0], device=self._device, x_real=real, x_replay=x_replay,
            basis=basis,
        )  # fmt: skip

    def _origin(self) -> tuple[str | None, str | None]:
        return self._attempt(lambda: origin(getattr(self._loader, "dataset", None))) or (None, None)

    def _attempt(self, call: Callable[[], Any]) -> Any:
        result: list[Any] = []
        self._safely(lambda: result.append(call()))
        return result[0] if result else None

    def _safely(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception as failure:  # the user's loop goes on whatever happens in here
            self._failures.append(f"{type(failure).__name__}: {printable(failure)}")

    def _say(self, say: Callable[[terminal.Terminal], object]) -> None:
        # A pipe's reader or a terminal may be gone; at the very end of a program standard error itself.
        with suppress(OSError, ValueError):
            say(terminal.Terminal(stderr=True, soft_wrap=True))


def profile(loader: Iterable[Batch], **options: Any) -> Iterator[Batch]:
    """Yield what `loader` yields, and say at the end how long the device waited for data, and why.

    `for images, labels in fastload.profile(loader):` is all it takes; leaving the loop early is fine.

    Args:
        loader: a DataLoader, a fastload Loader, any iterable of batches.
        options: as of Profile.

    Raises:
        ConfigError: no such device.
    """
    return _watched(Profile(loader, **options))


def _watched(watch: Profile[Batch]) -> Iterator[Batch]:
    complete = False
    try:
        yield from watch
        complete = True
    finally:
        watch.close(complete=complete)


__all__ = ["Profile", "profile"]
