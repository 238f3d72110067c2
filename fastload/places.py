"""Places: local paths and URLs, behind the few things that conversion wants of either.

A local path stays a `pathlib.Path`, and a URL becomes a `Url`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fastload.errors import ConfigError, FastloadError, printable
from fastload.urls import Url, is_url, open_filesystem

Place = Path | Url
T = TypeVar("T")
R = TypeVar("R")

_LOCAL = ("file://", "local://")

# Calls at a time, each of which waits for an answer: about what hides 50 ms of latency, and no store minds.
NUM_WAITING = 16


def local_path(text: str) -> str | None:
    """Return the path on this machine that `text` is, or None where it is the URL of anything but that."""
    for start in _LOCAL:
        if text.lower().startswith(start):
            return text[len(start) :]
    return None if is_url(text) else text


def as_place(place: str | Path | Url) -> Place:
    """Return what `place` stands for: a Path, also for `file://`, or a Url.

    A universal-pathlib UPath is taken as the URL it prints.

    Raises:
        ConfigError: fsspec knows no such protocol, or the package that speaks it is not installed.
    """
    if isinstance(place, Path | Url):
        return place
    if getattr(place, "storage_options", None):
        raise ConfigError(
            f"{printable(place)} carries options, which other processes would not have; give them by fsspec's "
            "configuration (a file in ~/.config/fsspec, or variables like FSSPEC_S3_ENDPOINT_URL) and pass the URL."
        )
    text = str(place)
    if not text:  # "$DATA" where it is not set: Path would make the folder one is in of it
        raise ConfigError("an empty text is no path; pass one, or . for this folder.")
    if (local := local_path(text)) is not None:
        return Path(local)
    base = open_filesystem(text)[1].rstrip("/")
    return Url(origin=text, base=base, path=base)


def exists(place: Place, error: type[FastloadError]) -> bool:
    """Tell whether there is anything at `place`; raise `error` where the system does not say."""
    try:
        return place.exists()
    except OSError as e:  # a folder above it that may not be entered, or too long a name
        raise error(
            f"{printable(place)} cannot be looked at ({e.strerror}); check the path and its permissions."
        ) from e


def join(root: Place, path: str) -> Place:
    """Return where a record's `path` lies: below `root`, or where it says itself if it is a URL or starts with `/`.

    Only a list can name such a path, and only where leading out of its root was allowed.
    """
    if is_url(path):
        return as_place(path)
    return Path(path) if path.startswith("/") else root / path


def read_bytes(root: Place, path: str) -> bytes:
    """Return the content of a record's file; see `join`.

    Raises:
        OSError: it cannot be read.
    """
    if not isinstance(root, Path) or "://" in path:
        return join(root, path).read_bytes()
    # Of a thousand small files, pathlib and io take twice the time that the system takes to read them.
    descriptor = os.open(path if path.startswith("/") else f"{root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A byte more than it has: less than asked for is the end of a file.
        size = os.fstat(descriptor).st_size + 1
        data = os.read(descriptor, size)
        if len(data) != size - 1:  # it grew, or is a pipe, or a network file system answers in parts
            data = b"".join([data, *iter(lambda: os.read(descriptor, 1 << 20), b"")])
    finally:
        os.close(descriptor)
    return data


def each(function: Callable[[T], R], items: Sequence[T], root: Place) -> Iterator[R]:
    """Yield `function(item)` of all items in order; where `root` is a URL, several wait for their answers at a time."""
    if isinstance(root, Path):
        yield from map(function, items)
        return
    with ThreadPoolExecutor(NUM_WAITING, thread_name_prefix="fastload-remote") as threads:
        yield from threads.map(function, items)


@contextmanager
def fresh_listings(root: Place) -> Iterator[None]:
    """Within this, a remote folder is asked for once; what it held before is forgotten, and afterwards again.

    Filesystems like s3fs keep every listing, 1 KB a file, and would not see what was added since.
    """
    if isinstance(root, Path):
        yield
        return
    root.filesystem.invalidate_cache()
    try:
        yield
    finally:
        root.filesystem.invalidate_cache()


def num_bytes_of(place: Place) -> int:
    """Return the size of a file.

    Raises:
        OSError: it cannot be asked for.
    """
    if isinstance(place, Path):
        return place.stat().st_size
    return place.num_bytes()


def files_in(place: Place, suffix: str) -> list[str]:
    """Return the names of the files right in a folder that end with `suffix`, sorted; none where it does not exist.

    Raises:
        OSError: it cannot be listed.
    """
    try:
        names = [p.name for p in place.iterdir()] if isinstance(place, Path) else [e.name for e in place.entries()]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if name.endswith(suffix))
