"""Formats: what `convert` wrote and `open_dataset` opens. No label file is read here."""

from __future__ import annotations

from pathlib import Path

from fastload.errors import DatasetError, printable
from fastload.formats.resident import MANIFEST_NAME, Dataset, find_damage, read_manifest
from fastload.places import Url, as_place


def open_dataset(path: str | Path, split: str = "train", *, verify: bool = False) -> Dataset:
    """Open one split of a dataset that `fastload convert` wrote.

    Opening maps the shards into memory and reads no pixels. It checks the manifest, and every shard's
    size, row count and field shape; `verify` reads every byte of the split and checks the checksums as well.

    Args:
        path: the dataset's directory, `NAME.fastload`.
        split: `train`, `valid` or `test`.
        verify: check the checksums of this split, too; `fastload verify` checks all splits.

    Returns:
        A map-style dataset: `len(ds)`, `ds[i] -> (uint8 [H, W, C], label)`, `classes`, `mean`, `std`; of a table,
        `ds[i] -> (float32 [D], label)`.

    Raises:
        DatasetError: missing, damaged, of another version, or without that split.
    """
    place = as_place(path)
    if isinstance(place, Url):
        raise DatasetError(
            f"{printable(place)} is no local path, and shards are mapped into memory; copy the folder to a local disk."
        )
    path = place
    if path.is_dir() and not (path / MANIFEST_NAME).exists() and not path.name.endswith(".fastload"):
        raise DatasetError(
            f"{printable(path)} is a folder without {MANIFEST_NAME}, so no dataset; "
            f"make one with: fastload convert {printable(path)}"
        )
    dataset = Dataset(path, read_manifest(path), split)
    if verify:
        for damage in find_damage(path, dataset.manifest, split=split):
            raise DatasetError(f"{damage} Convert it again, or copy it anew.")
    return dataset


__all__ = ["Dataset", "open_dataset"]
