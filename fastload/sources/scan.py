"""Listing folders: without a stat or request per file, through links without going round, hidden files left out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence

from fastload.errors import SourceError, printable
from fastload.places import Place, each
from fastload.urls import Entry, Url

# By name only: opening two million files to list them would take longer than converting most sets.
# Whether a file is an image is decided by its content, when it is decoded.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm",
     ".pbm"}
)  # fmt: skip
# Images that nothing here decodes: left out, but never without a word.
UNREAD_SUFFIXES = frozenset(
    {".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".tga", ".psd", ".exr", ".hdr", ".dng", ".cr2",
     ".cr3", ".nef", ".arw", ".raw", ".dcm"}
)  # fmt: skip


def has_image_suffix(name: str) -> bool:
    """Tell whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def folders_in(folder: Place) -> list[str]:
    """Return the names of the folders right under `folder`, sorted."""
    return sorted(entry.name for entry in _entries(folder) if _is_folder(entry))


def files_in(folder: Place) -> list[str]:
    """Return the names of the files right under `folder`, sorted."""
    return sorted(entry.name for entry in _entries(folder) if is_file(entry))


def walk(folder: Place) -> Iterator[tuple[str, bool]]:
    """Yield (path relative to `folder`, whether its name is an image's) of every file below it.

    Pipes, sockets and devices are never images: reading one could hang. A link that leads nowhere is
    yielded, so that its loss is told when it is read.

    Raises:
        SourceError: a folder cannot be listed.
    """
    # Each real folder is entered once, or links among N folders would give N! paths. Links come last and
    # in the order of their names, so that which path a folder is found by does not depend on the file system.
    # The folders above count as entered: a link to one of them would give every image this folder's label.
    # At a URL there are no links.
    seen = set() if isinstance(folder, Url) else {_identity(above) for above in folder.absolute().parents}
    folders, links = deque([""]), list[str]()
    while folders or links:
        if not folders:
            links.sort(reverse=True)
            folders.append(links.pop())
        relative = folders.popleft()
        here = folder / relative if relative else folder
        identity = _identity(here)
        if identity in seen:
            continue
        seen.add(identity)
        prefix = f"{relative}/" if relative else ""
        for entry in _entries(here):
            if not _is_folder(entry):
                yield prefix + entry.name, has_image_suffix(entry.name) and is_file(entry)
            elif entry.is_symlink():
                links.append(prefix + entry.name)
            else:
                folders.append(prefix + entry.name)


def walk_each(folders: Sequence[Place], root: Place) -> Iterator[list[tuple[str, bool]]]:
    """Yield what `walk` yields, of each of the folders below `root`."""
    return each(lambda folder: list(walk(folder)), folders, root)


def has_image(folder: Place) -> bool:
    """Tell whether a file below `folder` is an image by its name."""
    return any(is_image for _, is_image in walk(folder))


def _is_folder(entry: os.DirEntry[str] | Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder that is closed to us
        return False


def is_file(entry: os.DirEntry[str] | Entry) -> bool:
    """Tell whether an entry is a file, or a link that leads nowhere: its loss is told when it is read."""
    # The kind comes with the listing; only a link costs a stat.
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry))  # noqa: PTH110
    except OSError:
        return True


def all_entries(folder: Place) -> Sequence[os.DirEntry[str] | Entry]:
    """Return all that is right in `folder`, in no order, hidden files too.

    Raises:
        OSError: it cannot be listed.
    """
    if isinstance(folder, Url):
        return folder.entries()
    with os.scandir(folder) as entries:
        return list(entries)


def _entries(folder: Place) -> list[os.DirEntry[str] | Entry]:
    try:
        return [entry for entry in all_entries(folder) if not entry.name.startswith(".")]
    except OSError as e:
        raise unlisted(folder, e) from e


def _identity(folder: Place) -> object:
    """Return what is the same for two paths that lead to one folder."""
    if isinstance(folder, Url):
        return folder.path
    try:
        status = folder.stat()
    except OSError as e:
        raise unlisted(folder, e) from e
    return status.st_dev, status.st_ino


def unlisted(folder: Place, e: OSError) -> SourceError:
    """Return the error that says that `folder` cannot be listed."""
    return SourceError(f"{printable(folder)}: cannot be listed ({printable(e.strerror)}); check its permissions.")
