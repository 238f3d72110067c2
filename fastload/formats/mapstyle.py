"""Any map-style dataset behind the face that Loader asks for: the baseline that everything is compared with."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastload.errors import DatasetError, printable
from fastload.records import SPLIT_WORDS, known_split


class MapDataset(torch.utils.data.Dataset[tuple[torch.Tensor, Any]]):
    """The samples of a map-style dataset, one by one, as tensors.

    Args:
        dataset: `len(dataset)`, `dataset[i] -> (image, label)`. An image is a PIL image; a uint8 tensor or array
            [C, H, W] or [H, W, C]; or a float tensor, which is what the dataset's own transforms came to and
            reaches the batch as it is.
        split: what it is called.
        name: what the source is called; the dataset's class where not given.

    Attributes:
        labels: int64 [N] or float32 [N, T], where the dataset lists them (`targets` or `labels`); else None, and
            they come with the samples.
        classes: class names, where the dataset has them.

    Raises:
        DatasetError: it is empty, or its first sample is no (image, label).
    """

    is_table = False

    def __init__(self, dataset: Any, *, split: str = "train", name: str = "") -> None:
        self.dataset, self.split = dataset, split
        self.source_name = name or type(dataset).__name__
        self.path = Path(getattr(dataset, "root", None) or self.source_name)
        if not len(dataset):
            raise DatasetError(f"{printable(self.source_name)} has no samples; pass a dataset with some.")
        self.classes: tuple[str, ...] = tuple(str(c) for c in getattr(dataset, "classes", None) or ())
        self.labels = _listed(dataset)
        self._first: torch.Tensor = self[0][0]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        """Return (uint8 [H, W, C] or float [...], label).

        Raises:
            DatasetError: the dataset raised; names the sample.
        """
        try:
            sample = self.dataset[index]
            image, label = sample[0], sample[1]
            return _tensor(image), label
        except Exception as e:  # whatever the dataset raises: the caller is to know at which sample
            raise DatasetError(
                f"{printable(self.source_name)}: sample {index:,}{self._named(index)} cannot be read "
                f"({type(e).__name__}: {printable(e)}); mend it, or leave it out."
            ) from e

    def _named(self, index: int) -> str:
        listed = getattr(self.dataset, "samples", None)
        if not isinstance(listed, list) or not listed or not isinstance(listed[index], tuple):
            return ""
        return f" ({printable(listed[index][0])})"

    @property
    def is_uint8(self) -> bool:
        """Whether samples are stored pixels, uint8 [H, W, C], for Augment; else they are what a transform made."""
        return self._first.dtype == torch.uint8

    @property
    def is_regression(self) -> bool:
        """Whether the labels are amounts, not classes."""
        return self.labels is not None and self.labels.is_floating_point()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the first sample; of the others, too, unless they are of their own sizes."""
        return tuple(self._first.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of all samples, were they all like the first."""
        return len(self) * self._first.nbytes

    @property
    def sample(self) -> str:
        """What a sample is, in words."""
        return f"samples of {printable(self.source_name)}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over name, count, labels and, where it lists them, the samples' paths."""
        sha = hashlib.sha256(f"{self.source_name}\0{len(self)}\0".encode("utf-8", "surrogateescape"))
        if self.labels is not None:
            sha.update(self.labels.numpy().tobytes())
        listed = getattr(self.dataset, "samples", None)
        for entry in listed if isinstance(listed, list) else ():
            name = entry[0] if isinstance(entry, tuple) else entry
            sha.update(f"{Path(name).name if isinstance(name, str) else ''}\0".encode("utf-8", "surrogateescape"))
        return sha.hexdigest()


def open_folder(path: Path, split: str, size: int) -> MapDataset:
    """Open an image folder through torchvision's ImageFolder, images stretched to [size, size, 3].

    Class folders, or split folders that hold them: splits and labels are those that converting gives.

    Raises:
        DatasetError: there are no class folders with images, or no folder of that split, or several.
    """
    import torchvision.transforms.v2 as T
    from torchvision.datasets import ImageFolder

    if size < 1:
        raise DatasetError(f"size={size}: a side has at least 1 pixel.")
    try:
        splits = {entry.name: known_split(entry.name) for entry in sorted(path.iterdir()) if _is_split(entry)}
        folder = path / _folder_of(path, split, splits)
        images = ImageFolder(str(folder), transform=T.Resize((size, size)), allow_empty=True)
        _number_as_converted(images, [path / name for name in splits] or [path])
    except OSError as e:
        raise DatasetError(f"{printable(path)} has no class folders with images ({printable(e)}).") from e
    if not images.samples:
        raise DatasetError(f"{printable(folder)} has no class folders with images; pass a folder that has some.")
    return MapDataset(images, split=split, name=path.resolve().name)


def _is_split(entry: Path) -> bool:
    return entry.name.lower() in SPLIT_WORDS and entry.is_dir()


def _folder_of(path: Path, split: str, splits: dict[str, str]) -> str:
    """Return the folder of a split; `.` where there are no split folders, as all is `train` then."""
    found = [name for name, known in splits.items() if known == split] if splits else ["."] * (split == "train")
    if len(found) > 1:
        names = printable(" and ".join(found))
        raise DatasetError(f"{printable(path)} has several folders of split {split}, {names}; move them into one.")
    if not found:
        there = f"its split folders are: {', '.join(splits)}" if splits else "it has no split folders, so all is train"
        raise DatasetError(f"{printable(path)} has no split {printable(split)}; {printable(there)}.")
    return found[0]


def _number_as_converted(images: Any, folders: list[Path]) -> None:
    """Number the classes over all splits, those without images left out: ImageFolder sees one split and counts all."""
    names = {entry for folder in folders for entry in folder.iterdir() if entry.is_dir()}
    classes = sorted({entry.name for entry in names if any(map(_is_image, entry.rglob("*")))})
    if classes == images.classes:
        return
    label_of = {name: label for label, name in enumerate(classes)}
    images.samples = [(file, label_of[images.classes[label]]) for file, label in images.samples]
    images.imgs, images.targets = images.samples, [label for _, label in images.samples]
    images.classes, images.class_to_idx = classes, label_of


def _is_image(file: Path) -> bool:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return file.suffix.lower() in IMG_EXTENSIONS


def _listed(dataset: Any) -> torch.Tensor | None:
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None:
            try:
                labels = torch.as_tensor(found, device="cpu")
            except (TypeError, ValueError, RuntimeError):
                return None
            if len(labels) == len(dataset):
                return labels.to(torch.float32 if labels.is_floating_point() else torch.int64)
    return None


def _tensor(image: Any) -> torch.Tensor:
    if hasattr(image, "convert"):  # PIL; not imported for this
        return torch.from_numpy(np.array(image if image.mode == "L" else image.convert("RGB"))).view(
            image.height, image.width, -1
        )
    tensor = torch.as_tensor(image, device=image.device if isinstance(image, torch.Tensor) else "cpu")
    is_planar = tensor.ndim == 3 and tensor.shape[2] not in (1, 3) and tensor.shape[0] in (1, 3)
    return tensor.permute(1, 2, 0) if tensor.dtype == torch.uint8 and is_planar else tensor
