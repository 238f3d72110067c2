"""What recipes ask of their data and networks before anything is trained."""

from __future__ import annotations

from pathlib import Path

import torch

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


def check_takes(network: torch.nn.Module, *sides: int) -> None:
    """Give the network one image of each side in pixels, of nothing: what is too small is found before an epoch begins.

    Raises:
        ConfigError: it cannot take one.
    """
    network.eval()  # one image has no batch statistics, and none are to change
    for side in sides:
        try:
            with torch.no_grad():  # inference_mode would spoil what a network keeps of it for training
                network(torch.zeros(1, 3, side, side))
        except (RuntimeError, ValueError, AssertionError) as e:
            reason = printable(str(e).partition("\n")[0].rstrip("."))
            raise ConfigError(
                f"the network cannot take images of {side}x{side} pixels ({reason}); pass another --size, or --crop."
            ) from e
