"""URLs: files and folders that fsspec reaches, with the part of pathlib.Path's face that sources use.

A `Url` holds texts and nothing else: an open filesystem must not cross a fork (its event loop runs in a thread that
the child does not have), nor be sent to another machine, so every process asks fsspec for its own, which keeps one for
each. universal-pathlib's UPath would do all this but for two things: it keeps the filesystem it first used, and it
reads `://`, `::` and a leading `/` in a name as an address, while names come from data.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from fastload.errors import ConfigError, FastloadError, SourceError, printable

# simplecache::s3://bucket/folder, too: fsspec chains filesystems with "::".
_URL = re.compile(r"(?:[a-z0-9_+.-]+::)*([a-z0-9_+.-]+)://", re.IGNORECASE)
_CODES = {
    PermissionError: errno.EACCES,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    TimeoutError: errno.ETIMEDOUT,
}

# Read ahead of whoever reads a file from its start; s3fs alone would take 50 MB, and for each thread.
BLOCK_BYTES = 4 << 20
# Sent at a time: a store takes at most 10,000 parts.
WRITE_BYTES = 16 << 20


def is_url(text: str) -> bool:
    """Tell whether `text` begins like a URL; `Path` would make one slash of its two."""
    return _URL.match(text) is not None


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a remote folder, with the face of os.DirEntry. Nobody follows links there."""

    name: str
    kind: str

    def is_dir(self) -> bool:
        """Tell whether it is a folder."""
        return self.kind == "directory"

    def is_file(self) -> bool:
        """Tell whether it is a file."""
        return self.kind == "file"

    def is_symlink(self) -> bool:
        """Say no."""
        return False

    def __fspath__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Url:
    """A file or folder that fsspec reaches, with the part of pathlib.Path's face that sources use.

    Errors of whatever kind that come from a remote are OSErrors with a `strerror`, as those of a disk are.

    Attributes:
        origin: the URL that somebody passed: what the filesystem is made from.
        base: its path, as the filesystem writes it, without a slash at its end.
        path: this one's path.
    """

    origin: str
    base: str
    path: str

    def __str__(self) -> str:
        links = self.origin.split("::")
        which = next(i for i, link in enumerate(links) if "://" in link)
        text = links[which].rstrip("/")
        protocol = _protocol(self.origin)
        if self.path.startswith(self.base):
            text += self.path[len(self.base) :]
        elif self.base.startswith(self.path) and text.endswith(self.base):
            text = text[: len(text) - len(self.base) + len(self.path)].rstrip("/")
        else:
            text = ""
        links[which] = text if "://" in text else f"{protocol}://{self.path.lstrip('/')}"
        return "::".join(links)

    def __truediv__(self, relative: str) -> Url:
        # Part by part: no part of a name out of data may be taken for an address.
        place = self
        for part in relative.split("/"):
            if part == "..":
                place = place.parent
            elif part not in ("", "."):
                head = f"{place.path}/" if place.path else str(self.filesystem.root_marker)
                place = Url(origin=self.origin, base=self.base, path=head + part)
        return place

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem, this process's own: never keep it where a fork could see it."""
        return open_filesystem(self.origin)[0]

    @property
    def name(self) -> str:
        """The last part of the path, or of the URL where it has none."""
        return self.path.rpartition("/")[2] or _protocol(self.origin)

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The last `.` of the name and what follows."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Url:
        """The folder this is in; of a bucket, itself."""
        head, slash, _ = self.path.rpartition("/")
        top = not slash or ("://" in self.path and "://" not in head)
        return self if top else Url(origin=self.origin, base=self.base, path=head)

    def absolute(self) -> Url:
        """Return this: a URL is no other from anywhere else."""
        return self

    def resolve(self) -> Url:
        """Return this."""
        return self

    def exists(self) -> bool:
        """Tell whether there is anything; see `is_file`."""
        return self._kind() is not None

    def is_dir(self) -> bool:
        """Tell whether it is a folder; see `is_file`."""
        return self._kind() == "directory"

    def is_file(self) -> bool:
        """Tell whether it is a file.

        Raises:
            SourceError: the remote does not say.
        """
        return self._kind() == "file"

    def entries(self) -> list[Entry]:
        """Return what is in the folder, in one request per thousand or so.

        Raises:
            OSError: it cannot be listed.
        """
        with _told():
            found = self.filesystem.ls(self.path, detail=True)
        entries = []
        for about in found:
            # Only what lies right in here: a store lists a folder's own marker with it, a web page names any place.
            folder, _, name = str(about["name"]).rstrip("/").rpartition("/")
            if folder == self.path and name not in ("", ".", ".."):
                entries.append(Entry(name=name, kind=str(about["type"])))
        return entries

    def read_bytes(self) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: it cannot be read.
        """
        with _told():
            return bytes(self.filesystem.cat_file(self.path))

    def read_range(self, first: int, num_bytes: int) -> bytes:
        """Return `num_bytes` bytes from `first` on, or fewer where the file ends.

        Raises:
            OSError: they cannot be read.
        """
        if num_bytes == 0:  # no range can say that
            return b""
        with _told():
            data = bytes(self.filesystem.cat_file(self.path, start=first, end=first + num_bytes))
        if len(data) > num_bytes:  # a plain web server: every sample would cost a whole archive
            raise OSError(errno.EOPNOTSUPP, "the server gives whole files only, no parts of them")
        return data

    def num_bytes(self) -> int:
        """Return the size of a file.

        Raises:
            OSError: it cannot be asked for.
        """
        with _told():
            return int(self.filesystem.info(self.path)["size"])

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open a file for reading; it can be seeked in.

        Raises:
            OSError: it cannot be opened, or later read.
        """
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: places are read as bytes")
        with _told():
            return io.BufferedReader(_Raw(self.filesystem.open(self.path, "rb", block_size=BLOCK_BYTES)))

    def make_folder(self) -> None:
        """Make this folder where it is none; on a store, which has no folders, ask whether its bucket is there.

        Raises:
            OSError: it cannot be made.
        """
        if not self.exists():
            with _told():
                # Not makedirs: on a store that would make a bucket where one was misspelt.
                self.filesystem.mkdir(self.path, create_parents=False)

    def write(self, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file whole or not at all: it appears when all of it has arrived.

        Raises:
            OSError: it cannot be written, or the remote holds another number of bytes afterwards.
        """
        num_bytes = 0
        with _told():
            # Of its own, since a transaction belongs to the filesystem and several threads may write.
            filesystem, _ = open_filesystem(self.origin, skip_instance_cache=True)
            # Within a transaction, files of stores and of memory stay unseen until it ends well.
            with filesystem.transaction, filesystem.open(self.path, "wb", block_size=WRITE_BYTES) as opened:
                for part in parts:
                    opened.write(part)
                    num_bytes += len(part)
            filesystem.invalidate_cache()
            found = int(filesystem.info(self.path)["size"])
        if found != num_bytes:
            raise OSError(errno.EIO, f"{num_bytes:,} bytes were sent, and {found:,} arrived")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file.

        Raises:
            OSError: it cannot be removed.
        """
        try:
            with _told():
                self.filesystem.rm_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def _kind(self) -> str | None:
        try:
            with _told():
                return str(self.filesystem.info(self.path)["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise SourceError(
                f"{printable(self)}: cannot be read ({printable(e.strerror)}); "
                "check the address, and that you may read there."
            ) from e


class _Raw(io.RawIOBase):
    """What fsspec opened, with its errors told as OSErrors: its files are read long after they were opened."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _told():
            data = self._opened.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with _told():
            return int(self._opened.seek(offset, whence))

    def tell(self) -> int:
        return int(self._opened.tell())

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()


@contextmanager
def _told() -> Iterator[None]:
    """Turn whatever a remote raises into an OSError with a sentence in it."""
    try:
        yield
    except FastloadError:
        raise
    except OSError as e:
        if isinstance(e, FileNotFoundError):  # what it says may be the path alone
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from e
        # OSError makes itself a PermissionError, or whatever the number says.
        code = next((code for kind, code in _CODES.items() if isinstance(e, kind)), e.errno or errno.EIO)
        raise OSError(code, _sentence(e.strerror or str(e)) or os.strerror(code)) from e
    except Exception as e:  # a library may raise anything
        raise OSError(errno.EIO, f"{type(e).__name__}: {_sentence(str(e))}".rstrip(": ")) from e


def _sentence(text: str) -> str:
    return text.strip().partition("\n")[0][:240].rstrip(". ")


def _protocol(url: str) -> str:
    match = _URL.match(url)
    return match[1].lower() if match is not None else ""


def open_filesystem(url: str, **options: Any) -> tuple[Any, str]:
    """Return (fsspec's filesystem for `url`, the path in it). Cached by fsspec, for each process anew."""
    import fsspec

    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **options))
    except ImportError as e:
        # fsspec's own sentence hides the name of what it missed in its cause.
        cause = e.__cause__ if isinstance(e.__cause__, ImportError) else e
        package = (cause.name or "").partition(".")[0]
        command = f"pip install {package}" if package else _sentence(str(e))
        raise ConfigError(f"{printable(url)} needs {package or 'a package'}, which is not installed: {command}") from e
    except FastloadError:
        raise
    except Exception as e:  # a library may raise anything
        raise ConfigError(f"{printable(url)} cannot be opened ({printable(_sentence(str(e)))}); check the URL.") from e
