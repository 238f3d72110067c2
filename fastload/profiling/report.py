"""Measurements as JSON: no figure without machine, versions, data, command and date.

A report of what a training loop waited for is a `Report`: schema `fastload-gpu-util`, version 2. What was not measured
is None, and null in JSON.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fastload import __version__
from fastload.files import write_text, writing
from fastload.machine import cpu_name, installed
from fastload.memory import meminfo_bytes
from fastload.profiling.verdict import Verdict

SCHEMA, VERSION = "fastload-gpu-util", 2
MAX_SERIES = 2000

PACKAGES = (
    "torch", "torchvision", "accelerate", "timm", "numpy", "numba", "pillow", "simplejpeg", "safetensors", "ffcv",
)  # fmt: skip

Interval = tuple[float, float]


def environment() -> dict[str, Any]:
    """Return what a figure must not be quoted without: machine, versions and date."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(meminfo_bytes("MemTotal") / 2**30, 1),
            "gpus": gpus,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), "fastload": __version__, **installed(PACKAGES)},
    }


def command() -> str:
    """Return this process's command with absolute paths cut to their last part: a result is read elsewhere."""
    words = [word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in sys.argv[1:]]
    script = Path(sys.argv[0])
    name = f"{script.resolve().parent.name}/{script.name}" if script.suffix == ".py" else script.name
    return shlex.join([name, *words])


def shortened(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report of `bench`, which is read elsewhere, with absolute paths in its actions cut as in `command`.

    Others keep them: who watches a script of his own reads the report where it was made.
    """
    if report["run"]["entry"] != "bench":
        return report

    def cut(line: str | None) -> str | None:
        if line is None or not line.startswith(("fastload ", "accelerate ")):
            return line  # Python
        return shlex.join(word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in shlex.split(line))

    return {**report, "actions": [{**action, "command": cut(action["command"])} for action in report["actions"]]}


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a result whole or not at all.

    Raises:
        ConfigError: the disk is full or the folder cannot be written.
    """
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(content, indent=1) + "\n")


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Round for a JSON result; None, which means not measured, stays None."""
    return None if value is None else round(value, digits)


def described() -> dict[str, Any]:
    """Return `environment()` with this process's command: what every result begins with."""
    return {"command": command(), **environment()}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was run.

    Attributes:
        entry: `bench`, `profile` or `hook`.
        data: name of the data, None where it is not known.
        model: name of the network, likewise.
        size: side of the images, in pixels.
        batch_size: images per step and rank.
        device: `cuda`, `mps` or `cpu`; on a CPU all gpu figures are null.
        precision: `no`, `bf16`, ...
        num_ranks: processes that train together.
        num_warmup: steps at the very beginning that do not count.
    """

    entry: str
    data: str | None = None
    model: str | None = None
    size: int | None = None
    batch_size: int | None = None
    device: str
    precision: str | None = None
    num_ranks: int = 1
    num_warmup: int = 0


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How many steps count, how many were warm-up, and how many of all were the first of an epoch."""

    count: int
    warmup: int
    epoch_starts: int


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """Duration of a step, data wait included; `interval` is that of the mean, at 95%."""

    p50: float | None
    p95: float | None
    mean: float | None
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Data wait of the steps that count.

    Attributes:
        share: of their wall time.
        interval: of the share, at 95%.
        seconds: in all.
        own_seconds: the loader's own copy and augmentation on the device, which are no part of `seconds`; None where
            the loader does not tell.
        start_seconds: data wait of the first batches of epochs, which are no part of `seconds` either.
    """

    share: float | None
    interval: Interval | None
    seconds: float | None
    own_seconds: float | None
    start_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Images per second, and its interval at 95%."""

    value: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Images per second of the run, of the loader alone and of the step alone (the ceiling)."""

    x_real: Rate | None = None
    x_load: Rate | None = None
    x_replay: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class NvmlUse:
    """The driver's samples of "share of time with any kernel": how many lie in each tenth, and at zero."""

    histogram: tuple[int, ...]
    zeros_share: float
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What the GPU did; every field is None where there is none.

    Attributes:
        busy_share: union of kernel intervals over a short window of steps.
        nvml: what the driver sampled.
        memory_bytes: the most that torch had allocated.
    """

    busy_share: float | None = None
    nvml: NvmlUse | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class System:
    """What the host did meanwhile; one core that is busy all the time is 1.

    Attributes:
        cpu_per_core: load of each core of the machine, by anybody.
        process_cpu: of this process, all threads.
        worker_cpu: of each process that it started.
        disk_read_bytes_per_second: of this process and those, what really came from a disk.
        major_faults_per_second: pages that had to be read first, likewise.
        resident_bytes: memory of this process and those, without what a file backs.
    """

    cpu_per_core: tuple[float, ...] | None = None
    process_cpu: float | None = None
    worker_cpu: tuple[float, ...] | None = None
    disk_read_bytes_per_second: float | None = None
    major_faults_per_second: float | None = None
    resident_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Seconds that one sample takes, alone: opening and reading, decoding, transforms, and its part of collating."""

    open: float
    decode: float
    transform: float
    collate: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A word for what made the device wait, why in a sentence, and what was seen."""

    word: str
    why: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Steps in their order, thinned out to at most MAX_SERIES; seconds since the loop began, and of each step."""

    time: tuple[float, ...] = ()
    step_seconds: tuple[float, ...] = ()
    wait_seconds: tuple[float, ...] = ()
    nvml: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One loop, of one rank, fed one way."""

    name: str
    rank: int = 0
    steps: Steps
    step_seconds: StepSeconds
    wait: Wait
    throughput: Throughput
    headspace: float | None = None
    efficiency: float | None = None
    gpu: Gpu = Gpu()
    system: System = System()
    sample: Sample | None = None
    memory_bytes: int | None = None
    cause: Cause | None = None
    verdict: Verdict
    series: Series = Series()


@dataclass(frozen=True, kw_only=True)
class ResidentGain:
    """What converting would give: times the images/s, `measured` or `upper bound`, and the memory it needs."""

    speedup: float
    basis: str
    memory_bytes: int | None
    num_images: int | None


@dataclass(frozen=True, kw_only=True)
class Action:
    """What to do next.

    Attributes:
        text: in a sentence.
        command: ready to paste, a shell's or a line of Python; None where there is nothing to paste.
        gain: times the images/s; None where it is not known.
        basis: of the gain: `measured` or `upper bound`.
    """

    text: str
    command: str | None = None
    gain: float | None = None
    basis: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was measured, and what follows; `as_dict()` is the JSON of schema `fastload-gpu-util`.

    Attributes:
        environment: of `described()`.
        run: what was run.
        loops: each way of feeding, each rank.
        verdict, cause: of the loop that the report is about: the first one, of the rank that waited most.
        resident_gain: what converting would give.
        actions: the first one is the next command.
    """

    environment: dict[str, Any]
    run: Run
    loops: tuple[Loop, ...]
    verdict: Verdict
    cause: Cause | None = None
    resident_gain: ResidentGain | None = None
    actions: tuple[Action, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it: lists, six significant digits, None where nothing was measured."""
        plain: dict[str, Any] = _plain({"schema": SCHEMA, "version": VERSION, **_fields(self)})
        return plain


def _fields(noun: Any) -> dict[str, Any]:
    return {f.name: getattr(noun, f.name) for f in fields(noun)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {name: _plain(inner) for name, inner in _fields(value).items()}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
