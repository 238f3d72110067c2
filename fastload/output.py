"""Where a conversion writes: `OUT.partial/`, which is renamed to `OUT` when it is whole; at a URL, `OUT` itself.

A run that was killed leaves no dataset, and the same command again goes on with the shards that already
stand there. One process holds the folder alone, or the tasks of one conversion hold it together. A store knows
neither renaming nor locks: there a dataset is whole when its manifest stands, which is written last, and two
converters with the same plan write the same bytes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastload.errors import DatasetError, printable
from fastload.files import is_same_file, lock, sync
from fastload.places import Place, exists
from fastload.urls import Url

LOCK_NAME = ".lock"
_HOLDER_BYTES = 200


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
        descriptor = -1
        try:
            if isinstance(self.folder, Url):
                self.folder.make_folder()
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                descriptor = _lock(self.folder, shared)
        except BlockingIOError as e:
            raise DatasetError(
                f"{printable(self.folder)} is being written by {printable(e.args[1])}; "
                "wait for it, or pass another output path."
            ) from None
        except OSError as e:
            raise DatasetError(
                f"{printable(self.folder)} cannot be made ({e.strerror}); pass an output path that can be written."
            ) from e
        if isinstance(self.folder, Url):
            yield self.folder
            return
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
            # Whoever waits at the door now finds a folder that is gone, or makes an empty one.
            (self.folder / LOCK_NAME).unlink(missing_ok=True)
            self.folder.rename(self.path)
        except OSError as e:
            raise DatasetError(
                f"{printable(self.path)} cannot be written ({e.strerror}); pass another output path."
            ) from e
        sync(self.path.parent)


def _lock(folder: Path, shared: bool) -> int:
    """Return the open lock file; BlockingIOError carries who holds it."""
    # A file, not the folder itself: NFS locks only what is open for writing.
    file = folder / LOCK_NAME
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
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
            raise BlockingIOError(e.errno, holder.decode("utf-8", "replace") or "another process") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        folder.mkdir(parents=True, exist_ok=True)


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
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    (folder / LOCK_NAME).unlink(missing_ok=True)
    with suppress(OSError):  # not empty: there is something to resume
        folder.rmdir()
