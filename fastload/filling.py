"""Decoding samples into shards: the pool's processes write the rows, this one makes the files whole."""

from __future__ import annotations

import errno
import math
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastload.decode import decode, fit_pixels
from fastload.errors import DecodeError
from fastload.files import Draft, draft_path
from fastload.formats.resident import read_shard_metadata
from fastload.formats.shardfile import Rows, memory_file, publish, send, unwritten
from fastload.places import Place, each
from fastload.plan import Plan
from fastload.pool import Pool
from fastload.records import Record, Source
from fastload.urls import Url

# What the pool tells of each row: the length of a reason, which is 0 where the image is good, the moments,
# and the reason itself, cut to a fixed length since every row has the same number of bytes.
_REASON_BYTES = 240
OTHER_CLOCK_NS = 60 * 10**9  # by which the clocks of two file systems may differ
# What is wrong with a file, whoever reads it and however often. All other numbers are of the machine.
_OF_FILES = {
    None,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}


def read_image(source: Source, record: Record, plan: Plan) -> npt.NDArray[np.uint8]:
    """Read and decode one sample, uint8 [H, W, C].

    Raises:
        DecodeError: it cannot be read, or is no whole image.
    """
    s, content = plan.settings, source.read(record)
    if isinstance(content, bytes):
        return decode(
            content, record.path, size=s.size, fit=s.fit, max_pixels=s.max_pixels, num_channels=source.num_channels
        )
    return fit_pixels(content, size=s.size, fit=s.fit, num_channels=source.num_channels)


def reason_to_skip(error: DecodeError) -> str:
    """Return why an image is left out.

    Raises:
        DecodeError: it may be a good one: memory, disk or network failed, so that the next run may read it.
    """
    cause = error.__cause__
    # What Pillow finds damaged is an OSError, too, without a number.
    if not error.of_file:
        raise error
    if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno not in _OF_FILES):
        reason = f"{error.reason}; that is no bad image, so it is not skipped: run the same command again"
        raise DecodeError(error.path, reason, of_file=False) from cause
    return error.reason


class Filler:
    """Decodes samples into the files of their shards; the pool's processes each have a copy of it.

    Args:
        plan: what to convert.
        numbers: the shards to convert.
        folder: where to.
        num_at_a_time: shards that are open; one is filled while the others are checked and flushed to the disk.
        skip_bad: tell of a bad image instead of raising.
    """

    def __init__(
        self, plan: Plan, numbers: Sequence[int], folder: Place, num_at_a_time: int, *, skip_bad: bool = False
    ) -> None:
        self.plan = plan
        self.folder = folder
        # The smallest last: while it is flushed nobody decodes any more.
        self.numbers = tuple(sorted(numbers, key=lambda n: -len(plan.shards[n].records)))
        self.skip_bad = skip_bad
        self._digest = plan.digest  # once, and not in every process: it reads the whole listing
        self.num_at_a_time = min(num_at_a_time, max(1, len(self.numbers)))
        self.slots = {number: place % self.num_at_a_time for place, number in enumerate(self.numbers)}
        # A store takes whole files only, so what goes there is made in memory: before the pool forks.
        self._memory = [memory_file() for _ in range(self.num_at_a_time)] if isinstance(folder, Url) else []
        self._drafts: dict[int, Draft] = {}
        self._begun_ns: dict[int, int] = {}
        self._rows_of = -1, Rows(num_rows=0, image_shape=plan.image_shape, first_byte=0)
        self._opened = -1, -1
        self._changed: dict[tuple[int, int], bool] = {}
        self._told = struct.Struct(f"<q{2 * plan.image_shape[2]}Q{_REASON_BYTES}s")

    def __enter__(self) -> Filler:
        plan = self.plan
        try:  # before the pool forks
            todo = (number for number in self.numbers if not self.is_done(number))
            plan.source.prepare(record for number in todo for record in plan.shards[number].records)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._memory:
            os.close(descriptor)
        self._memory = []

    def is_done(self, number: int) -> bool:
        """Tell whether a shard stands there whole, as this run would write it."""
        metadata = finished_shard(self.plan, number, self.folder)
        # What an earlier run has skipped, this one must stop at, unless it was mended since: only reading it tells.
        return metadata is not None and (self.skip_bad or not metadata["skipped"]) and not self._has_changed(number)

    def is_outdated(self, number: int) -> bool:
        """Tell whether a shard stands there, of images that were changed since; see `changed_since`."""
        if isinstance(self.folder, Url):  # nothing is known of those: no header is read
            return False
        return finished_shard(self.plan, number, self.folder) is not None and self._has_changed(number)

    def _has_changed(self, number: int) -> bool:
        """Tell whether images of a finished shard were changed since."""
        shard = self.plan.shards[number]
        file = self.folder / shard.file
        if isinstance(file, Url):
            return False
        try:
            key = number, (made := file.stat()).st_mtime_ns
        except FileNotFoundError:  # another process has just published it, and this one is told so soon
            return False
        if key not in self._changed:  # asked for before the pool is forked, and again when its turn comes
            self._changed[key] = changed_since(self.plan.source, shard.records, made)
        return self._changed[key]

    def say_what_stands(self) -> None:
        """Say on standard error what an earlier run has left for this one."""
        outdated = sum(self.is_outdated(number) for number in self.numbers)
        done = sum(each(self.is_done, self.numbers, self.folder))
        anew = f", and {outdated:,} are written anew, since their images have changed" if outdated else ""
        if done or outdated:
            print(f"note: {done:,} of {len(self.numbers):,} shards stand already{anew}", file=sys.stderr)

    def path(self, number: int, row: int) -> str:
        """Return the path of one sample."""
        return self.plan.shards[number].records[row].path

    def begin(self, number: int) -> None:
        """Make the file of a shard, before the pool works on it.

        Raises:
            DatasetError: it cannot be made, or another process writes it.
        """
        file = self.folder / self.plan.shards[number].file
        if isinstance(file, Url):
            return
        try:
            self._drafts[number] = draft = Draft(file)
            self._begun_ns[number] = os.fstat(draft.descriptor).st_mtime_ns
        except OSError as e:
            raise unwritten(file, e) from e

    def __call__(self, number: int, row: int) -> bytes:
        """Decode one sample into its row; return what is to be told of it.

        Raises:
            DecodeError: it is bad, where these are not skipped; or this machine could not read it.
            DatasetError: the disk is full.
        """
        plan, shard = self.plan, self.plan.shards[number]
        try:
            image_HWC = read_image(plan.source, shard.records[row], plan)
        except DecodeError as e:
            reason = reason_to_skip(e).encode("utf-8", "replace")[:_REASON_BYTES]  # raises where it is no bad image
            if not self.skip_bad:
                raise
            return self._told.pack(len(reason), *(0,) * 2 * plan.image_shape[2], reason)
        try:
            self._rows(number).write(self._descriptor(number), row, image_HWC)
        except OSError as e:
            raise unwritten(self.folder / shard.file, e) from e
        return self._told.pack(0, *_moments(image_HWC), b"")

    def finish(self, number: int, told: bytes) -> str:
        """Make a whole shard of what the pool has written, bad rows left out; return SHA-256 (hex) of the file.

        Raises:
            DatasetError: it cannot be written.
        """
        shard, channels = self.plan.shards[number], self.plan.image_shape[2]
        kinds = [("length", "<i8"), ("moments", "<u8", (2, channels)), ("reason", f"S{_REASON_BYTES}")]
        rows = np.frombuffer(told, np.dtype(kinds))
        good = np.flatnonzero(rows["length"] == 0).tolist()
        # Whole numbers, so that mean and std do not depend on the order of adding.
        total = rows["moments"].sum(0)
        skipped = [
            {"path": shard.records[row].path, "reason": rows["reason"][row].decode("utf-8", "replace")}
            for row in np.flatnonzero(rows["length"])
        ]
        label = np.array([shard.records[row].label for row in good], np.int64)
        metadata = self._metadata(skipped, total.tolist())
        file = self.folder / shard.file
        draft = self._drafts.pop(number, None)
        try:
            if isinstance(file, Url):
                descriptor = self._memory[self.slots[number]]
                self._rows(number).finish(descriptor, good, label, metadata)
                sha256 = send(descriptor, file)
                os.ftruncate(descriptor, 0)
                return sha256
            assert draft is not None
            self._rows(number).finish(draft.descriptor, good, label, metadata)
            # Not of now: an image that was changed after it was read has to be newer than its shard.
            os.utime(draft.descriptor, ns=(self._begun_ns[number],) * 2)
            return publish(draft)
        except OSError as e:
            raise unwritten(file, e) from e
        finally:
            if draft is not None:
                draft.discard()

    def close(self) -> None:
        """Take away the files of the shards that were begun and not finished."""
        for number in list(self._drafts):
            self._drafts.pop(number).discard()

    def _metadata(self, skipped: list[dict[str, str]], total: list[list[int]]) -> dict[str, Any]:
        return {"plan": self._digest, "skipped": skipped, "sum": total[0], "square": total[1]}

    def _rows(self, number: int) -> Rows:
        """Return where the rows of a shard lie: the same in every process."""
        of, rows = self._rows_of
        if of != number:
            num_rows, shape = len(self.plan.shards[number].records), self.plan.image_shape
            grey = [[num_rows * math.prod(shape[:2]) * value] * shape[2] for value in (128, 128**2)]
            rows = Rows.behind(self._metadata([], grey), num_rows, shape)
            self._rows_of = number, rows
        return rows

    def _descriptor(self, number: int) -> int:
        """Return the file of a shard, which this process opens once for all rows that it writes."""
        if self._memory:
            return self._memory[self.slots[number]]
        if (draft := self._drafts.get(number)) is not None:  # a thread of the process that made it
            return draft.descriptor
        of, descriptor = self._opened
        if of != number:
            if descriptor >= 0:
                os.close(descriptor)
            file = self.folder / self.plan.shards[number].file
            assert isinstance(file, Path)
            self._opened = -1, -1
            descriptor = os.open(draft_path(file), os.O_WRONLY)
            self._opened = number, descriptor
        return descriptor


def finished_shard(plan: Plan, number: int, folder: Place) -> dict[str, Any] | None:
    """Return the metadata of a shard that stands there whole and belongs to this plan, else None."""
    metadata = read_shard_metadata(folder / plan.shards[number].file)
    return metadata if metadata is not None and metadata.get("plan") == plan.digest else None


def finished_shards(plan: Plan, folder: Place) -> list[dict[str, Any] | None]:
    """Return what `finished_shard` says of every shard; at a URL, several are asked for at a time."""
    return list(each(lambda number: finished_shard(plan, number, folder), range(len(plan.shards)), folder))


def changed_since(source: Source, records: Iterable[Record], made: os.stat_result) -> bool:
    """Tell whether what holds these records may have changed since it was read; in doubt it has.

    By the times of their files, and of the folders and links that lead to them. Nothing is known of a URL, nor of
    what only a library can read.

    Args:
        source, records: what was read.
        made: of the file that was made of it: its time is that before the first of them was read.
    """
    files = {str(file.absolute()) for record in records if isinstance(file := source.file_of(record), Path)}
    root = str(source.root.absolute())
    folders = {root} if files else set()
    for path in files:
        while (path := os.path.dirname(path)) not in folders and path.startswith(f"{root}/"):  # noqa: PTH120
            folders.add(path)
    try:
        return any(_newest_ns(path, made) >= made.st_mtime_ns for path in (*files, *folders))
    except OSError:  # gone: whoever reads it says so
        return True


def _newest_ns(path: str, made: os.stat_result) -> int:
    """Return when what `path` leads to was changed or put there, on the clock of `made`."""
    status = os.lstat(path)
    newest = max(status.st_mtime_ns, status.st_ctime_ns)
    if stat.S_ISLNK(status.st_mode):
        status = os.stat(path)  # noqa: PTH116
        newest = max(newest, _newest_of(status))
    elif stat.S_ISDIR(status.st_mode):
        newest = _newest_of(status)
    # Another file system may have another clock, or tell whole seconds.
    return newest if status.st_dev == made.st_dev else newest + OTHER_CLOCK_NS


def _newest_of(status: os.stat_result) -> int:
    # What comes and goes in a folder changes both its times, and is the plan's affair; its own new name, one of them.
    if stat.S_ISDIR(status.st_mode) and status.st_ctime_ns == status.st_mtime_ns:
        return 0
    return max(status.st_mtime_ns, status.st_ctime_ns)


def convert_shards(filler: Filler, pool: Pool, advance: Callable[[int], object]) -> dict[str, str]:
    """Write the shards of `filler`, unless they already stand there whole. Idempotent.

    Each is flushed to the disk while the pool decodes the next ones.

    Returns:
        SHA-256 (hex) of each file that was written now.

    Raises:
        DecodeError: a bad image, where these are not skipped.
        DatasetError: a shard cannot be written.
    """
    plan = filler.plan
    writing: dict[int, tuple[str, Future[str]]] = {}
    digests: dict[str, str] = {}

    def finish(slot: int) -> None:
        if slot in writing:
            name, task = writing.pop(slot)
            digests[name] = task.result()

    num_writers = max(1, filler.num_at_a_time - 1)
    with (
        closing(filler),  # after the threads, which may be finishing a shard
        ThreadPoolExecutor(num_writers, thread_name_prefix="fastload-write") as writers,
    ):
        for number in filler.numbers:
            shard, slot = plan.shards[number], filler.slots[number]
            if filler.is_done(number):
                advance(len(shard.records))
                continue
            finish(slot)
            filler.begin(number)
            told = b"".join(pool.run(number, len(shard.records), advance))
            writing[slot] = shard.file, writers.submit(filler.finish, number, told)
        for slot in list(writing):
            finish(slot)
    return digests


def num_writers(workers: int) -> int:
    """Return how many shards to write at a time: one for four processes that decode, a rule of thumb."""
    return -(-workers // 4)


def _moments(image_HWC: npt.NDArray[np.uint8]) -> list[int]:
    """Return the sums of all channels, then their sums of squares, exact."""
    height, width, channels = image_HWC.shape
    moments = np.zeros((2, channels), np.uint64)
    added = np.empty((2, width * channels), np.float32)
    # Down the rows first: numpy adds long contiguous rows an order of magnitude faster than groups of 3. In
    # float32, the fastest, and exact: 256 squares of at most 255 stay below 2**24.
    for first in range(0, height, 256):
        rows = image_HWC[first : first + 256].reshape(-1, width * channels).astype(np.float32)
        np.add.reduce(rows, 0, out=added[0])
        np.einsum("ij,ij->j", rows, rows, out=added[1])
        moments += added.astype(np.uint64).reshape(2, width, channels).sum(1)
    found: list[int] = moments.ravel().tolist()
    return found
