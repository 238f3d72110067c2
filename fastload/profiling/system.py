"""What the host did while a loop ran: cores, worker processes, disk reads, page faults, memory. All from /proc.

Two looks and a difference; in between a look every half second, since workers may be gone at the end. A look costs
some tenths of a millisecond, no thread and no dependency. Where there is no /proc, nothing is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastload.profiling.report import System

SECONDS_BETWEEN_LOOKS = 0.5
MIN_SECONDS = 0.2  # shorter, ticks of a hundredth of a second say little
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Look:
    """One process at one time; all but `at` and `resident_bytes` count up from its start."""

    at: float
    cpu_seconds: float
    major_faults: int
    read_bytes: int | None
    read_chars: int | None
    starved_seconds: float | None
    resident_bytes: int


@dataclass
class _Watched:
    first: Look
    last: Look

    def rate(self, name: str) -> float | None:
        seconds = self.last.at - self.first.at
        before, after = getattr(self.first, name), getattr(self.last, name)
        return None if before is None or after is None or seconds < MIN_SECONDS else (after - before) / seconds


class SystemMeter:
    """Looks at this process and those it started, and at the machine's cores.

    Args:
        num_workers: processes that load, where that is known: so many of the busiest ones are reported.
        pid: the process that trains; this one where not given.
        proc: where the system's files are.
    """

    def __init__(self, *, num_workers: int | None = None, pid: int | None = None, proc: Path = Path("/proc")) -> None:
        self.num_workers = num_workers
        self._proc = proc
        self._own = os.getpid() if pid is None else pid
        self._watched: dict[int, _Watched] = {}
        self._cores: list[tuple[list[int], list[int]]] = []
        self._next_look = 0.0
        self._resident = 0

    def tick(self) -> bool:
        """Look where the last look is long enough ago, and return whether it was."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        self.look()
        return True

    def look(self) -> None:
        """Look now."""
        resident = 0
        for pid in (self._own, *descendants(self._own, self._proc)):
            look = _look(pid, self._proc)
            if look is None:
                continue
            resident += look.resident_bytes
            if pid in self._watched:
                self._watched[pid].last = look
            else:
                self._watched[pid] = _Watched(look, look)
        self._resident = max(self._resident, resident)
        now = _core_ticks(self._proc)
        if len(now) != len(self._cores):
            self._cores = [(ticks, ticks) for ticks in now]
        else:
            self._cores = [(first, ticks) for (first, _), ticks in zip(self._cores, now, strict=True)]

    def result(self) -> System:
        """Return what the looks so far say."""
        own = self._watched.get(self._own)
        loads = [_load(first, last) for first, last in self._cores]
        return System(
            cpu_per_core=tuple(load for load in loads if load is not None) or None,
            process_cpu=None if own is None else own.rate("cpu_seconds"),
            worker_cpu=self._worker_rates("cpu_seconds"),
            disk_read_bytes_per_second=self._sum("read_bytes"),
            major_faults_per_second=self._sum("major_faults"),
            resident_bytes=self._resident or None,
        )

    @property
    def starved_share(self) -> float | None:
        """Share of the time in which workers, else this process's main thread, were ready to run and had no core."""
        shares = self._worker_rates("starved_seconds")
        if shares:
            return sum(shares) / len(shares)
        own = self._watched.get(self._own)
        return None if own is None else own.rate("starved_seconds")

    @property
    def read_chars_per_second(self) -> float | None:
        """Bytes that this process and its workers read in all, wherever they came from."""
        return self._sum("read_chars")

    def _worker_rates(self, name: str) -> tuple[float, ...] | None:
        """Return a rate of each worker, the longest watched ones where there were more than work at a time."""
        others = [w for pid, w in self._watched.items() if pid != self._own and w.rate("cpu_seconds") is not None]
        if self.num_workers == 0 or not others:
            return None
        if self.num_workers is None:
            # No DataLoader: a helper that sleeps all the time (a resource tracker) is no worker.
            others = [w for w in others if (w.rate("cpu_seconds") or 0) >= 0.01]
        others.sort(key=lambda w: (w.last.cpu_seconds - w.first.cpu_seconds, w.last.at - w.first.at), reverse=True)
        rates = [w.rate(name) for w in others[: self.num_workers]]
        return tuple(rate for rate in rates if rate is not None) or None

    def _sum(self, name: str) -> float | None:
        """Return what all processes together counted up, per second of this process's own watch."""
        own = self._watched.get(self._own)
        seconds = 0.0 if own is None else own.last.at - own.first.at
        if seconds < MIN_SECONDS:
            return None
        ends = [(getattr(w.first, name), getattr(w.last, name)) for w in self._watched.values()]
        known = [last - first for first, last in ends if first is not None and last is not None]
        return sum(known) / seconds if known else None


def descendants(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """Return the processes that `pid` started, and those that they started."""
    found, waiting = [], [pid]
    while waiting:
        children = list(_children(waiting.pop(), proc))
        found += children
        waiting += children
    return found


def _children(pid: int, proc: Path) -> Iterator[int]:
    for file in proc.glob(f"{pid}/task/*/children"):
        with suppress(OSError, ValueError):  # a thread that has just ended
            yield from map(int, file.read_text().split())


def _look(pid: int, proc: Path) -> Look | None:
    """Return how a process stands; None where it is over."""
    folder = proc / str(pid)
    try:
        # The name before the last bracket may hold spaces and brackets itself.
        stat = (folder / "stat").read_text().rpartition(")")[2].split()
        statm = (folder / "statm").read_text().split()
    except OSError:
        return None
    starved = None
    with suppress(OSError, ValueError, IndexError):
        starved = int((folder / "schedstat").read_text().split()[1]) / 1e9
    read_bytes, read_chars = _reads(folder)
    return Look(
        at=time.monotonic(), cpu_seconds=(int(stat[11]) + int(stat[12])) / _TICKS, major_faults=int(stat[9]),
        read_bytes=read_bytes, read_chars=read_chars, starved_seconds=starved,
        resident_bytes=max(0, int(statm[1]) - int(statm[2])) * _PAGE,
    )  # fmt: skip


def _reads(folder: Path) -> tuple[int | None, int | None]:
    """Return the bytes that came from a disk, and all that were read, from the page cache and from pipes too."""
    with suppress(OSError, ValueError):
        counts = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
        return int(counts["read_bytes"]), int(counts["rchar"])
    return None, None


def _core_ticks(proc: Path) -> list[list[int]]:
    """Return (busy, all) ticks of each core that this process may use."""
    try:
        lines = (proc / "stat").read_text().splitlines()
    except OSError:
        return []
    allowed, found = os.sched_getaffinity(0), []
    for line in lines:
        name, *words = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in allowed:
            ticks = [int(word) for word in words[:8]]
            found.append([sum(ticks) - ticks[3] - ticks[4], sum(ticks)])  # without idle and waiting for a disk
    return found


def _load(first: list[int], last: list[int]) -> float | None:
    total = last[1] - first[1]
    return None if total <= 0 else min(1.0, max(0.0, (last[0] - first[0]) / total))
