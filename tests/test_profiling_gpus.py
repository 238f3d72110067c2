"""What the profiler does on a GPU, on machines without one: the tracer, the driver and torch.cuda are stood in for."""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastload
from bench.script import Outside
from fastload import profiler
from fastload.profiling import busy, nvml, timing
from fastload.profiling.busy import Busy, BusyWindow
from fastload.profiling.hook import watcher
from fastload.profiling.hook.steps import CudaClock
from tests.gpu_help import waits_noted

CPU = torch.device("cpu")


class Tracer:
    """What torch.profiler.profile does, as calls in a list.

    Args:
        calls: where they are noted.
        broken: whether it fails to start.
    """

    def __init__(self, calls: list[str], *, broken: bool = False) -> None:
        self._calls, self._broken = calls, broken

    def __call__(self, **options: Any) -> Tracer:
        assert options["acc_events"], "torch warns otherwise"
        return self

    def __enter__(self) -> None:
        if self._broken:
            raise RuntimeError("no tracing here")
        self._calls.append("begins")

    def __exit__(self, *_: object) -> None:
        self._calls.append("ends")

    def events(self) -> list[Any]:
        times = {"cudaLaunchKernel": (0, 1, "CPU"), "kernel": (1, 4, "CUDA")}
        return [
            SimpleNamespace(name=name, device_type=where, time_range=SimpleNamespace(start=begin, end=end))
            for name, (begin, end, where) in times.items()
        ]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls to a tracer that works, and to torch.cuda.synchronize."""
    made: list[str] = []
    monkeypatch.setattr(torch.profiler, "profile", Tracer(made))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: made.append("waits"))
    return made


def test_a_window_that_could_not_start_ends_nothing(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.profiler, "profile", Tracer(calls, broken=True))
    monkeypatch.setattr(busy, "_set_up", lambda _: None)
    window = BusyWindow(CPU)
    with pytest.raises(RuntimeError, match="no tracing"):
        window.start()
    assert window.stop(3) is None
    assert "ends" not in calls


def test_a_trace_of_the_users_own_is_let_alone(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_profiler_enabled", lambda: True)
    window = BusyWindow(CPU)
    window.start()
    assert window.stop(3) is None
    assert calls == []


def test_what_tells_of_another_trace_is_torchs_own() -> None:
    assert not busy._profiler_enabled()
    with torch.autograd.profiler.profile():
        assert busy._profiler_enabled()


def test_the_first_trace_of_a_process_is_thrown_away(calls: list[str]) -> None:
    busy._set_up.cache_clear()
    for first in (["begins", "waits", "ends"], []):
        calls.clear()
        window = BusyWindow(CPU)
        window.start()
        found = window.stop(2)
        assert calls == [*first, "waits", "begins", "waits", "ends"]
        assert found is not None
        assert found.busy_share == pytest.approx(0.75)


@pytest.mark.parametrize(("num_steps", "leave", "found"), [(9, False, 0.5), (9, True, 0.5), (3, True, None)])
def test_a_window_ends_with_its_loop_at_the_latest(
    monkeypatch: pytest.MonkeyPatch, num_steps: int, leave: bool, found: float | None
) -> None:
    ended: list[int] = []

    class Window:
        def __init__(self, _: torch.device) -> None:
            pass

        def start(self) -> None:
            pass

        def stop(self, steps: int) -> Busy:
            ended.append(steps)
            return Busy(busy_share=0.5, copy_share=0.0, syncs_per_step=0.0)

    monkeypatch.setattr(profiler, "BusyWindow", Window)
    # Four steps until the first one counts, three times twenty, two blocks between, and the window.
    num_batches = 4 + 60 + 2 * 13 + num_steps
    batches = [torch.zeros(2, 3)] * (num_batches + 20 * leave)
    loader = fastload.Profile(batches, device="cpu", replay=True, quiet=True)
    loader._device = torch.device("cuda", 0)
    for number, _ in enumerate(loader, 1):
        if leave and number == num_batches:
            break
    assert ended == [num_steps - leave], "a step that is left is none"
    loader.close()
    assert ended == [num_steps - leave], "once"
    assert loader.report is not None
    assert loader.report["loops"][0]["gpu"]["busy_share"] == found


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of this process on each of three GPUs, of which the first one is current."""
    held = [0, 0, 0]
    stands_in: dict[str, Any] = {
        "is_initialized": lambda: True, "is_available": lambda: True, "device_count": lambda: 3,
        "current_device": lambda: 0, "memory_allocated": lambda number: held[number],
        "max_memory_allocated": lambda gpu: held[gpu.index],
        "get_device_properties": lambda gpu: SimpleNamespace(uuid=f"uuid-{gpu.index}"),
    }  # fmt: skip
    for name, stand_in in stands_in.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(atexit, "register", lambda call: call)
    monkeypatch.setattr(os, "register_at_fork", lambda **_: None)
    return held


def test_a_watched_script_is_timed_on_the_gpu_that_has_its_tensors(held: list[int], tmp_path: Path) -> None:
    watching = watcher.Watcher(str(tmp_path))
    clock = watching._clock_now()
    assert clock.name == "cpu", "pinned memory sets CUDA up, too, and nothing may ever run there"
    assert watching._clock_now() is clock
    held[1:] = 5, 7
    assert watching._clock_now().name == "cuda:2"
    held[0] = 100
    assert watching._clock_now().name == "cuda:2", "a clock is kept"
    process = watching._as_dict()
    assert (process["device"], process["gpu_memory_bytes"]) == ("cuda:2", 7)
    assert process["gpu_uuid"] == "uuid-2"


def test_a_profile_takes_the_gpu_that_has_the_tensors(held: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader(list[Any]):
        device = torch.device("cuda", 2)

    monkeypatch.setitem(sys.modules, "fastload.loader", SimpleNamespace(Loader=Loader))
    assert fastload.Profile([], quiet=True)._device == torch.device("cuda", 0)
    held[1] = 5
    assert fastload.Profile([], quiet=True)._device == torch.device("cuda", 1)
    assert fastload.Profile(Loader(), quiet=True)._device == torch.device("cuda", 2)
    assert fastload.Profile([], device="cpu", quiet=True)._device == CPU


def test_an_allocator_that_does_not_count_is_no_harm(held: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> int:
        raise RuntimeError("CUDAPluggableAllocator does not yet support getDeviceStats.")

    monkeypatch.setattr(torch.cuda, "memory_allocated", fails)
    assert fastload.Profile([], quiet=True)._device == torch.device("cuda", 0)


@pytest.mark.parametrize("num_gpus", [1, 3])
def test_the_driver_is_asked_about_the_gpu_that_the_process_itself_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, num_gpus: int
) -> None:
    asked: list[Any] = []

    class Samples:
        def __init__(self, gpu: Any) -> None:
            asked.append(gpu)

        def drain(self) -> None:
            pass

    monkeypatch.setattr(nvml, "NvmlSamples", Samples)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    outside = Outside(os.getpid(), tmp_path)
    outside.look()
    assert asked == [torch.device("cuda", 0)] * (num_gpus == 1), "with several, it is not known which"
    # Its first loop ran before anything was on a GPU: it is known later.
    for number, gpu in enumerate([None, None, "1-2", "1-2"], 1):
        process = {"pid": os.getpid(), "rank": 0, "began": 0.0, "error": None, "gpu_uuid": gpu, "loops": [{}]}
        file = tmp_path / f"loops-{os.getpid()}.json"
        file.write_text(json.dumps(process))
        os.utime(file, (number, number))
        outside._next = 0.0
        outside.look()
        assert outside._failure is None
        assert ("1-2" in asked) == (gpu is not None)
        assert len(outside._nvml) == (num_gpus == 1 or gpu is not None), "what samples goes on where none is known yet"
    assert asked.count("1-2") == 1


class Event:
    """CUDA's, as far as asking for one spoils a graph that is being captured."""

    def __init__(self, capturing: list[bool]) -> None:
        self._capturing = capturing

    def record(self, stream: object) -> None:
        assert not self._capturing[0]

    def query(self) -> bool:
        assert not self._capturing[0], "the graph is spoiled"
        return True

    def elapsed_time(self, other: Event) -> float:
        return 1.0


class LateEvent(Event):
    """An event that passes ten later ones after it; waiting for it is noted."""

    made = 0
    waits: tuple[str, ...] = ()

    def record(self, stream: object) -> None:
        LateEvent.made += 1
        self.number = LateEvent.made

    def query(self) -> bool:
        return LateEvent.made > self.number + 10

    def synchronize(self) -> None:
        LateEvent.waits += ("event",)


def test_nothing_is_waited_for_step_by_step(held: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held[1] = 5
    stream = SimpleNamespace(synchronize=lambda: noted.append("stream"))
    monkeypatch.setattr(LateEvent, "waits", ())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    with waits_noted() as noted:
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: LateEvent([False]))
        meter, watching = timing.WaitMeter(torch.device("cuda", 1)), watcher.Watcher(str(tmp_path))
        loader = torch.utils.data.DataLoader(torch.zeros(100, 3))  # type: ignore[arg-type]
        current = watching.pass_begins(loader, 1.0)
        for batch in meter.watch(loader):
            watching.next_returned(current, watching.step_begins(current), batch, over=False)
        assert meter.failure is None
        assert meter.share_so_far is not None
        assert (noted, LateEvent.waits) == ([], ())
        assert meter.result().num_steps > 80
        assert noted == ["device"], "once, at the end"
    (loop,) = (loop for same in watching.loops.values() for loop in same)
    assert loop.totals["steps"] > 80
    assert current.step is not None
    assert isinstance(current.step.clock, CudaClock)


def test_no_event_is_asked_for_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(capturing))
    hooked, clock = CudaClock(CPU), timing._CudaClock(CPU)
    mark = hooked.mark()
    for number in range(2):
        clock.step_begins()
        clock.data_arrived()
        clock.step_ends(0, number)
    capturing[0] = True
    assert not hooked.has_passed(mark)
    assert list(clock.finished()) == []
    capturing[0] = False
    assert hooked.has_passed(mark)
    assert len(list(clock.finished())) == 2
