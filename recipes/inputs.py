"""What recipes ask of their data and networks before anything is trained."""

from __future__ import annotations

import math
from pathlib import Path

import torch

import fastload
from fastload.errors import ConfigError, printable
from fastload.formats import Dataset


def open_resident(path: Path, split: str, channels: int | None = None) -> Dataset:
    """Return a split of a `NAME.fastload`, which says of itself what recipes write down: sizes, means, display names.

    Args:
        path, split: as of `open_dataset`.
        channels: of the images that the recipe is for; any where not given.

    Raises:
        ConfigError: it is a `.beton`, which does not; or holds a table, or images of other channels.
        DatasetError: as of `open_dataset`.
    """
    if path.suffix == ".beton":
        raise ConfigError(
            f"{printable(path)} is FFCV's format, and recipes want a NAME.fastload; make one of the images: "
            "fastload convert FOLDER."
        )
    dataset = fastload.open_dataset(path, split)
    if dataset.is_table or channels not in (None, dataset.sample_shape[2]):
        wanted = "images" if channels is None else f"images of {channels} channels"
        raise ConfigError(f"{printable(path)} holds {dataset.sample}, and this recipe wants {wanted}; convert some.")
    return dataset


def check_range(s: object, least: float, *names: str, below: float = math.inf) -> None:
    """Hold settings of these names, of a tuple each number, against a range.

    Raises:
        ConfigError: one is below `least`, or not below `below`.
    """
    limits = f"{least:g} or more" if below == math.inf else f"a number from {least:g} to below {below:g}"
    for name in names:
        value = getattr(s, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not least <= number < below:
                raise ConfigError(f"{name}={number:g}: {limits} is needed.")


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
