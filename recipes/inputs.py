"""What recipes ask of their data and networks before anything is trained."""

from __future__ import annotations

from pathlib import Path

import fastload
from fastload.errors import ConfigError, printable
from fastload.formats import Dataset


def open_resident(path: Path, split: str) -> Dataset:
    """Return a split of a `NAME.fastload`, which says of itself what recipes write down: sizes, means, display names.

    Raises:
        ConfigError: it is a `.beton`, which does not.
        DatasetError: as of `open_dataset`.
    """
    if path.suffix == ".beton":
        raise ConfigError(
            f"{printable(path)} is FFCV's format, and recipes want a NAME.fastload; make one of the images: "
            "fastload convert FOLDER."
        )
    return fastload.open_dataset(path, split)
