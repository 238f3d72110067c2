"""What the profiler reads from /proc: cores, faults, bytes and processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from bench.truth_cases import spin
from fastload.profiling import system
from fastload.profiling.system import SystemMeter, descendants


def write_proc(
    root: Path, *, cpu: int, faults: int, read: int, starved: int, cores: tuple[tuple[int, int], ...]
) -> None:
    """A /proc with this process and one that it started; ticks of a hundredth of a second."""
    own = os.getpid()
    for pid, children in ((own, "77 "), (77, "")):
        folder = root / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        (folder / "task" / str(pid) / "children").write_text(children)
        fields = ["S", "1", *["0"] * 7, str(faults), "0", str(cpu), "0", *["0"] * 30]
        (folder / "stat").write_text(f"{pid} (a (strange) name) {' '.join(fields)}")
        (folder / "statm").write_text("900 50 20 1 0 1 0")
        (folder / "io").write_text(f"rchar: {2 * read}\nread_bytes: {read}\n")
        (folder / "schedstat").write_text(f"1 {starved} 1")
    lines = [f"cpu{n} {busy} 0 0 {idle} 0 0 0 0 0 0" for n, (busy, idle) in enumerate(cores)]
    (root / "stat").write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "intr 5"]))


def test_the_system_is_what_proc_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(system.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda _: {0, 2})
    monkeypatch.setattr(system, "_TICKS", 100)
    meter = SystemMeter(num_workers=1, proc=tmp_path)
    write_proc(tmp_path, cpu=1000, faults=5, read=10**6, starved=0, cores=((10, 10), (0, 0), (50, 50)))
    assert meter.tick()
    assert not meter.tick(), "not twice at once"
    now[0] += 2.0
    write_proc(tmp_path, cpu=1150, faults=25, read=5 * 10**6, starved=10**9, cores=((110, 10), (0, 0), (100, 100)))
    meter.look()
    found = meter.result()
    assert found.cpu_per_core == pytest.approx((1.0, 0.5)), "of the cores that this process may use"
    assert found.process_cpu == pytest.approx(0.75)
    assert found.worker_cpu == pytest.approx((0.75,))
    assert found.major_faults_per_second == pytest.approx(20)  # of both processes
    assert found.disk_read_bytes_per_second == pytest.approx(4e6)
    assert found.resident_bytes == 2 * 30 * os.sysconf("SC_PAGE_SIZE")
    assert meter.starved_share == pytest.approx(0.5)
    assert meter.read_chars_per_second == pytest.approx(8e6)


def test_without_proc_nothing_is_measured(tmp_path: Path) -> None:
    meter = SystemMeter(proc=tmp_path)
    meter.look()
    found = meter.result()
    assert set(vars(found).values()) == {None}
    assert meter.starved_share is None


@pytest.mark.processes
def test_a_busy_worker_and_a_sleeping_one_are_told_apart() -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=spin, args=(60,)), context.Process(target=time.sleep, args=(60,))]
    for worker in workers:
        worker.start()
    try:
        assert {w.pid for w in workers} <= set(descendants(os.getpid()))
        meter = SystemMeter(num_workers=2)
        meter.look()
        time.sleep(0.7)
        meter.look()
        found = meter.result().worker_cpu
        assert found is not None
        busiest, idlest = found
        assert busiest > 0.05, "however little of a core it got"
        assert idlest < 0.05
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
