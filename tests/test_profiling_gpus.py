"""What the profiler does on a GPU, on machines without one: the tracer, the driver and torch.cuda are stood in for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastload.profiling import busy
from fastload.profiling.busy import BusyWindow

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
            SimpleNamespace(name=name, device_type=f"DeviceType.{where}", time_range=SimpleNamespace(start=low, end=high))
            for name, (low, high, where) in times.items()
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
        assert (found.busy_share, found.num_steps) == (pytest.approx(0.75), 2)
