"""Where a conversion writes: `OUT.partial/`, which is renamed to `OUT` when it is whole; at a URL, `OUT` itself.

A run that was killed leaves no dataset, and the same command again goes on with the shards that already
stand there. One process holds the folder alone, or the tasks of one conversion hold it together. A store knows
neither renaming nor locks: there a dataset is whole when its manifest stands, which is written last, and two
converters with the same plan write the same bytes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastload.errors import DatasetError, printable
from fastload.files import is_same_file, lock, sync
from fastload.places import Place, exists
from fastload.urls import Url

LOCK_NAME = ".lock"
_HOLDER_BYTES = 200
TIDY_SECONDS = 2.0  # to wait for a task that leaves: alone while it tidies up, it is no other conversion


class Output:
    """The place of a dataset that is being written.

    Args:
        path: what the dataset will be called.
        whole: the file that stands in every whole dataset.

    Attributes:
        path: the same.
        folder: where its files are written.
    """

    def __init__(self, path: Place, whole: str) -> None:
        if isinstance(path, Path) and path.name in ("", ".."):
            raise DatasetError(f"{printable(path)} exists; pass another output path, e.g. data.fastload.")
        self.path = path
        self.whole = whole
        self.folder = path if isinstance(path, Url) else path.with_name(path.name + ".partial")

    def refuse_existing(self) -> None:
        """Raise DatasetError where the name is taken: before a long listing, not after it."""
        if isinstance(self.path, Url):
            taken = exists(self.path / self.whole, DatasetError)
        else:
            taken = exists(self.path, DatasetError) or self.path.is_symlink()
        if not taken:
            return
        shown = printable(self.path)
        if exists(self.path / self.whole, DatasetError):
            raise DatasetError(f"{shown} exists; pass another output path, or delete it first.")
        # Somebody's photographs, perhaps: a second folder, or what a shell made of {train,val}.tar.
        pattern = " (quote a pattern of tars)" if self.path.name.endswith(".tar") else ""
        raise DatasetError(
            f"{shown} exists and is no dataset of fastload, and the second path is what is written{pattern}; "
            "pass one that is free, e.g. data.fastload."
        )

    @contextmanager
    def held(self, *, shared: bool = False) -> Iterator[Place]:
        """Hold `folder`, alone or together with others; leave it behind only where it has something to resume.

        Raises:
            DatasetError: another process holds it or has published it, or it cannot be made.
        """
        if isinstance(self.folder, Url):
            try:
                self.folder.make_folder()
            except OSError as e:
                raise _unmade(self.folder, e) from e
            yield self.folder
            return
        descriptor = _take(self.folder, shared)
        try:
            self.refuse_existing()  # another process may have published while this one listed, or waited to begin
            yield self.folder
        finally:
            try:
                _tidy(self.folder, descriptor, shared)
            finally:
                os.close(descriptor)

    def publish(self) -> None:
        """Give the folder, which this process holds alone and in which everything stands, its name."""
        if isinstance(self.path, Url) or isinstance(self.folder, Url):
            return
        try:
            _sweep(self.folder)  # what a killed run with other shards left would become part of the dataset
            # Whoever waits at the door now finds a folder that is gone, or makes an empty one.
            (self.folder / LOCK_NAME).unlink(missing_ok=True)
            self.folder.rename(self.path)
        except OSError as e:
            raise DatasetError(
                f"{printable(self.path)} cannot be written ({e.strerror}); pass another output path."
            ) from e
        sync(self.path.parent)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder that is written in place; make it where there is none, take it away where nothing is in it then.

    Raises:
        DatasetError: another process holds it, or it cannot be made.
    """
    descriptor = _take(folder, shared=False)
    try:
        yield
    finally:
        try:
            if is_same_file(descriptor, folder / LOCK_NAME):
                _leave(folder)
        finally:
            os.close(descriptor)


def _take(folder: Path, shared: bool) -> int:
    try:
        return _lock(folder, shared)
    except BlockingIOError as e:
        raise DatasetError(
            f"{printable(folder)} is being written by {printable(e.args[1])}; wait for it, or pass another output path."
        ) from None
    except OSError as e:
        raise _unmade(folder, e) from e


def _unmade(folder: Place, e: OSError) -> DatasetError:
    return DatasetError(f"{printable(folder)} cannot be made ({e.strerror}); pass an output path that can be written.")


def _lock(folder: Path, shared: bool) -> int:
    """Return the open lock file; BlockingIOError carries who holds it."""
    # A file, not the folder itself: NFS locks only what is open for writing.
    file = folder / LOCK_NAME
    give_up = time.monotonic() + TIDY_SECONDS
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # not yet made, or its last holder has just taken it away
            if time.monotonic() > give_up:  # nor can it be: a link leads nowhere
                raise
            _make(folder)
            continue
        try:
            lock(descriptor, shared=shared)
            if is_same_file(descriptor, file):  # else its last holder has taken it away meanwhile
                holder = f"process {os.getpid()} on {socket.gethostname()}".encode()[:_HOLDER_BYTES]
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, holder, 0)
                return descriptor
        except BlockingIOError as e:
            holder = os.pread(descriptor, _HOLDER_BYTES, 0)
            os.close(descriptor)
            if shared and time.monotonic() < give_up:
                time.sleep(0.02)
                continue
            raise BlockingIOError(e.errno, holder.decode("utf-8", "replace") or "another process") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if folder.exists() or folder.is_symlink():  # else it was another's, which is gone by now
            raise


def _tidy(folder: Path, descriptor: int, shared: bool) -> None:
    # Published, or another process's by now.
    if not is_same_file(descriptor, folder / LOCK_NAME):
        return
    if shared:
        try:
            if not lock(descriptor):  # the last of several tidies up
                return
        except BlockingIOError:
            return
    _sweep(folder)
    _leave(folder)


def _sweep(folder: Path) -> None:
    """Take away what killed runs were at: nobody else is here."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _leave(folder: Path) -> None:
    (folder / LOCK_NAME).unlink(missing_ok=True)
    with suppress(OSError):  # not empty: there is something to resume
        folder.rmdir()
