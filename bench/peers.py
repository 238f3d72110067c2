"""The loaders under comparison, made of the same images and the same transforms."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2 as T
from torchvision.datasets import ImageFolder

import fastload
from fastload.errors import DatasetError, SourceError, printable
from fastload.records import Record, Source
from fastload.sources import detect

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transforms(size: int) -> T.Compose:
    """Return the training transforms that every loader gets: random crop, mirror, normalization."""
    return T.Compose([
        T.RandomCrop(size), T.RandomHorizontalFlip(), T.ToImage(), T.ToDtype(torch.float32, scale=True),
        T.Normalize(MEAN, STD),
    ])  # fmt: skip


def folder_loader(folder: Path, *, store: int, size: int, batch_size: int, workers: int) -> Any:
    """Return the usual loader: ImageFolder, torchvision's transforms, DataLoader.

    Images come from their files, so they are first brought to `store` pixels, which conversion does once.
    """
    images = ImageFolder(str(folder), transform=T.Compose([T.Resize((store, store)), *transforms(size).transforms]))
    return torch.utils.data.DataLoader(
        images, batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def fast_loader(
    dataset: Path, *, size: int, batch_size: int, device: torch.device, placement: Any = "auto"
) -> fastload.Loader:
    """Return fastload's loader over the training split."""
    augment = fastload.Augment(transforms(size))
    opened = fastload.open_dataset(dataset, "train")
    return fastload.Loader(opened, batch_size, augment=augment, device=device, placement=placement)


def find_pair(data: Path) -> tuple[Path, Path | None]:
    """Return (image folder, its dataset or None) where `data` is either of them.

    Raises:
        SourceError, DatasetError: neither, or a dataset without its folder beside it.
    """
    if (data / "manifest.json").exists() or data.suffix == ".fastload":
        fastload.open_dataset(data, "train")
        folder = data.with_suffix("")
        if not folder.is_dir() or folder == data:
            raise DatasetError(
                f"{printable(data)} is a dataset, and its image folder {printable(folder)} is not beside it; "
                "pass the image folder."
            )
        return folder, data
    if not data.exists():
        raise SourceError(f"{printable(data)}: no such folder or dataset; check the path.")
    return data, None


@contextmanager
def training_folder(folder: Path, max_images: int) -> Iterator[tuple[Path, int]]:
    """Yield (class folders of links to at most `max_images` training images, how many).

    Every n-th image, so that every class keeps its share, in an order that the file system does not decide.
    """
    source = detect(folder)
    train = [r for r in source.records if r.split == "train"]
    if not train:
        raise SourceError(f"{printable(folder)} has no training images; add a folder train/ with class folders.")
    every = max(1, -(-len(train) // max_images))
    with tempfile.TemporaryDirectory(prefix="fastload-bench-") as temporary:
        root = Path(temporary) / "images"
        chosen = train[::every]
        for number, record in enumerate(chosen):
            _link(source, record, root, number)
        yield root, len(chosen)


def _link(source: Source, record: Record, root: Path, number: int) -> None:
    # Numbered names: two images of one class may have the same name in different folders.
    target = root / f"{record.label:05d}" / f"{number:08d}{Path(record.path).suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    file = Path(str(source.root), record.path).absolute()
    try:
        target.symlink_to(file)
    except OSError:
        shutil.copyfile(file, target)  # a file system without links
