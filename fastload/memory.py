"""How much memory this process may still take: the machine's, its control groups' and its Slurm job's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path


def free_host_bytes() -> int:
    """Return the memory that this process may still take, in bytes: the least that any limit above it leaves."""
    free = meminfo_bytes("MemAvailable")
    for limit, usage, cache in _control_groups():
        # The group's usage counts its page cache, which gives way.
        free = min(free, limit - usage + cache)
    job_limit = slurm_bytes(os.environ)
    if job_limit is not None:
        # Slurm counts a job's processes where no control group does: ours, and those of the other ranks here.
        found = [_resident_bytes(pid) for pid in _job_processes(os.environ["SLURM_JOB_ID"])]
        # Shared memory is there once, whoever sees it: what the one that sees most of it does.
        shared = max((there for _, there in found), default=0)
        free = min(free, job_limit - shared - sum(private for private, _ in found))
    return max(0, free)


def meminfo_bytes(field: str) -> int:
    """Return a line of /proc/meminfo (MemTotal, MemAvailable) in bytes; elsewhere the machine's total."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == field:
                return int(rest.split()[0]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def slurm_bytes(variables: Mapping[str, str]) -> int | None:
    """Return what a Slurm job may take on this node, in bytes; None where it names no limit, or there is no job.

    `sbatch --mem`, `--mem-per-cpu` and `--mem-per-gpu` become SLURM_MEM_PER_NODE, _CPU and _GPU, in MiB;
    0 stands for the whole node.
    """

    def number(name: str) -> int:
        text = variables.get(name, "")
        return int(text) if text.isdecimal() else 0

    if "SLURM_JOB_ID" not in variables:
        return None
    per_cpu, cpus = number("SLURM_MEM_PER_CPU"), number("SLURM_CPUS_ON_NODE")
    per_gpu, gpus = number("SLURM_MEM_PER_GPU"), number("SLURM_GPUS_ON_NODE")
    limits = [n for n in (number("SLURM_MEM_PER_NODE"), per_cpu * cpus, per_gpu * gpus) if n]
    return min(limits) << 20 if limits else None


def resident_bytes() -> int:
    """Return this process's private memory in bytes: what is in RAM and backed by no file."""
    return _resident_bytes(os.getpid())[0]


def _job_processes(job: str) -> Iterator[int]:
    """Yield the processes of ours here that belong to a Slurm job."""
    wanted = f"SLURM_JOB_ID={job}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)
            except OSError:
                pass  # somebody else's, or over


def _resident_bytes(pid: int) -> tuple[int, int]:
    """Return what a process has in RAM of its own, and of shared memory, in bytes."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return 0, 0
    private, shared = (int(fields.get(name, "0").split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
    return private, shared


def _control_groups() -> list[tuple[int, int, int]]:
    """Return (limit, usage, file cache) in bytes of every memory control group above this process."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            base, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            base, names = (
                Path("/sys/fs/cgroup/memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
            )  # fmt: skip
        else:
            continue
        # In a container the group's own folder is often mounted as the root.
        inner = base / group.lstrip("/")
        found += read_groups(inner if inner.is_dir() else base, base, names)
    return found


def read_groups(inner: Path, base: Path, names: tuple[str, str, str]) -> list[tuple[int, int, int]]:
    """Return (limit, usage, file cache) of the group `inner` and each above it up to `base` that has a limit.

    Args:
        inner, base: folders of control groups.
        names: the files of limit and usage, and what stands before the names in memory.stat.
    """
    found = []
    for folder in (inner, *inner.parents):
        try:
            limit, usage = ((folder / name).read_text().strip() for name in names[:2])
            if limit != "max":
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cache = sum(int(statistics.get(f"{names[2]}{kind}_file", 0)) for kind in ("active", "inactive"))
                found.append((int(limit), int(usage), cache))
        except (OSError, ValueError):
            pass  # the root group has no limit to read
        if folder == base:
            break
    return found
