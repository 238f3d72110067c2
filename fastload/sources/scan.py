"""Listing folders: without a stat per file, through links without going round, hidden files left out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from fastload.errors import SourceError, printable

# By name only: opening two million files to list them would take longer than converting most sets.
# Whether a file is an image is decided by its content, when it is decoded.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


def has_image_suffix(name: str) -> bool:
    """Tell whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders right under `folder`, sorted."""
    return sorted(entry.name for entry in _entries(folder) if _is_folder(entry))


def files_in(folder: Path) -> list[str]:
    """Return the names of the files right under `folder`, sorted."""
    return sorted(entry.name for entry in _entries(folder) if is_file(entry))


def walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield (path relative to `folder`, whether its name is an image's) of every file below it.

    Pipes, sockets and devices are never images: reading one could hang. A link that leads nowhere is
    yielded, so that its loss is told when it is read.

    Raises:
        SourceError: a folder cannot be listed.
    """
    # Each real folder is entered once, or links among N folders would give N! paths. Links come last and
    # in the order of their names, so that which path a folder is found by does not depend on the file system.
    # The folders above count as entered: a link to one of them would give every image this folder's label.
    seen = {_stat(above) for above in folder.absolute().parents}
    folders, links = deque([""]), list[str]()
    while folders or links:
        if not folders:
            links.sort(reverse=True)
            folders.append(links.pop())
        relative = folders.popleft()
        here = folder / relative if relative else folder
        status = _stat(here)
        if status in seen:
            continue
        seen.add(status)
        prefix = f"{relative}/" if relative else ""
        for entry in _entries(here):
            if not _is_folder(entry):
                yield prefix + entry.name, has_image_suffix(entry.name) and is_file(entry)
            elif entry.is_symlink():
                links.append(prefix + entry.name)
            else:
                folders.append(prefix + entry.name)


def has_image(folder: Path) -> bool:
    """Tell whether a file below `folder` is an image by its name."""
    return any(is_image for _, is_image in walk(folder))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder that is closed to us
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a file, or a link that leads nowhere: its loss is told when it is read."""
    # The kind comes with the listing; only a link costs a stat.
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry))  # noqa: PTH110
    except OSError:
        return True


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as e:
        raise _unlisted(folder, e) from e


def _stat(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as e:
        raise _unlisted(folder, e) from e
    return status.st_dev, status.st_ino


def _unlisted(folder: Path, e: OSError) -> SourceError:
    return SourceError(f"{printable(folder)}: cannot be listed ({e.strerror}); check its permissions.")
