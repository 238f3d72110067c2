"""Writing files whole or not at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fastload.places import Place, Url

Part = bytes | memoryview


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


def write_whole(file: Place, parts: Iterable[Part]) -> None:
    """Write `parts` to a temporary file beside `file`, flush it, and give it its name; at a URL, send them.

    Raises:
        BlockingIOError: another process is writing this file.
        OSError: the disk is full, or the folder cannot be written; nothing is left.
    """
    if isinstance(file, Url):
        file.write(parts)
        return
    # A fixed name, so that what a killed run left is overwritten and never piles up.
    with _locked(file.with_name(f".{file.name}.tmp")) as (temporary, opened):
        try:
            opened.truncate(0)
            for part in parts:
                opened.write(part)
            opened.flush()
            os.fsync(opened.fileno())
            temporary.replace(file)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    sync(file.parent)


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


@contextmanager
def _locked(temporary: Path) -> Iterator[tuple[Path, IO[Any]]]:
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "wb") as opened:  # noqa: PTH123 - a descriptor, not a path
            lock(descriptor)
            # Between opening and locking, another process may have finished this very file and renamed it.
            if is_same_file(descriptor, temporary):
                yield temporary, opened
                return
