"""From what was measured of one loop to its part of the report: rates with intervals, cause and verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastload.profiling.busy import Busy
from fastload.profiling.causes import Evidence, find_cause
from fastload.profiling.intervals import quantile, ratio_interval, thinned
from fastload.profiling.report import (
    MAX_SERIES,
    Gpu,
    Loop,
    NvmlUse,
    Rate,
    Sample,
    Series,
    Steps,
    StepSeconds,
    System,
    Throughput,
    Wait,
)
from fastload.profiling.timing import Timing
from fastload.profiling.verdict import efficiency, headspace, judge

IN_MEMORY = ("gpu", "gpu_sharded", "host", "mapped")  # placements whose samples lie in memory, decoded
CHANNELS = (1, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """What is known of a loader before it runs.

    Attributes:
        num_workers, persistent_workers: of a DataLoader; else None.
        pinned: whether it gives batches in pinned memory; of a DataLoader.
        in_memory: whether its samples lie in memory, decoded.
    """

    num_workers: int | None = None
    persistent_workers: bool | None = None
    pinned: bool | None = None
    in_memory: bool = False

    @classmethod
    def of(cls, loader: Any) -> Feeding:
        """Return what a loader says of itself; nothing of a plain iterable."""
        placement = getattr(getattr(loader, "placement", None), "kind", None)
        if placement is not None:
            return cls(in_memory=placement in IN_MEMORY)
        workers = getattr(loader, "num_workers", None)
        if not isinstance(workers, int):
            return cls()
        persistent, pinned = (getattr(loader, name, None) for name in ("persistent_workers", "pin_memory"))
        return cls(
            num_workers=workers, persistent_workers=persistent if isinstance(persistent, bool) else None,
            pinned=pinned if isinstance(pinned, bool) else None,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured beside the loop's own times; None where it was not.

    Attributes:
        x_real: images/s of the run where that is not simply that of all steps, e.g. the median of blocks.
        x_load, x_replay: of the loader alone, and of the step alone.
        busy: of a window of steps on the GPU.
        nvml, nvml_series: what the driver sampled.
        gpu_memory_bytes: the most that torch had allocated.
        system: of the host.
        starved_share, read_chars_per_second: see SystemMeter.
        sample: seconds of one sample.
        memory_bytes: memory that this way of feeding keeps samples in.
    """

    x_real: Rate | None = None
    x_load: Rate | None = None
    x_replay: Rate | None = None
    busy: Busy | None = None
    nvml: NvmlUse | None = None
    nvml_series: tuple[tuple[float, float], ...] = ()
    gpu_memory_bytes: int | None = None
    system: System = field(default_factory=System)
    starved_share: float | None = None
    read_chars_per_second: float | None = None
    sample: Sample | None = None
    memory_bytes: int | None = None


def make_loop(
    name: str, timing: Timing, device_type: str, feeding: Feeding, measured: Measured, *, rank: int = 0, warmup: int = 0
) -> Loop:
    """Return one loop's part of the report.

    Args:
        name: what fed it.
        timing: of the loop.
        device_type: `cuda`, `mps` or `cpu`.
        feeding, measured: what else is known.
        rank: of the process.
        warmup: steps at its beginning that did not count.
    """
    period = feeding.num_workers or 1
    interval = ratio_interval(timing.step_waits, timing.step_seconds, period=period)
    real = measured.x_real or rate(timing, period=period)
    values = [None if r is None else r.value for r in (real, measured.x_load, measured.x_replay)]
    own, busy = timing.own_seconds, measured.busy
    own_each = own / timing.num_images if own and timing.num_images else 0.0
    efficiency_share = efficiency(values[0], values[1], values[2], own_each)
    own_share = None if own is None or timing.wall_seconds <= 0 else own / timing.wall_seconds
    read, speed = measured.read_chars_per_second, timing.images_per_second
    evidence = Evidence(
        wait_share=timing.wait_share, num_steps=timing.num_steps, start_share=timing.start_share,
        efficiency=efficiency_share, own_share=own_share, busy_share=None if busy is None else busy.busy_share,
        copy_share=None if busy is None else busy.copy_share,
        syncs_per_step=None if busy is None else busy.syncs_per_step,
        worker_cpu=measured.system.worker_cpu,
        next_cpu=timing.next_cpu_seconds / timing.next_seconds if timing.next_seconds > 0 else None,
        starved_share=measured.starved_share, cpu_per_core=measured.system.cpu_per_core,
        disk_read_bytes_per_second=measured.system.disk_read_bytes_per_second,
        major_faults_per_second=measured.system.major_faults_per_second, sample=measured.sample,
        read_bytes_per_image=None if read is None or not speed else read / speed,
        **{known.name: getattr(feeding, known.name) for known in dataclasses.fields(feeding)},
    )  # fmt: skip
    return Loop(
        name=name, rank=rank,
        steps=Steps(count=timing.num_steps, warmup=warmup, epoch_starts=timing.num_epochs),
        step_seconds=_step_seconds(timing, period),
        wait=Wait(
            share=timing.wait_share, interval=interval, seconds=timing.wait_seconds if timing.num_steps else None,
            own_seconds=timing.own_seconds, start_seconds=timing.later_waits if timing.num_epochs > 1 else None,
        ),
        throughput=Throughput(x_real=real, x_load=measured.x_load, x_replay=measured.x_replay),
        headspace=headspace(values[0], values[2]), efficiency=efficiency_share,
        gpu=_gpu(device_type, measured), system=measured.system, sample=measured.sample,
        memory_bytes=measured.memory_bytes, cause=find_cause(evidence),
        verdict=judge(
            timing.wait_share, timing.num_steps, device_type, efficiency_share, interval=interval,
            start_share=timing.start_share, busy_share=evidence.busy_share, copy_share=evidence.copy_share,
            own_share=own_share,
            pinned=feeding.pinned,
            zeros_share=measured.nvml.zeros_share if measured.nvml is not None and device_type == "cuda" else None,
        ),
        series=_series(timing, measured.nvml_series if device_type == "cuda" else ()),
    )  # fmt: skip


def image_side(shape: Sequence[int] | None) -> int | None:
    """Return the side, in pixels, of a batch of images [B, C, S, T] or [B, S, T, C]; None of anything else."""
    if shape is None or len(shape) != 4:
        return None
    if shape[1] in CHANNELS:
        return shape[3]
    return shape[2] if shape[3] in CHANNELS else None


def rate(timing: Timing, *, period: int = 1) -> Rate | None:
    """Return images/s of the steps that count, with their interval; None where no images were counted."""
    if not timing.num_images or timing.images_per_second is None:
        return None
    interval = ratio_interval(timing.step_images, timing.step_seconds, period=period)
    return Rate(value=timing.images_per_second, interval=interval)


def worst(loops: Sequence[Loop]) -> Loop:
    """Return the loop of the rank that waited most: the others wait for it."""
    return max(loops, key=lambda loop: -1.0 if loop.wait.share is None else loop.wait.share)


def _step_seconds(timing: Timing, period: int) -> StepSeconds:
    count = timing.num_steps
    return StepSeconds(
        p50=quantile(timing.step_seconds, 0.5), p95=quantile(timing.step_seconds, 0.95),
        mean=timing.wall_seconds / count if count else None,
        interval=ratio_interval(timing.step_seconds, [1.0] * count, period=period),
    )  # fmt: skip


def _gpu(device_type: str, measured: Measured) -> Gpu:
    if device_type != "cuda":
        return Gpu()
    busy = None if measured.busy is None else measured.busy.busy_share
    return Gpu(busy_share=busy, nvml=measured.nvml, memory_bytes=measured.gpu_memory_bytes)


def _series(timing: Timing, nvml: Sequence[tuple[float, float]]) -> Series:
    kept = thinned(timing.num_steps, MAX_SERIES)
    return Series(
        time=tuple(timing.step_ends[i] for i in kept), step_seconds=tuple(timing.step_seconds[i] for i in kept),
        wait_seconds=tuple(timing.step_waits[i] for i in kept),
        nvml=tuple(nvml[i] for i in thinned(len(nvml), MAX_SERIES)),
    )  # fmt: skip
