"""The pools: every row once, in order; whatever kills a worker ends the run with the sample's name."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastload.errors import DatasetError, DecodeError
from fastload.pool import TASK_ROWS, ProcessPool, ThreadPool, shared_bytes

pytestmark = pytest.mark.processes
POOLS = [ThreadPool, ProcessPool] if sys.platform == "linux" else [ThreadPool]
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


def name(shard: int, row: int) -> str:
    return f"shard{shard}/row\udcff{row}.jpg"


@pytest.mark.parametrize("pool_type", POOLS)
@pytest.mark.parametrize(("workers", "num_rows"), [(1, 0), (1, 1), (2, TASK_ROWS), (3, 5 * TASK_ROWS + 3), (5, 7)])
def test_every_row_once_and_in_order(pool_type: type, workers: int, num_rows: int) -> None:
    memory = shared_bytes(num_rows)

    def work(shard: int, row: int) -> bytes:
        memory[row] += shard + row % 100
        return (1000 * shard + row).to_bytes(4, "little")

    done: list[int] = []
    with pool_type(work, name, workers) as pool:
        for shard in (1, 2):
            result = b"".join(pool.run(shard, num_rows, done.append))
            assert [int.from_bytes(result[i : i + 4], "little") for i in range(0, len(result), 4)] == [
                1000 * shard + row for row in range(num_rows)
            ]
    assert sum(done) == 2 * num_rows
    assert [int(n) for n in memory[:num_rows]] == [3 + 2 * (row % 100) for row in range(num_rows)]


def fail_at(row: int, how: Callable[[], object]) -> Callable[[int, int], bytes]:
    def work(_: int, at: int) -> bytes:
        if at == row:
            how()
        return b"."

    return work


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("pool_type", POOLS)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DecodeError("a\udcff.jpg", "the file is empty"), "the file is empty"),
        (MemoryError(), "row.*37.jpg: cannot be decoded.*MemoryError"),
        (ValueError("odd"), "row.*37.jpg: cannot be decoded.*odd"),
    ],
)
def test_what_the_work_raises_arrives_with_the_path(pool_type: type, error: Exception, said: str) -> None:
    with pytest.raises(DecodeError, match=said), pool_type(fail_at(37, lambda: raise_(error)), name, 2) as pool:
        pool.run(3, 500, lambda _: None)


@pytest.mark.parametrize("pool_type", POOLS)
def test_a_full_disk_is_no_fault_of_the_sample(pool_type: type) -> None:
    full = DatasetError("a cannot be written (No space left on device); make room")
    with (
        pytest.raises(DatasetError, match=r"^a cannot be written"),
        pool_type(fail_at(37, lambda: raise_(full)), name, 2) as pool,
    ):
        pool.run(3, 500, lambda _: None)


# ruff: noqa: PT012 - the pool has to be open while it is watched
@linux
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL; if memory was short, use fewer workers"),
        (lambda: (faulthandler.disable(), os.kill(os.getpid(), signal.SIGSEGV)), "killed by SIGSEGV"),
        (lambda: os._exit(7), "ended with code 7"),
    ],
)
def test_a_death_in_a_sample_names_it_within_seconds(how: Callable[[], object], said: str) -> None:
    begin = time.monotonic()
    with (
        pytest.raises(DecodeError, match=f"row.*37.jpg: .*{said}") as caught,
        ProcessPool(fail_at(37, how), name, 2) as p,
    ):
        pids = p.pids
        p.run(3, 500, lambda _: None)
    assert caught.value.path == name(3, 37)
    assert time.monotonic() - begin < 5
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@linux
def test_a_death_from_outside_ends_the_run() -> None:
    def work(_: int, __: int) -> bytes:
        time.sleep(0.05)
        return b"."

    with pytest.raises((DecodeError, DatasetError), match="killed by SIGKILL"), ProcessPool(work, name, 3) as pool:
        threading.Timer(0.3, os.kill, (pool.pids[1], signal.SIGKILL)).start()
        pool.run(0, 10_000, lambda _: None)


@linux
def test_a_death_while_idle_is_told_by_the_next_shard() -> None:
    with pytest.raises(DatasetError, match="between two samples"), ProcessPool(lambda _, __: b".", name, 2) as pool:
        pool.run(0, 50, lambda _: None)
        os.kill(pool.pids[0], signal.SIGKILL)
        time.sleep(0.1)
        pool.run(1, 50, lambda _: None)


@linux
def test_workers_do_not_outlive_a_killed_parent() -> None:
    script = (
        "import time\nfrom fastload.pool import ProcessPool\n"
        "def work(s, r):\n time.sleep(0.02)\n return b'.'\n"
        "with ProcessPool(work, str, 2) as pool:\n"
        " print(*pool.pids, flush=True)\n"
        " pool.run(0, 10**6, lambda _: None)\n"
    )
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        time.sleep(0.2)
        parent.kill()
    assert len(pids) == 2
    end = time.monotonic() + 5
    while any(_runs(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # nobody may have waited for it, in a container without init
