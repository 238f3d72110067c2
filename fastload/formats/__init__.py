"""Formats: what `convert` wrote and `open_dataset` opens. No label file is read here."""

from __future__ import annotations

from pathlib import Path

from fastload.errors import DatasetError, printable
from fastload.formats.resident import MANIFEST_NAME, Dataset, read_manifest


def open_dataset(path: str | Path, split: str = "train") -> Dataset:
    """Open one split of a dataset that `fastload convert` wrote.

    Opening maps the shards into memory and reads no pixels. It checks the manifest, and every shard's
    size, row count and field shape; `fastload verify` checks the bytes as well.

    Args:
        path: the dataset's directory, `NAME.fastload`.
        split: `train`, `valid` or `test`.

    Returns:
        A map-style dataset: `len(ds)`, `ds[i] -> (uint8 [H, W, C], label)`, `classes`, `mean`, `std`.

    Raises:
        DatasetError: missing, damaged, of another version, or without that split.
    """
    path = Path(path)
    if path.is_dir() and not (path / MANIFEST_NAME).exists() and not path.name.endswith(".fastload"):
        raise DatasetError(
            f"{printable(path)} is a folder without {MANIFEST_NAME}, so no dataset; "
            f"make one with: fastload convert {printable(path)}"
        )
    return Dataset(path, read_manifest(path), split)


__all__ = ["Dataset", "open_dataset"]
