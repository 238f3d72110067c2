"""Sources: where raw samples lie, and which sample has which label. No image is opened here."""

from __future__ import annotations

from pathlib import Path

from fastload.errors import SourceError, printable
from fastload.records import Source
from fastload.sources.folders import read_class_folders


def detect(root: str | Path) -> Source:
    """List the samples under `root` in the layout it is in.

    Raises:
        SourceError: no such folder, no images, or no known layout.
    """
    root = Path(root)
    if not root.exists():
        raise SourceError(f"{printable(root)}: no such folder; check the path.")
    if not root.is_dir():
        raise SourceError(f"{printable(root)} is a file; pass the folder of class folders itself.")
    return read_class_folders(root)
