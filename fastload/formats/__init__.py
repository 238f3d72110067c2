"""Formats: what `convert` wrote and `open_dataset` opens. No label file is read here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, overload

from fastload.errors import DatasetError, printable
from fastload.formats.ffcv import Beton, find_beton_damage, open_beton
from fastload.formats.manifest import MANIFEST_NAME, of_betons, read_manifest
from fastload.formats.mapstyle import MapDataset, open_folder
from fastload.formats.resident import Dataset, find_damage
from fastload.places import as_place, exists
from fastload.records import known_split
from fastload.urls import Url

# What Loader serves. All have len, [i], labels, classes, split, digest, is_table, is_regression and sample_shape.
AnyDataset = Dataset | Beton | MapDataset


@overload
def open_dataset(path: str | Path, split: str = "train", *, verify: bool = False) -> Dataset: ...


@overload
def open_dataset(path: str | Path, split: str = "train", *, verify: bool = False, size: int | None) -> AnyDataset: ...


def open_dataset(
    path: str | Path, split: str = "train", *, verify: bool = False, size: int | None = None
) -> Dataset | Any:
    """Open one split of a dataset that `fastload convert` wrote, a `.beton` file, or an image folder to compare with.

    Opening maps the shards into memory and reads no pixels. It checks the manifest, and every shard's
    size, row count and field shape; `verify` reads every byte of the split and checks the checksums as well.

    Args:
        path: the dataset's directory, `NAME.fastload`; a file `NAME.beton`; or, with `size`, a folder of class folders.
        split: `train`, `valid` or `test`, or another word for one (`val`); a `.beton` holds one, whatever it is called.
        verify: check the checksums of this split, too; `fastload verify` checks all splits.
        size: of an image folder: the side that its images are stretched to, in pixels, one by one as they are
            read. That is what everybody does and what conversion saves: there to be compared with.

    Returns:
        A map-style dataset: `len(ds)`, `ds[i] -> (uint8 [H, W, C], label)`, `classes`, `mean`, `std`; of a table,
        `ds[i] -> (float32 [D], label)`. Of a `.beton`, a Beton; of an image folder, a MapDataset.

    Raises:
        DatasetError: missing, damaged, of another version, or without that split.
    """
    place, split = as_place(path), known_split(split)
    if isinstance(place, Url):
        raise DatasetError(
            f"{printable(place)} is no local path, and shards are mapped into memory; copy the folder to a local disk."
        )
    path = place
    if path.suffix == ".beton":
        if verify:
            for damage in find_beton_damage(path):
                raise DatasetError(f"{damage} Convert it again, or copy it anew.")
        return open_beton(path, split)
    if size is not None:
        if exists(path / MANIFEST_NAME, DatasetError) or not path.is_dir():
            raise DatasetError(f"{printable(path)} is no image folder, and size={size} is for one; leave it out.")
        return open_folder(path, split, size)
    if (
        exists(path, DatasetError)
        and path.is_dir()
        and not exists(path / MANIFEST_NAME, DatasetError)
        and not path.name.endswith(".fastload")
    ):
        raise of_betons(path) or DatasetError(
            f"{printable(path)} is a folder without {MANIFEST_NAME}, so no dataset; "
            f"make one with: fastload convert {printable(path)}; or pass size=... to read the images one by one."
        )
    dataset = Dataset(path, read_manifest(path), split)
    if verify:
        for damage in find_damage(path, dataset.manifest, split=split):
            raise DatasetError(f"{damage} Convert it again, or copy it anew.")
    return dataset


__all__ = ["AnyDataset", "Beton", "Dataset", "MapDataset", "open_dataset"]
