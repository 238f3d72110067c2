"""One way of feeding a training step, run in blocks, in turn with the other ways."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from fastload.profiling.busy import NUM_STEPS as WINDOW_STEPS
from fastload.profiling.busy import Busy, BusyWindow
from fastload.profiling.intervals import whole_rounds
from fastload.profiling.loops import Feeding, Measured, rate
from fastload.profiling.nvml import NvmlSamples
from fastload.profiling.report import Rate, Sample, System
from fastload.profiling.system import SystemMeter
from fastload.profiling.timing import Timing, WaitMeter, joined

NUM_WARMUP = 3
NUM_LOAD = 12  # batches in one block of X_load, at least

Step = Callable[[torch.Tensor, torch.Tensor], None]


class Feed:
    """One way of feeding the step; its iterator stays where it is between blocks.

    What a DataLoader's workers read ahead while others ran is taken before a block begins, without steps: where the
    loader is only a little slower than the step, such a queue lasts for many of them. Workers that begin at the same
    time are done at the same time, too: of N batches one is waited for, so whole rounds of them are counted, two at
    least.

    Args:
        name: for the report.
        loader: or a list of batches, which are given again and again.
        device: where the steps run.
        memory_bytes: memory that it keeps samples in.
    """

    def __init__(self, name: str, loader: Any, device: torch.device, *, memory_bytes: int | None = None) -> None:
        self.name, self.loader, self.memory_bytes = name, loader, memory_bytes
        self.feeding = Feeding.of(loader)
        self._device = device
        self._iterator = iter(loader)
        self.num_warmup = NUM_WARMUP
        self._read_ahead = (self.feeding.num_workers or 0) * (getattr(loader, "prefetch_factor", None) or 2)
        self._real: list[Timing] = []
        self._load: list[Timing] = []
        self._systems: list[System] = []
        self._starved: list[float] = []
        self._read: list[float] = []
        self._busy: Busy | None = None
        self._nvml = NvmlSamples(device) if device.type == "cuda" else None

    def run_block(self, step: Step, num_steps: int) -> None:
        """Run the training step until at least `num_steps` of them count."""
        self._take_what_is_ready()
        # Loaders that start no processes of their own have none of the others' either.
        system = SystemMeter(num_workers=self.feeding.num_workers or 0)
        if self._nvml is not None:
            self._nvml.skip()
        meter = self._run(step, self._whole_rounds(num_steps), system)
        system.look()
        if self._nvml is not None:
            self._nvml.drain()
        self._real.append(meter.result())
        self._systems.append(system.result())
        if system.starved_share is not None:
            self._starved.append(system.starved_share)
        if system.read_chars_per_second is not None:
            self._read.append(system.read_chars_per_second)

    def load_block(self) -> None:
        """Take batches and do nothing with them."""
        self._take_what_is_ready()
        meter = WaitMeter(self._device, num_warmup=self.num_warmup)
        num_batches = self.num_warmup + self._whole_rounds(NUM_LOAD)
        for _ in meter.watch(islice(self.forever(), num_batches), loader=self.loader):
            pass
        self._load.append(meter.result())

    def window(self, step: Step) -> None:
        """Run some more steps on a GPU, traced; they count for nothing else."""
        num_steps = self._whole_rounds(WINDOW_STEPS)
        traced = BusyWindow(self._device)
        traced.prepare()  # workers read ahead meanwhile
        self._take_what_is_ready()
        for images, labels in islice(self.forever(), self.num_warmup):
            step(images, labels)
        traced.start()
        for images, labels in islice(self.forever(), num_steps):
            step(images, labels)
        self._busy = traced.stop(num_steps)

    def forever(self) -> Iterator[Any]:
        """Yield batches from where the iterator stands, epoch after epoch."""
        while True:
            for batch in self._iterator:  # noqa: UP028 -- `yield from` would close it where this is left
                yield batch
            self._iterator = iter(self.loader)

    @property
    def timing(self) -> Timing:
        """All blocks of steps as one; the edges of epochs apart, which here are those of a part of the images."""
        return replace(joined(self._real), num_epochs=0, later_seconds=0.0, later_waits=0.0)

    @property
    def x_real(self) -> Rate | None:
        """Images/s of the run: the median over blocks, with the interval of all steps."""
        return self._rate(self._real)

    @property
    def x_load(self) -> Rate | None:
        """Images/s of the loader alone, likewise."""
        return self._rate(self._load)

    def measured(self, x_replay: Rate | None, sample: Sample | None) -> Measured:
        """Return all that was measured beside the steps' own times."""
        return Measured(
            x_real=self.x_real, x_load=self.x_load, x_replay=x_replay, busy=self._busy, sample=sample,
            nvml=None if self._nvml is None else self._nvml.result(),
            nvml_series=() if self._nvml is None else self._nvml.series,
            gpu_memory_bytes=None if self._nvml is None else torch.cuda.max_memory_allocated(self._device),
            system=mean_system(self._systems), starved_share=statistics.fmean(self._starved) if self._starved else None,
            read_chars_per_second=statistics.fmean(self._read) if self._read else None,
            memory_bytes=self.memory_bytes,
        )  # fmt: skip

    def _whole_rounds(self, num_steps: int) -> int:
        return whole_rounds(num_steps, self.feeding.num_workers)

    def _take_what_is_ready(self) -> None:
        for _ in islice(self.forever(), self._read_ahead):
            pass

    def _run(self, step: Step, num_steps: int, system: SystemMeter) -> WaitMeter:
        meter = WaitMeter(self._device, num_warmup=self.num_warmup)
        while meter.num_steps < num_steps:
            for images, labels in meter.watch(self._iterator, loader=self.loader):
                if meter.num_steps >= num_steps:
                    break
                step(images, labels)
                system.tick()
            else:
                self._iterator = iter(self.loader)
        return meter

    def _rate(self, blocks: Sequence[Timing]) -> Rate | None:
        whole = rate(joined(blocks), period=self.feeding.num_workers or 1)
        speeds = [t.images_per_second for t in blocks if t.images_per_second is not None]
        return None if whole is None else Rate(value=statistics.median(speeds), interval=whole.interval)


def mean_system(parts: Sequence[System]) -> System:
    """Return the mean of what several blocks measured, field by field, and the most of their memory."""

    def mean(name: str) -> float | None:
        known = [value for part in parts if (value := getattr(part, name)) is not None]
        return statistics.fmean(known) if known else None

    def means(name: str) -> tuple[float, ...] | None:
        known = [value for part in parts if (value := getattr(part, name))]
        return tuple(map(statistics.fmean, zip(*known, strict=False))) if known else None

    memory = [part.resident_bytes for part in parts if part.resident_bytes is not None]
    return System(
        cpu_per_core=means("cpu_per_core"), process_cpu=mean("process_cpu"), worker_cpu=means("worker_cpu"),
        disk_read_bytes_per_second=mean("disk_read_bytes_per_second"),
        major_faults_per_second=mean("major_faults_per_second"), resident_bytes=max(memory, default=None),
    )  # fmt: skip
