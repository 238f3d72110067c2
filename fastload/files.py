"""Writing files whole or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fastload.errors import ConfigError, printable
from fastload.places import Place
from fastload.urls import Url

Part = bytes | memoryview
_BLOCK_BYTES = 1 << 18  # in the nearer caches: 0.02 ms per 256 px image beside 0.12 of SHA-256


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(file: Place, text: str) -> None:
    """Write a text file whole or not at all; lone surrogates are the bytes of a path that is no UTF-8."""
    write_whole(file, [text.encode("utf-8", "surrogateescape")])


def write_table(file: Place, head: Sequence[str], rows: Iterable[tuple[object, ...]]) -> None:
    """Write a table as CSV, whole or not at all; OSError where it cannot be written."""

    def lines() -> Iterator[bytes]:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        for row in itertools.chain([head], rows):
            # Python before 3.13 quotes no carriage return, unless it is in what ends a line.
            if any("\r" in cell for cell in row if isinstance(cell, str)):
                quoted = io.StringIO(newline="")
                csv.writer(quoted).writerow(row)
                text.write(quoted.getvalue().removesuffix("\r\n") + "\n")
            else:
                table.writerow(row)
            if text.tell() >= 1 << 20:
                yield _taken(text)
        yield _taken(text)

    write_whole(file, lines())


@contextmanager
def writing(file: Place) -> Iterator[None]:
    """Say in one sentence why a result could not be written that somebody chose the place of.

    Raises:
        ConfigError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as e:
        raise ConfigError(
            f"{printable(file)} cannot be written ({printable(e.strerror or e)}); make room or pass another path."
        ) from e


def write_whole(file: Place, parts: Iterable[Part]) -> None:
    """Write `parts` to a temporary file beside `file`, flush it, and give it its name; at a URL, send them.

    Raises:
        BlockingIOError: another process is writing this file.
        OSError: the disk is full, or the folder cannot be written; nothing is left.
    """
    if isinstance(file, Url):
        file.write(parts)
        return
    draft = Draft(file)
    try:
        with open(draft.descriptor, "wb", closefd=False) as opened:
            for part in parts:
                opened.write(part)
        draft.publish()
    except BaseException:
        draft.discard()
        raise


class Draft:
    """A file under a temporary name beside its own, which it gets when it is whole.

    Args:
        file: what it will be called.

    Attributes:
        descriptor: the file, empty, open for reading and writing, and locked.

    Raises:
        BlockingIOError: another process is writing this file.
        OSError: the folder cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.descriptor = _new_locked(draft_path(file))

    def publish(self, *, flushed: bool = False) -> None:
        """Flush it to the disk, unless it is, and give it its name; OSError where that fails, and `discard` is due."""
        if not flushed:
            os.fsync(self.descriptor)
        if not is_same_file(self.descriptor, draft_path(self.file)):  # on a file system that knows no locks
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        draft_path(self.file).replace(self.file)
        self._close()
        sync(self.file.parent)

    def discard(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):
            if is_same_file(self.descriptor, draft_path(self.file)):
                draft_path(self.file).unlink()
        self._close()

    def _close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def draft_path(file: Path) -> Path:
    """Return the name of a file while it is written: a fixed one, so that what killed runs leave never piles up."""
    return file.with_name(f".{file.name}.tmp")


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; OSError where the disk is full."""
    rest = memoryview(data)
    while rest:
        num_written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[num_written:], offset + num_written


def blocks_of(descriptor: int) -> Iterator[bytes]:
    """Yield the content of an open file from its start."""
    # Not mapped: a disk that fails would kill the process, where reading says so.
    offset = 0
    while block := os.pread(descriptor, _BLOCK_BYTES, offset):
        yield block
        offset += len(block)


def lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file for as long as it stays open; return False where the file system knows no locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False  # Lustre without -o flock, NFS without lockd
    return True


def is_same_file(descriptor: int, path: Path) -> bool:
    """Tell whether `path` still names the file that is open as `descriptor`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _taken(text: io.StringIO) -> bytes:
    data = text.getvalue().encode("utf-8", "surrogateescape")
    text.seek(0)
    text.truncate()
    return data


def _new_locked(temporary: Path) -> int:
    """Return the descriptor of a new file, locked."""
    while True:
        try:
            descriptor, is_new = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                descriptor, is_new = os.open(temporary, os.O_RDWR), False
            except FileNotFoundError:
                continue
        try:
            lock(descriptor)
            # Between opening and locking, another process may have renamed this very file, or taken it away.
            if is_same_file(descriptor, temporary):
                if is_new:
                    return descriptor
                # A killed run's. Replaced, not overwritten: a process of it may still be at its last sample.
                temporary.unlink()
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
