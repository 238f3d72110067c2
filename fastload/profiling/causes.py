"""Why the device waited: a word from what was seen. Pure: measured numbers in, one Cause out.

A loader that uses its processors while the device waits has too much to do (decoding, transforms, or too few workers
for it); one that sleeps meanwhile waits itself (for a disk, a network, a lock); one that would run and is not let to
lacks cores. Where the device does not wait for data, the copy, the launches or the loader's own hunger may be it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastload.profiling.report import Cause, Sample
from fastload.profiling.verdict import (
    COPY_BOUND_SHARE,
    IDLE_GPU_SHARE,
    INPUT_BOUND_SHARE,
    INTERFERENCE_EFFICIENCY,
    MIN_STEPS,
    PARTLY_SHARE,
    waits_more_for_the_host,
)

IDLE_CPU = 0.5  # of a core: a worker below it sleeps for most of the time
STARVED_SHARE = 0.3  # of the time a worker is ready to run and waits for a core
FULL_CORE = 0.95
READS_BYTES_PER_SECOND = 4e6
FILE_BYTES = 4096  # read per image: more than what processes tell each other
MANY_FAULTS_PER_SECOND = 50.0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was measured; None where it was not.

    Attributes:
        wait_share, num_steps, start_share, efficiency, busy_share, copy_share, own_share: as of `judge`.
        num_workers: processes that load; None where the loader is no DataLoader.
        persistent_workers: whether they outlive an epoch.
        worker_cpu: cores that each of them used.
        next_cpu: cores that the training thread used while it was in `next()`.
        starved_share: of the time, workers (else the process) were ready to run and waited for a core.
        cpu_per_core: load of each core.
        disk_read_bytes_per_second, major_faults_per_second: of process and workers.
        read_bytes_per_image: all that process and workers read, from the page cache too.
        sample: seconds of one sample by part.
        in_memory: whether batches are made of samples that lie in memory, decoded (fastload's Loader).
        pinned: whether batches come in pinned memory, where that is known.
        syncs_per_step: calls that make the host wait for the GPU.
    """

    wait_share: float | None = None
    num_steps: int = 0
    start_share: float | None = None
    efficiency: float | None = None
    busy_share: float | None = None
    copy_share: float | None = None
    own_share: float | None = None
    num_workers: int | None = None
    persistent_workers: bool | None = None
    worker_cpu: tuple[float, ...] | None = None
    next_cpu: float | None = None
    starved_share: float | None = None
    cpu_per_core: tuple[float, ...] | None = None
    disk_read_bytes_per_second: float | None = None
    major_faults_per_second: float | None = None
    read_bytes_per_image: float | None = None
    sample: Sample | None = None
    in_memory: bool = False
    pinned: bool | None = None
    syncs_per_step: float | None = None

    @property
    def loader_cpu(self) -> float | None:
        """Cores that whoever loads used: a worker on average, or the training thread in `next()`."""
        if self.num_workers and self.worker_cpu:
            # Workers that were never seen using a core are in none of the figures, and idle.
            return sum(self.worker_cpu) / max(self.num_workers, len(self.worker_cpu))
        if self.num_workers:
            return None
        if self.worker_cpu:
            return max(self.worker_cpu)
        return self.next_cpu

    @property
    def reads(self) -> bool:
        """Whether the loader was seen reading: from a disk, or files at all."""
        if (self.disk_read_bytes_per_second or 0) >= READS_BYTES_PER_SECOND:
            return True
        if (self.major_faults_per_second or 0) >= MANY_FAULTS_PER_SECOND:
            return True
        if self.read_bytes_per_image is not None:
            return self.read_bytes_per_image >= FILE_BYTES
        return self.sample is not None and _largest(self.sample) == "open"


def find_cause(seen: Evidence) -> Cause | None:
    """Return the cause that the evidence speaks for; None where too few steps were measured to ask."""
    if seen.wait_share is None or seen.num_steps < MIN_STEPS:
        return None
    start = seen.start_share or 0.0
    is_partly = max(seen.wait_share, start) < INPUT_BOUND_SHARE
    if is_partly and waits_more_for_the_host(seen.wait_share, seen.busy_share, seen.copy_share):
        word, why = _not_waiting(seen)
    elif start >= max(PARTLY_SHARE, seen.wait_share):
        word, why = _edges(seen)
    elif seen.wait_share >= PARTLY_SHARE:
        word, why = _waiting(seen)
    else:
        word, why = _not_waiting(seen)
    return Cause(word=word, why=why, evidence=tuple(_told(seen)))


def _edges(seen: Evidence) -> tuple[str, str]:
    if seen.persistent_workers is False and seen.num_workers:
        return "epoch-starts", "Workers are started anew for every epoch; keep them with persistent_workers=True."
    return "epoch-starts", "The first batch of every epoch comes late; what is made anew for an epoch can be kept."


def _waiting(seen: Evidence) -> tuple[str, str]:
    loader_cpu = seen.loader_cpu
    if seen.starved_share is not None and seen.starved_share >= STARVED_SHARE:
        return "starved-cores", "Whoever loads was ready to run and got no core; there are fewer cores than work."
    if loader_cpu is not None and loader_cpu < IDLE_CPU:
        if _all_full(seen) and seen.starved_share is None:
            return "starved-cores", "Every core was busy and whoever loads got little of them."
        if seen.reads:
            return "storage-bound", "Whoever loads sleeps while it reads: the disk or the network sets the pace."
        return (
            "loader-sleeps",
            "Whoever loads sleeps and reads little: a lock, a pause or a service holds it up.",
        )
    if seen.in_memory:
        return "augment-bound", "Samples lie decoded in memory: what is left is gathering and augmenting them."
    if seen.num_workers == 0 or (seen.num_workers is None and not seen.worker_cpu):
        if seen.num_workers is None and loader_cpu is None:
            return "workers-bound", "The loader does not keep up."
        return "one-worker", "The training process loads its batches itself, in turn with the steps."
    if seen.num_workers == 1:
        return "one-worker", "One worker does all the loading and has no time left."
    return _busy_workers(seen)


def _busy_workers(seen: Evidence) -> tuple[str, str]:
    largest = None if seen.sample is None else _largest(seen.sample)
    if largest == "open":
        return "storage-bound", "Opening and reading files takes most of a sample's time."
    if largest == "decode":
        return "decode-bound", "The workers are busy, for the most part with decoding."
    if largest == "transform":
        return "augment-bound", "The workers are busy, for the most part with transforms."
    return "workers-bound", "The workers are busy and do not keep up."


def _not_waiting(seen: Evidence) -> tuple[str, str]:
    if seen.copy_share is not None and seen.copy_share >= COPY_BOUND_SHARE:
        memory = "from pageable memory, which" if seen.pinned is False else "which"
        return "copy-bound", f"Batches are copied to the GPU {memory} holds up the step."
    if seen.busy_share is not None and seen.busy_share < IDLE_GPU_SHARE:
        if seen.syncs_per_step is not None and seen.syncs_per_step >= 1:
            return (
                "launch-bound",
                "The host waits for the GPU in every step (.item(), printing a loss) and launches late.",
            )
        return "launch-bound", "The host launches kernels more slowly than the GPU runs them."
    if seen.efficiency is not None and seen.efficiency < INTERFERENCE_EFFICIENCY:
        return "interference", "Loader and step are fast enough alone and slow each other down."
    return "balanced", "Batches are there when the step wants them."


def _told(seen: Evidence) -> Iterator[str]:
    """Yield what was seen, a phrase each, what was not measured left out."""
    yield f"data wait {seen.wait_share:.1%} of {seen.num_steps:,} steps"
    if seen.start_share is not None:
        yield f"first batches of epochs {seen.start_share:.1%} of the time"
    if seen.num_workers is not None:
        kept = {True: ", kept between epochs", False: ", started anew for every epoch", None: ""}
        yield f"num_workers={seen.num_workers}{kept[seen.persistent_workers] if seen.num_workers else ''}"
    if seen.worker_cpu:
        yield f"workers used {', '.join(f'{share:.0%}' for share in seen.worker_cpu[:16])} of a core"
    elif seen.next_cpu is not None and not seen.num_workers:
        yield f"the training thread used {seen.next_cpu:.0%} of a core while it waited"
    if seen.starved_share is not None:
        yield f"{seen.starved_share:.0%} of the time ready to run, without a core"
    if seen.cpu_per_core:
        yield f"cores busy {', '.join(f'{share:.0%}' for share in seen.cpu_per_core[:16])}"
    if seen.disk_read_bytes_per_second is not None:
        yield f"{seen.disk_read_bytes_per_second / 1e6:,.1f} MB/s read from disk"
    if seen.read_bytes_per_image is not None:
        yield f"{seen.read_bytes_per_image / 1e3:,.1f} kB read per image"
    if seen.sample is not None:
        parts = {"opening and reading": seen.sample.open, "decoding": seen.sample.decode,
                 "transforms": seen.sample.transform}  # fmt: skip
        told = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in parts.items())
        yield f"one sample: {told} (of {seen.sample.count})"
    if seen.busy_share is not None:
        yield f"GPU busy {seen.busy_share:.0%}"
    if seen.copy_share is not None:
        memory = {True: ", from pinned memory", False: ", from pageable memory", None: ""}[seen.pinned]
        yield f"GPU only receiving {seen.copy_share:.0%}{memory}"
    if seen.own_share is not None:
        yield f"the loader's own work on the device {seen.own_share:.0%}"
    if seen.syncs_per_step is not None:
        yield f"{seen.syncs_per_step:.1f} synchronizations per step"
    if seen.efficiency is not None:
        yield f"efficiency {seen.efficiency:.0%}"


def _largest(sample: Sample) -> str:
    parts = {"decode": sample.decode, "transform": sample.transform, "open": sample.open}
    return max(parts, key=parts.__getitem__)


def _all_full(seen: Evidence) -> bool:
    return bool(seen.cpu_per_core) and min(seen.cpu_per_core or (0.0,)) >= FULL_CORE
