"""What the NVIDIA driver itself sampled: share of time with any kernel, drained from its buffer.

The driver samples several times a second by itself and keeps some seconds of it; draining that costs nothing per step.
"Any kernel" is all it says: a GPU with one small kernel under way counts as used. Each sample is of a while up to its
time, a second at most: the first ones are also of what ran before.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from fastload.profiling.report import NvmlUse

NUM_BINS = 10
MIN_SAMPLES = 5  # fewer are no histogram
_SAMPLE_MICROSECONDS = 1_000_000  # what the longest sample is of


class NvmlSamples:
    """Samples of one GPU's utilization, in percent, with the driver's time in seconds.

    Args:
        gpu: a CUDA device, or its UUID: another process may number them otherwise.
        nvml: the module `pynvml`, or what stands in for it; imported where not given.

    Attributes:
        failure: why there are none; None while all is well.
    """

    def __init__(self, gpu: torch.device | str, *, nvml: Any = None) -> None:
        self.failure: str | None = None
        self._samples: list[tuple[float, float]] = []
        self._last = self._skipped = 0  # times of the last one seen, and of the last one before what is looked at
        self._handle: Any = None
        try:
            self._nvml = nvml = importlib.import_module("pynvml") if nvml is None else nvml
            nvml.nvmlInit()
            self._handle = _handle(nvml, gpu)
            self.skip()  # what was before this loop is not its own
        except Exception as failure:  # a driver without NVML, a container without its library: never the user's problem
            self._handle, self.failure = None, f"{type(failure).__name__}: {failure}"

    def drain(self) -> None:
        """Take what the driver has gathered since; to be called every few seconds."""
        if self._handle is None:
            return
        try:
            self._drain()
        except Exception as failure:
            self._handle, self.failure = None, f"{type(failure).__name__}: {failure}"

    def skip(self) -> None:
        """Leave out what the driver has gathered since, and what it is gathering: something else ran."""
        kept = len(self._samples)
        self.drain()
        del self._samples[kept:]
        self._skipped = self._last

    def close(self) -> None:
        """Let go of the driver."""
        if self._handle is not None:
            self._handle = None
            self._nvml.nvmlShutdown()

    @property
    def series(self) -> tuple[tuple[float, float], ...]:
        """(seconds since the first, percent) of each sample."""
        first = self._samples[0][0] if self._samples else 0.0
        return tuple((time - first, percent) for time, percent in self._samples)

    def result(self) -> NvmlUse | None:
        """Return the samples as a histogram; None where there are too few."""
        if len(self._samples) < MIN_SAMPLES:
            return None
        return histogram([percent for _, percent in self._samples])

    def _drain(self) -> None:
        nvml = self._nvml
        try:
            _, samples = nvml.nvmlDeviceGetSamples(self._handle, nvml.NVML_GPU_UTILIZATION_SAMPLES, self._last)
        except nvml.NVMLError as error:
            if getattr(error, "value", None) == nvml.NVML_ERROR_NOT_FOUND:
                return  # nothing new yet
            raise
        for sample in samples:
            # Slots that the driver has not filled have time 0.
            if sample.timeStamp <= self._last:
                continue
            # The first one began before, however far apart they are.
            is_first, self._last = self._last == self._skipped, int(sample.timeStamp)
            if not is_first and self._last > self._skipped + _SAMPLE_MICROSECONDS:
                self._samples.append((self._last / 1e6, float(sample.sampleValue.uiVal)))


def histogram(percents: list[float]) -> NvmlUse | None:
    """Return how many samples lie in each tenth of 0 to 100, the last one closed, and the share of zeros."""
    if not percents:
        return None
    counts = [0] * NUM_BINS
    for percent in percents:
        counts[min(NUM_BINS - 1, max(0, int(percent * NUM_BINS / 100)))] += 1
    zeros = sum(percent <= 0 for percent in percents)
    return NvmlUse(histogram=tuple(counts), zeros_share=zeros / len(percents), num_samples=len(percents))


def _handle(nvml: Any, gpu: torch.device | str) -> Any:
    """Return the driver's handle: by UUID, since CUDA_VISIBLE_DEVICES renumbers what torch sees."""
    uuid = gpu if isinstance(gpu, str) else str(torch.cuda.get_device_properties(gpu).uuid)
    return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
