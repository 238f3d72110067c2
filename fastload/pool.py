"""The pool that fills the rows of shards: processes, each of which works on a few rows at a time.

Processes, not threads, for three reasons. A thread cannot die alone: a decoder that crashes, or the
kernel killing for want of memory, would take the run with it before it could name the sample; here the
parent sees the pipe close, looks up which row the dead one was at, and says so. Every image holds the GIL
for a while: on two cores threads did as well, on sixteen they are expected to wait for it (an estimate,
not a measurement). And torch's number of threads, which must be 1 in here, is a setting of the process.

Forked, as torch's DataLoader does on Linux: they start in milliseconds, and have the plan without sending it.
Elsewhere fork is not safe, and threads do the same work with the same results.

Nothing is pickled: tasks are numbers, results are bytes, errors are JSON.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection, Pipe
from multiprocessing.connection import wait as wait_for
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from fastload.errors import DatasetError, DecodeError, FastloadError

# Fills row `row` of shard `shard` and returns a few bytes about it, always as many.
Work = Callable[[int, int], bytes]
# (shard, row) -> the path of that sample, for errors.
NamePath = Callable[[int, int], str]

# Rows of one task: fewer, and handing tasks out costs more than the smallest decode.
TASK_ROWS = 16
# Tasks that wait at each process, so that it need not wait for the parent, which also writes.
QUEUED_TASKS = 3
_TASK = struct.Struct("<qqq")  # shard, first row, end row
_AT = struct.Struct("=qq")  # shard, row
_IDLE = -1


class Pool(Protocol):
    """What both pools do."""

    def run(self, shard: int, num_rows: int, advance: Callable[[int], object]) -> list[bytes]:
        """Do the work of rows 0 .. num_rows - 1 of a shard, calling `advance(rows done)` as it goes.

        Returns:
            What the work returned for each task of TASK_ROWS rows, joined, in the order of the rows.

        Raises:
            DecodeError: the work raised it; or it raised anything else; or a process died on a sample.
            DatasetError: the work raised it; or a process died between two samples.
        """


def open_pool(work: Work, name_path: NamePath, workers: int) -> ProcessPool | ThreadPool:
    """Return a pool of `workers` processes where the system can fork safely, else of threads."""
    return ProcessPool(work, name_path, workers) if sys.platform == "linux" else ThreadPool(work, name_path, workers)


def shared_bytes(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Return zeroed memory [num_bytes] that processes forked from now on share with this one."""
    return np.frombuffer(mmap.mmap(-1, max(1, num_bytes)), np.uint8)


class ThreadPool:
    """The same work in threads, where processes cannot be forked."""

    def __init__(self, work: Work, name_path: NamePath, workers: int) -> None:
        self._work, self._name_path = work, name_path
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="fastload-decode")

    def __enter__(self) -> ThreadPool:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def run(self, shard: int, num_rows: int, advance: Callable[[int], object]) -> list[bytes]:
        """Do the work of the rows of a shard; see Pool."""

        def task(first: int) -> bytes:
            result = []
            for row in range(first, min(first + TASK_ROWS, num_rows)):
                try:
                    result.append(self._work(shard, row))
                except FastloadError:
                    raise
                except Exception as e:
                    raise DecodeError(self._name_path(shard, row), f"cannot be decoded ({e!r})", of_file=False) from e
            advance(len(result))
            return b"".join(result)

        tasks = [self._threads.submit(task, first) for first in range(0, num_rows, TASK_ROWS)]
        done, waiting = wait(tasks, return_when=FIRST_EXCEPTION)
        for waiter in waiting:
            waiter.cancel()
        for failed in (t for t in done if t.exception() is not None):
            failed.result()
        return [t.result() for t in tasks]


class ProcessPool:
    """Forked processes. Start it before taking locks: they have every open file of their parent."""

    def __init__(self, work: Work, name_path: NamePath, workers: int) -> None:
        self._work, self._name_path = work, name_path
        self._num_workers = workers
        # The row each process is at, where the parent can read it after a death.
        self._at = shared_bytes(16 * workers).view(np.int64).reshape(workers, 2)
        self._at[:] = _IDLE
        self._pipes: list[Connection] = []
        self._pids: list[int] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes, for those who watch them."""
        return tuple(self._pids)

    def __enter__(self) -> ProcessPool:
        try:
            for number in range(self._num_workers):
                self._fork(number)
        except OSError as e:
            self._stop(at_once=True)
            raise DatasetError(
                f"{self._num_workers} decoding processes cannot be started ({e.strerror}); pass fewer workers."
            ) from e
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stop(at_once=kind is not None)

    def run(self, shard: int, num_rows: int, advance: Callable[[int], object]) -> list[bytes]:
        """Do the work of the rows of a shard; see Pool."""
        firsts = range(0, num_rows, TASK_ROWS)
        todo = iter(firsts)
        given: dict[Connection, list[int]] = {pipe: [] for pipe in self._pipes}
        results: dict[int, bytes] = {}

        def give(pipe: Connection) -> None:
            if (first := next(todo, None)) is not None:
                given[pipe].append(first)
                self._send(pipe, _TASK.pack(shard, first, min(first + TASK_ROWS, num_rows)))

        for _ in range(QUEUED_TASKS):
            for pipe in self._pipes:
                give(pipe)
        while len(results) < len(firsts):
            # An idle process is watched as well: one that was killed will be missed by the next shard.
            for ready in wait_for(self._pipes):
                assert isinstance(ready, Connection)
                answer = self._receive(ready)
                first = given[ready].pop(0)
                results[first] = answer
                give(ready)
                advance(min(TASK_ROWS, num_rows - first))
        return [results[first] for first in firsts]

    def _fork(self, number: int) -> None:
        ours, theirs = Pipe()
        parent = os.getpid()
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside threads. The child runs decoders only, with locks of its own.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for pipe in (ours, *self._pipes):
                    pipe.close()  # else the others would not see the parent's death
                _serve(parent, theirs, self._work, self._name_path, self._at[number].data)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        self._pipes.append(ours)
        self._pids.append(pid)

    def _send(self, pipe: Connection, task: bytes) -> None:
        try:
            pipe.send_bytes(task)
        except OSError:
            raise self._death(pipe) from None

    def _receive(self, pipe: Connection) -> bytes:
        try:
            answer = pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._death(pipe) from None
        if answer[:1] == b"!":
            failure = json.loads(answer[1:])
            if "dataset" in failure:
                raise DatasetError(failure["dataset"])
            error = DecodeError(failure["path"], failure["reason"], failure["of_file"])
            if failure["trace"]:
                error.add_note(failure["trace"])
            raise error
        return answer[1:]

    def _death(self, pipe: Connection) -> DecodeError | DatasetError:
        """Return the error that says what a process died of, and at which sample."""
        number = self._pipes.index(pipe)
        shard, row = (int(n) for n in self._at[number])
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(self._pids[number], 0)[1])
        except ChildProcessError:  # somebody else has waited for it
            status = 1
        self._pids[number] = 0  # the number may soon be that of another process
        how = f"ended with code {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
        advice = "; if memory was short, use fewer workers" if status == -signal.SIGKILL else ""
        if shard == _IDLE:
            return DatasetError(
                f"a decoding process {how} between two samples{advice}; "
                "run the same command again: finished shards are kept."
            )
        reason = f"the process that decoded it {how}{advice}"
        return DecodeError(self._name_path(shard, row), reason, of_file=False)

    def _stop(self, *, at_once: bool) -> None:
        for pipe in self._pipes:
            pipe.close()
        for pid in filter(None, self._pids):
            try:
                if at_once:
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue  # dead and waited for
        self._pipes, self._pids = [], []


def _serve(parent: int, pipe: Connection, work: Work, name_path: NamePath, at: memoryview) -> None:
    """Work in a forked process until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of the terminal; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # the parent's objects: looking at them would copy their pages
    torch.set_num_threads(1)
    # libjpeg writes there what it thinks of an image, without a name.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    while True:
        try:
            shard, first, end = _TASK.unpack(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        result = [b"."]
        for row in range(first, end):
            if os.getppid() != parent:
                return
            _AT.pack_into(at, 0, shard, row)
            try:
                result.append(work(shard, row))
            except Exception as e:
                result = [_failure(e, name_path(shard, row))]
                break
        _AT.pack_into(at, 0, _IDLE, _IDLE)
        try:
            pipe.send_bytes(b"".join(result))
        except OSError:
            return


def _failure(error: Exception, path: str) -> bytes:
    content: dict[str, object]
    if isinstance(error, DatasetError):
        content = {"dataset": str(error)}
    elif isinstance(error, DecodeError):
        content = {"path": error.path, "reason": error.reason, "of_file": error.of_file, "trace": ""}
    else:
        reason = f"cannot be decoded ({error!r})"
        content = {"path": path, "reason": reason, "of_file": False, "trace": traceback.format_exc()}
    return b"!" + json.dumps(content).encode()
