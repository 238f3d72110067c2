"""FFCV's `.beton` files: write, check, open and verify them.

Only writing needs ffcv. A beton of ours has a JSON of the same name beside it, written last: what the file
holds, its classes and its checksum. Foreign betons have none, and open all the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fastload.errors import DatasetError, printable
from fastload.formats.beton import RAW, BetonField, BetonInfo, blocks, check_beton, damaged, inspect
from fastload.formats.ffcv_writer import FORMAT, VERSION, Mode, is_about_beton, write_beton
from fastload.formats.resident import sha256_of
from fastload.places import exists
from fastload.records import SPLITS

__all__ = [
    "Beton",
    "BetonField",
    "BetonInfo",
    "Mode",
    "betons_at",
    "check_beton",
    "find_beton_damage",
    "is_about_beton",
    "open_beton",
    "write_beton",
]


class Beton(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """The images and labels of a beton, one by one; `open_beton` makes it.

    Attributes:
        info: what the file says of itself.
        split: `train`, `valid` or `test`: what the file is called, or else what the caller calls it.
        about: what the JSON beside it says; empty where there is none of ours.
        labels: int64 [N], in memory.
        classes: class names, index = label; empty where no JSON names them.
        sizes: int64 [N, 2], (H, W) of every image.
        modes: uint8 [N], RAW or JPG of formats/beton.py.
        places_N2: int64 [N, 2], where an image's bytes begin in the file, and how many they are.
    """

    is_table = False
    is_regression = False
    is_uint8 = True

    def __init__(self, path: Path, split: str = "train") -> None:
        self.path = path
        self.split = path.stem if path.stem in SPLITS else split
        self.info, places_NK2 = inspect(path)
        image, label = _column(self.info, "image", "image"), _column(self.info, "label", "int")
        with path.open("rb") as file:
            parts = blocks(file, path, self.info.metadata_start, self.info.metadata_type, self.info.num_samples)
            rows = np.concatenate([part[[image, label]] for part in parts])
        self.modes = rows[image]["mode"].copy()
        self.places_N2 = places_NK2[:, self.info.paged[image]].astype(np.int64)
        sizes_N2 = np.stack([rows[image]["height"], rows[image]["width"]], -1)
        self.sizes = torch.from_numpy(sizes_N2.astype(np.int64))
        self.labels = torch.from_numpy(rows[label].astype(np.int64))
        self.about = _read_about(self.info)
        self.classes = tuple(str(c) for c in self.about.get("classes", ()))
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        if self.classes and not -1 <= lowest <= highest < len(self.classes):
            raise damaged(path, f"has labels from {lowest} to {highest}, outside of its {len(self.classes)} classes")

    def __len__(self) -> int:
        return self.info.num_samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return (uint8 [H, W, 3], label).

        Raises:
            DatasetError: the sample's bytes are gone, or are no JPEG of the size that the file names.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        height, width = (int(n) for n in self.sizes[index])
        start, size = (int(n) for n in self.places_N2[index])
        data = bytearray(size)
        # Read, not mapped: a file that is cut under a mapping ends the process, here it is an error.
        with self.info.path.open("rb") as file:
            file.seek(start)
            if file.readinto(data) != size:
                raise damaged(self.info.path, f"was cut: sample {index:,} is not whole")
        if self.modes[index] == RAW:
            pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        else:
            pixels = self._decode(data, index, height, width)
        return torch.from_numpy(pixels), int(self.labels[index])

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class name -> label; empty where no JSON names the classes."""
        return {name: label for label, name in enumerate(self.classes)}

    @property
    def one_size(self) -> tuple[int, int] | None:
        """(H, W) of all images; None where they are of their own sizes."""
        height, width = (int(n) for n in self.sizes[0])
        return (height, width) if bool((self.sizes == self.sizes[0]).all()) else None

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of the largest image, or of all."""
        return int(self.sizes[:, 0].max()), int(self.sizes[:, 1].max()), 3

    @property
    def num_bytes(self) -> int:
        """Bytes of all images, decoded."""
        return int(self.sizes.prod(1).sum()) * 3

    @property
    def sample(self) -> str:
        """What a sample is, in words."""
        height, width, _ = self.sample_shape
        return f"{'' if self.one_size else 'up to '}{height}x{width}x3 uint8"

    @property
    def source_name(self) -> str:
        """What the source is called."""
        return self.path.stem

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the file as the JSON beside it says; of a foreign one, of its labels, sizes and places."""
        if self.about:
            return str(self.about["sha256"])
        sha = hashlib.sha256(f"{self.info.num_bytes}\0".encode())
        for part in (self.labels.numpy(), self.sizes.numpy(), self.places_N2):
            sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()

    def _decode(self, data: bytearray, index: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of large images; the size is checked here
                with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                    if image.size == (width, height):
                        return np.array(image.convert("RGB"))
                    found = f"{image.size[0]}x{image.size[1]}, not {width}x{height}"
        except Exception as e:  # Pillow raises a dozen kinds on damaged data: OSError, SyntaxError, struct.error
            found = f"not a whole JPEG ({printable(e)})"
        raise damaged(self.info.path, f"was changed: sample {index:,} is {found}")


def open_beton(path: str | Path, split: str = "train") -> Beton:
    """Check a `.beton` file, ours or foreign, and open it: `len`, `[i] -> (uint8 [H, W, 3], label)`.

    The image is the field `image`, or the first one of images; the label is `label`, or the first one of
    whole numbers. ffcv is not needed for it.

    Raises:
        DatasetError: as `check_beton`; or no image or label field; or the JSON beside it is of another file.
    """
    return Beton(Path(path), split)


def betons_at(path: Path) -> list[Path]:
    """Return the file `path`, or those in the folder: what a JSON of ours names is one of them, there or lost.

    None where `path` is neither.

    Raises:
        DatasetError: a `.beton` that is not there, and never was.
    """
    if path.is_dir():
        named = (file.with_suffix(".beton") for file in path.glob("*.json") if is_about_beton(file))
        return sorted({*path.glob("*.beton"), *named})
    if path.suffix != ".beton":
        return []
    if not exists(path, DatasetError) and not is_about_beton(path.with_suffix(".json")):
        raise DatasetError(f"{printable(path)} does not exist; pass a .beton file, or a folder of these.")
    return [path]


def find_beton_damage(path: str | Path, advance: Callable[[int], object] | None = None) -> Iterator[str]:
    """Yield one sentence if the file is not what the JSON beside it says, calling `advance(bytes)` as it reads."""
    path = Path(path)
    if not exists(path, DatasetError) and is_about_beton(path.with_suffix(".json")):
        yield f"{printable(path)} is missing."
        return
    try:
        about = _read_about(check_beton(path))
        if not about:
            yield f"{printable(path)}: no {printable(path.with_suffix('.json').name)} beside it holds its checksum."
        elif sha256_of(path, advance) != about["sha256"]:
            yield f"{printable(path)}: its bytes are not those that were written."
    except DatasetError as e:
        yield str(e)


def _column(info: BetonInfo, name: str, kind: str) -> str:
    columns = info.columns(kind)
    if not columns:
        has = ", ".join(f"{printable(field.name)} ({field.kind})" for field in info.fields[:8])
        raise DatasetError(f"{printable(info.path)} has no field of kind {kind}; it has: {has}.")
    return next((column for column, field in columns.items() if field.name == name), next(iter(columns)))


def _read_about(info: BetonInfo) -> dict[str, Any]:
    """Return the JSON beside a beton; empty where there is none, or it is not of our making."""
    file = info.path.with_suffix(".json")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise DatasetError(f"{printable(file)} cannot be read ({printable(e)}); convert again, or delete it.") from e
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        return {}
    if about.get("version") != VERSION:
        found = printable(about.get("version"))
        raise DatasetError(f"{printable(file)} has version {found}, not {VERSION}; convert again.")
    if not isinstance(about.get("classes"), list) or not isinstance(about.get("sha256"), str):
        raise DatasetError(f"{printable(file)} is damaged: no classes or no sha256; convert again.")
    if (about.get("count"), about.get("num_bytes")) != (info.num_samples, info.num_bytes):
        raise DatasetError(
            f"{printable(file)} is of another file: it names {printable(about.get('count'))} samples in "
            f"{printable(about.get('num_bytes'))} bytes, {printable(info.path.name)} has {info.num_samples:,} in "
            f"{info.num_bytes:,}; convert again, or copy both."
        )
    return about
