"""How busy the GPU is: torch.profiler over a short window of steps, apart from the run that is timed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._C._autograd import _profiler_enabled

from fastload.profiling.intervals import outside_seconds, union_seconds

NUM_STEPS = 15
_CALLS = "cu"  # how the names of CUDA's functions begin: cudaLaunchKernel, cuLaunchKernel
# What makes the host wait until the GPU has caught up. A copy to pageable memory waits too: `.item()` is one.
_SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True, kw_only=True)
class Busy:
    """What a window of steps showed.

    Attributes:
        busy_share: time with a kernel under way.
        copy_share: time in which the GPU received from the host and ran no kernel.
        syncs_per_step: calls that made the host wait for the GPU.
    """

    busy_share: float
    copy_share: float
    syncs_per_step: float


@dataclass(frozen=True)
class Span:
    """One thing that happened: on the GPU or in a call of the host; seconds from any zero."""

    name: str
    on_gpu: bool
    begin: float
    end: float


class BusyWindow:
    """Traces the steps between `start` and `stop`, with CUDA activity alone: host operators would slow the steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._profiler: Any = None

    def prepare(self) -> None:
        """Set up what this process's first trace needs, which takes a while; `start` does it where this did not."""
        if not _profiler_enabled():
            _set_up(self._device)

    def start(self) -> None:
        """Begin the window, with nothing under way on the GPU; not where somebody else traces already."""
        if _profiler_enabled():
            return  # there is one trace at a time: a second one would end the first
        _set_up(self._device)
        torch.cuda.synchronize(self._device)
        profiler = _tracer()
        profiler.__enter__()
        self._profiler = profiler  # only now: what did not start is not to be ended

    def stop(self, num_steps: int) -> Busy | None:
        """End the window, after `num_steps` steps; None where it was not begun or nothing was traced."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return None
        torch.cuda.synchronize(self._device)
        profiler.__exit__(None, None, None)
        return summarize(spans(profiler.events()), num_steps)


def _tracer() -> Any:
    # acc_events: without it torch warns that a second cycle would clear the first one's events. There is no second.
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True)


@cache
def _set_up(device: torch.device) -> None:
    """Trace a copy and a kernel for nothing: in a process's first trace, launches wait until buffers are set up."""
    with _tracer():
        torch.ones(1).to(device).add_(1)
        torch.cuda.synchronize(device)


def spans(events: Iterable[Any]) -> list[Span]:
    """Return the profiler's events (its times are in microseconds)."""
    return [
        Span(
            event.name, str(event.device_type).endswith("CUDA"), event.time_range.start / 1e6,
            event.time_range.end / 1e6,
        )
        for event in events
    ]  # fmt: skip


def summarize(traced: list[Span], num_steps: int) -> Busy | None:
    """Return the shares; None where nothing ran on the GPU.

    The window reaches from the host's first call to the GPU's last work: what the tracer itself did around them, which
    it notes too, is no time of the steps.
    """
    on_gpu = [span for span in traced if span.on_gpu]
    if not on_gpu or num_steps < 1:
        return None
    begins = [span.begin for span in traced if span.on_gpu or span.name.startswith(_CALLS)]
    wall = max(span.end for span in on_gpu) - min(begins)
    if wall <= 0:
        return None
    kernels = [(s.begin, s.end) for s in on_gpu if not s.name.startswith(("Memcpy", "Memset"))]
    copies = [(s.begin, s.end) for s in on_gpu if s.name.startswith("Memcpy HtoD")]
    syncs = sum(span.name in _SYNCS for span in traced)
    return Busy(
        busy_share=union_seconds(kernels) / wall, copy_share=outside_seconds(copies, kernels) / wall,
        # Two of them are at the window's end: its own, and the profiler's.
        syncs_per_step=max(0, syncs - 2) / num_steps,
    )  # fmt: skip
