"""The loaders under comparison, made of the same images and the same transforms."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision.transforms.v2 as T
from torchvision.datasets import ImageFolder

import fastload
from fastload.conversion_ffcv import convert_to_ffcv
from fastload.errors import ConfigError, DatasetError, DecodeError, SourceError, printable
from fastload.records import UNLABELLED, Record, Source
from fastload.sources import detect

Crop = Literal["plain", "resized", "padded"]
PADDING = 4
ENDLESS = 1 << 62  # samples
_CROPS: dict[str, Any] = {
    "plain": T.RandomCrop, "resized": T.RandomResizedCrop, "padded": lambda size: T.RandomCrop(size, padding=PADDING),
}  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transforms(size: int, crop: Crop = "plain") -> T.Compose:
    """Return the training transforms that every loader gets: a random crop, mirror, normalization."""
    return T.Compose([
        _CROPS[crop](size), T.RandomHorizontalFlip(), T.ToImage(), T.ToDtype(torch.float32, scale=True),
        T.Normalize(MEAN, STD),
    ])  # fmt: skip


def folder_loader(
    folder: Path, *, store: int, size: int, batch_size: int, workers: int, crop: Crop = "plain", pin: bool = False,
    endless: bool = False,
) -> Any:  # fmt: skip
    """Return the usual loader: ImageFolder, torchvision's transforms, DataLoader.

    Images come from their files, so they are first brought to `store` pixels, which conversion does once.
    `pin` is for batches that a GPU will copy: a thread more, and a CUDA context in the loader's process. An `endless`
    one begins the next epoch without a break: it is to stand for a longer one.
    """
    steps = [T.Resize((store, store)), *transforms(size, crop).transforms]
    images = ImageFolder(str(folder), transform=T.Compose(steps))
    order = torch.utils.data.RandomSampler(images, num_samples=ENDLESS if endless else None)
    return torch.utils.data.DataLoader(
        images, batch_size, sampler=order, drop_last=True,
        num_workers=workers, persistent_workers=workers > 0, pin_memory=pin,
    )  # fmt: skip


def fast_loader(
    dataset: Path, *, size: int, batch_size: int, device: str | torch.device = "cpu", placement: Any = "auto",
    crop: Crop = "plain", workers: int | None = None,
) -> fastload.Loader:  # fmt: skip
    """Return fastload's loader over the training split of a dataset, or over a .beton."""
    augment = fastload.Augment(transforms(size, crop))
    opened = fastload.open_dataset(dataset, "train")
    return fastload.Loader(opened, batch_size, augment=augment, device=device, placement=placement, workers=workers)


def beton_loader(
    folder: Path, out: Path, *, store: int, size: int, batch_size: int, workers: int, device: str | torch.device = "cpu"
) -> fastload.Loader:
    """Convert an image folder to a .beton of JPEGs, and return fastload's loader over it; the same transforms.

    Images keep their own sizes in there, up to twice the stored one, and are brought to it as they are decoded.
    """
    beton = convert_to_ffcv(folder, out, mode="jpg", max_resolution=2 * store, progress=True) / "train.beton"
    return fastload.Loader(
        fastload.open_dataset(beton, "train"), batch_size, augment=fastload.Augment(transforms(size)), device=device,
        placement="ffcv", workers=workers, cut=T.Resize((store, store)),
    )  # fmt: skip


def timm_loader(folder: Path, *, store: int, size: int, batch_size: int, workers: int, crop: Crop = "plain") -> Any:
    """Return timm's loader over an image folder; it knows crops that resize, of which a plain one is a special case."""
    timm_data: Any = importlib.import_module("timm.data")

    if crop == "padded":
        raise ConfigError("timm pads no crops; leave it out.")
    scale, ratio = _as_resized(crop, store, size)
    return timm_data.create_loader(
        timm_data.ImageDataset(str(folder)), (3, size, size), batch_size, is_training=True, use_prefetcher=False,
        num_workers=workers, scale=scale, ratio=ratio, hflip=0.5, color_jitter=0.0, interpolation="bilinear",
        mean=MEAN, std=STD, persistent_workers=workers > 0, device=torch.device("cpu"),
    )  # fmt: skip


def ffcv_loader(beton: Path, *, store: int, size: int, batch_size: int, workers: int, crop: Crop = "plain") -> Any:
    """Return ffcv's own Loader over a .beton, with its own transforms.

    Its batches are memory that it writes again: whoever keeps one copies it, which is not counted here.
    """
    import numpy as np
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, RandomTranslate, Squeeze, ToTensor, ToTorchImage

    mean, std = (np.array(v) * 255 for v in (MEAN, STD))
    scale, ratio = _as_resized(crop, store, size)
    first = (
        [SimpleRGBImageDecoder(), RandomTranslate(padding=PADDING, fill=(0, 0, 0))] if crop == "padded"
        else [RandomResizedCropRGBImageDecoder((size, size), scale, ratio)]
    )  # fmt: skip
    image = [*first, RandomHorizontalFlip(), NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()]
    return Loader(
        str(beton), batch_size=batch_size, num_workers=workers, order=OrderOption.RANDOM, drop_last=True, seed=0,
        os_cache=True, pipelines={"image": image, "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )  # fmt: skip


def warm_up(maker: str) -> None:
    """Import what a maker needs, so that its first batch is measured without it."""
    if maker == "ffcv_loader":
        import ffcv.loader
        import ffcv.transforms  # noqa: F401
    elif maker == "timm_loader":
        import timm.data  # noqa: F401


def _as_resized(crop: Crop, store: int, size: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return scale and ratio of a RandomResizedCrop that comes to the same."""
    share = (size / store) ** 2
    return ((0.08, 1.0), (3 / 4, 4 / 3)) if crop == "resized" else ((share, share), (1.0, 1.0))


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

    Raises:
        SourceError: it has no training images with a label, or none that are files of their own.
        DecodeError: what reads the links raised it; names the file that is linked to.
    """
    source = detect(folder)
    if source.reader is not None:
        raise SourceError(
            f"{printable(folder)} holds its samples in the layout {source.layout}, and the loaders beside fastload's "
            "read image files; pass a folder of class folders."
        )
    train = [r for r in source.records if r.split == "train" and r.label != UNLABELLED]
    if not train:
        raise SourceError(f"{printable(folder)} has no training images; add a folder train/ with class folders.")
    every = max(1, -(-len(train) // max_images))
    with tempfile.TemporaryDirectory(prefix="fastload-bench-") as temporary:
        root = Path(temporary) / "images"
        chosen = train[::every]
        for number, record in enumerate(chosen):
            _link(source, record, root, number)
        try:
            yield root, len(chosen)
        except DecodeError as e:
            link = Path(e.path).stem
            raise (DecodeError(chosen[int(link)].path, e.reason) if link.isdecimal() else e) from None


def check_enough(folder: Path, count: int, batch_size: int, *, num_batches: Literal[1, 2] = 1) -> None:
    """Refuse fewer images than so many batches have.

    Raises:
        SourceError: it names both.
    """
    if count < num_batches * batch_size:
        batches = ("one batch", "two batches")[num_batches - 1]
        raise SourceError(
            f"{printable(folder)} has {count:,} training images, less than {batches} of {batch_size:,}; use "
            "a smaller --batch-size, or more images."
        )


def _link(source: Source, record: Record, root: Path, number: int) -> None:
    # Numbered names: two images of one class may have the same name in different folders.
    ending = Path(record.path).suffix
    # ImageFolder and timm list files by their endings; all read them by their content.
    ending = ending if ending.lower() in (".jpg", ".jpeg", ".png") else ".jpg"
    target = root / f"{record.label:05d}" / f"{number:08d}{ending}"
    target.parent.mkdir(parents=True, exist_ok=True)
    file = Path(str(source.root), record.path).absolute()
    try:
        target.symlink_to(file)
    except OSError:
        shutil.copyfile(file, target)  # a file system without links
