"""Times every loop over batches in the process of a watched script, and writes what it saw to one file.

Knows the standard library and torch only (see __init__). No mistake in here reaches the script: the first one ends
the watching, and is told in the file. Nothing is ever synchronized; on a GPU the times come from events on the
compute stream, which are read long after they have passed.

A step lasts from one `next()` to the following one of the same iterator. Its wait is the time in all loaders' `next()`
within it (two loaders in turns feed one step); on a GPU, the time that the compute stream stood still meanwhile.
A step in which another loop began (a validation inside an epoch), or took a second batch (one whose iterator is kept
for all epochs begins once only), and the first step of each pass, do not count.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
import weakref
from typing import Any

import torch

# Relative: in a watched script this package goes by another name, and fastload may not be installed.
from .describing import call_site, describe, shape_of
from .steps import CudaClock, HostClock, Loop, Pass, Step, gpu_in_use

FOLDER_VARIABLE = "FASTLOAD_WATCH_FOLDER"
# Writing takes a part of 1/WRITE_COST of the time at most, and not twice in a second.
WRITE_COST, WRITE_SECONDS = 500, 1.0
KEY = ("dataset", "num_samples", "batch_size", "num_workers")  # what else tells loops on one line apart


class Watcher:
    """What this process has seen; one, made at the first import of a watched module."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._local = threading.local()
        self._reset()
        os.register_at_fork(after_in_child=self._reset)
        atexit.register(self.write)

    def _reset(self) -> None:
        self.error: str | None = None
        self.loops: dict[tuple[Any, ...], list[Loop]] = {}
        # A pass is kept by its iterator: one that is left early goes with it.
        self._open: weakref.WeakSet[Pass] = weakref.WeakSet()
        self._clock: Any = None
        self._rank: tuple[int, int] | None = None
        self._written, self._writing_took = 0.0, 0.0
        self._begin_wall = time.time()
        self._local.depth = 0

    # What the patched methods call, in this order. Each returns at once, and is the only one that touches its pass.

    def pass_begins(self, loader: Any, asked: float) -> Pass:
        """Return the pass of an iterator that has just been made."""
        starting = time.perf_counter() - asked
        if torch.utils.data.get_worker_info() is not None:
            return Pass(None, starting)  # a worker that reads through a loader of its own
        site, own = call_site()
        made = Pass(None if own else self._loop(loader, site), starting)
        if made.loop is not None:
            for left in [other for other in self._open if other.loop is made.loop]:
                self._open.discard(left)
            made.loop.about["passes"] += 1
        return made

    def step_begins(self, current: Pass) -> Step | None:
        """Close the step before, if there is one, and open the next; None within another loader's `next()`."""
        depth = self._local.depth = getattr(self._local, "depth", 0) + 1
        if depth > 1 or current.loop is None:
            return None
        now = time.perf_counter()
        if current.step is not None:
            self._close(current, current.step)
        step = current.step = Step(self._clock_now(), now)
        if current.starting is not None:
            for other in self._open:
                if other.step is not None and other is not current:
                    other.step.counts = False
            self._open.add(current)
        return step

    def data_arrived(self, step: Step | None) -> None:
        """Mark where the loader's own work on the device begins; the first call counts."""
        if step is not None and step.arrived is None:
            step.arrived = step.clock.mark()

    def next_returned(self, current: Pass, step: Step | None, batch: Any, *, over: bool) -> None:
        """Book the wait of a batch that came, or the end of the pass."""
        self._local.depth -= 1
        loop = current.loop
        if step is None or loop is None:
            return
        if isinstance(step.clock, HostClock):
            step.arrived = None  # the time of the loader's own work is time of this process, too
        elif step.arrived is not None:
            step.ready = step.clock.mark()
        self.data_arrived(step)
        now = time.perf_counter()
        step.host_wait = now - step.host_begin
        loop.totals["next_seconds"] += step.host_wait
        loop.totals["next_cpu_seconds"] += time.thread_time() - step.cpu_begin
        later = loop.about["passes"] > 1
        if over:
            loop.starts["later_wait_seconds"] += step.host_wait if later else 0.0
            loop.starts["later_seconds"] += step.host_wait if later else 0.0
            current.step = None
            self._open.discard(current)
            self._write_now_and_then()
            return
        shape = shape_of(batch)
        step.rows = shape[0] if shape else 0
        if loop.about["batch_shape"] is None:
            loop.about["batch_shape"] = shape
        if current.starting is not None or loop.warmup_left > 0:
            step.counts = False
        loop.warmup_left -= 1
        if current.starting is not None:
            loop.starts["count"] += 1
            loop.starts["later_wait_seconds"] += current.starting + step.host_wait if later else 0.0
        for other in self._open:
            # A step that does not count needs none: that of an iterator kept after one batch gathers them for ever.
            outer = other.step if other is not current else None
            if outer is None or not outer.counts:
                continue
            if id(current) in outer.askers:  # loaders in turns give one batch each
                outer.counts = False
            elif outer.clock is step.clock:
                outer.askers.append(id(current))
                outer.others.append((step.begin, step.arrived))
                step.shared = True
                outer.host_wait += step.host_wait

    def stop(self, error: Exception) -> None:
        """Watch no more: something went wrong in here."""
        self.error = f"{type(error).__name__}: {error}"

    def write(self) -> None:
        """Write the file whole or not at all."""
        if not any(self.loops.values()) and self.error is None:
            return
        try:
            begin = time.perf_counter()
            file = os.path.join(self._folder, f"loops-{os.getpid()}.json")  # noqa: PTH118
            with open(f"{file}.tmp", "w") as opened:  # noqa: PTH123
                json.dump(self._as_dict(), opened)
            os.replace(f"{file}.tmp", file)  # noqa: PTH105
            self._written = time.perf_counter()
            self._writing_took = self._written - begin
        except Exception as e:
            self.stop(e)

    def _close(self, current: Pass, step: Step) -> None:
        loop = current.loop
        assert loop is not None
        step.end = step.clock.mark()
        if current.starting is not None:
            # Without what lies between: an iterator that its loader's constructor makes is asked much later.
            seconds = current.starting + time.perf_counter() - step.host_begin
            loop.starts["seconds"] += seconds
            loop.starts["later_seconds"] += seconds if loop.about["passes"] > 1 else 0.0
            current.starting = None
        loop.pending.append(step)
        loop.collect()
        self._write_now_and_then()

    def _write_now_and_then(self) -> None:
        if time.perf_counter() - self._written > max(WRITE_SECONDS, WRITE_COST * self._writing_took):
            self.write()

    def _clock_now(self) -> Any:
        """Return the clock of the device that the script uses by now."""
        if not isinstance(self._clock, CudaClock):
            gpu = gpu_in_use()
            self._clock = CudaClock(gpu) if gpu is not None else self._clock or HostClock()
        return self._clock

    def _loop(self, loader: Any, site: str) -> Loop:
        dataset = getattr(loader, "dataset", loader)
        about = describe(loader, dataset, site)
        same = self.loops.setdefault((site, *(about[name] for name in KEY)), [])
        # The same dataset; else one like it that is gone: then this one was made in its place.
        found = next((loop for loop in same if loop.dataset is dataset), None)
        found = found or next((loop for loop in same if loop.dataset is None), None)
        if found is None:
            found = Loop(about, dataset)
            same.append(found)
        found.take(dataset)
        return found

    def _find_rank(self) -> tuple[int, int]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._rank = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if self._rank is None:
            numbers = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
            self._rank = (int(numbers[0]), int(numbers[1])) if all(n.isdecimal() for n in numbers) else (0, 1)
        return self._rank

    def _as_dict(self) -> dict[str, Any]:
        loops = [loop for same in self.loops.values() for loop in same]
        for loop in loops:
            loop.collect()
        rank, world_size = self._find_rank()
        gpu = self._clock.device if isinstance(self._clock, CudaClock) else None
        return {
            "pid": os.getpid(), "rank": rank, "world_size": world_size, "error": self.error,
            "device": "cpu" if self._clock is None else self._clock.name,
            "gpu_memory_bytes": None if gpu is None else torch.cuda.max_memory_allocated(gpu),
            # Its number says nothing outside: a launcher may have set CUDA_VISIBLE_DEVICES for this process alone.
            "gpu_uuid": None if gpu is None else _uuid(gpu),
            "python": sys.version.split()[0], "torch": torch.__version__, "began": self._begin_wall,
            "loops": [loop.as_dict() for loop in loops],
        }  # fmt: skip


def _uuid(gpu: torch.device) -> str | None:
    found = getattr(torch.cuda.get_device_properties(gpu), "uuid", None)  # older versions of torch do not tell
    return None if found is None else str(found)


_watcher: Watcher | None = None


def start() -> Watcher:
    """Return the watcher of this process."""
    global _watcher
    if _watcher is None:
        _watcher = Watcher(os.environ[FOLDER_VARIABLE])
    return _watcher


def watch_dataloader(module: Any) -> None:
    """Time `next()` of every iterator of torch's DataLoader: its types and what it gives stay what they are."""
    watcher = start()
    loader, iterator = module.DataLoader, module._BaseDataLoaderIter
    original_iter, original_next = loader.__iter__, iterator.__next__

    def make_iterator(self: Any) -> Any:
        asked = time.perf_counter()
        made = original_iter(self)
        if watcher.error is None:
            try:
                made._fastload_pass = watcher.pass_begins(self, asked)
            except Exception as e:
                watcher.stop(e)
        return made

    def next_batch(self: Any) -> Any:
        current = None if watcher.error else getattr(self, "_fastload_pass", None)
        if current is None:
            return original_next(self)
        step = _safely(watcher, watcher.step_begins, current)
        try:
            batch = original_next(self)
        except BaseException:
            _safely(watcher, watcher.next_returned, current, step, None, over=True)
            raise
        _safely(watcher, watcher.next_returned, current, step, batch, over=False)
        return batch

    loader.__iter__, iterator.__next__ = make_iterator, next_batch


def watch_fastload(module: Any) -> None:
    """Time fastload's own Loader; its copies and augmentation on a GPU are not booked as waiting."""
    watcher = start()
    original = module.Loader.__iter__

    def batches_of(self: Any) -> Any:
        asked, before = time.perf_counter(), self.on_device_work
        batches = original(self)
        current = _safely(watcher, watcher.pass_begins, self, asked)

        def arrived() -> None:
            if current is not None:
                _safely(watcher, watcher.data_arrived, current.step)
            if before is not None:
                before()

        self.on_device_work = arrived
        try:
            while True:
                step = None if current is None else _safely(watcher, watcher.step_begins, current)
                batch, over = None, True
                try:
                    batch = next(batches)
                    over = False
                except StopIteration:
                    return
                finally:
                    if current is not None:
                        _safely(watcher, watcher.next_returned, current, step, batch, over=over)
                yield batch
                del batch
        finally:
            if self.on_device_work is arrived:
                self.on_device_work = before
            batches.close()

    module.Loader.__iter__ = batches_of


def _safely(watcher: Watcher, call: Any, *values: Any, **named: Any) -> Any:
    if watcher.error is not None:
        return None
    try:
        return call(*values, **named)
    except Exception as e:
        watcher.stop(e)
        return None
