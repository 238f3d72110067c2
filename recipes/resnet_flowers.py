"""Photographs of flowers by transfer learning, in the notes' two phases: first a new head alone, then all layers.

fastload convert flower_data --size 256         # train/<1..102>/, valid/<1..102>/, cat_to_name.json
python recipes/resnet_flowers.py flower_data.fastload --size 96
python recipes/resnet_flowers.py flower_data.fastload --sweep
python recipes/resnet_flowers.py flowers5.fastload --config recipes/flowers_scratch.yaml    # without any weights

On flowers5 from scratch, 2 cores of AMD EPYC, torch 2.11.0: 64 px, 14 epochs: 68.4% (best epoch 68.6%), with --augment
none 61.6% (best epoch 62.8%); 128 px, 20 small epochs and 14: 73.3% (best epoch 74.2%), 10 more: 75.1% (best epoch
75.3%), 12 more: 76.3% (best epoch 76.7%).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision.transforms.v2 as T
import tyro
from inputs import check_takes, open_resident
from sweep_flowers import sweep
from transfer import MEAN, STD, head_of

import fastload
from fastload import settings
from fastload.config import Optimizer, Schedule
from fastload.placement import Kind
from fastload.results import TrainResult
from fastload.weights import build


@dataclass(frozen=True, kw_only=True)
class Settings(fastload.TrainConfig):
    """Train a network on photographs, in two phases."""

    dataset: tyro.conf.Positional[Path] = Path("flowers5.fastload")
    """What `fastload convert` wrote."""
    model: str = "resnet18.tv_in1k"
    """timm's or torchvision's name: resnet34, resnet50, resnet152, alexnet, vgg16, squeezenet1_1, densenet121, ..."""
    weights: str = "auto"
    """auto: this model's ImageNet weights, where they are found; none: from scratch; or a file."""
    size: int = 96
    """Side in pixels to which images are brought."""
    crop: int | None = None
    """Side of the square that the network sees; else 7/8 of size in whole 32s: 64 of 96 and 224 of 256."""
    augment: Literal["notes", "strong", "flip", "none"] = "notes"
    """How training images vary; strong, made for training from scratch, validates on the whole image of that size."""
    batch_size: int = 64
    """Images per process and step."""
    placement: Kind = "auto"
    """Where the images lie: gpu, host, mapped, or the fastest that fits."""
    head_epochs: int | None = None
    """Epochs of the head alone; else as many as of all layers, or from scratch none: nothing is worth keeping yet."""
    head_lr: float = 1e-2
    """Learning rate of the head alone."""
    small_epochs: int = 0
    """Epochs of all layers at half the size before (progressive resizing): a quarter of the work each."""
    sweep: bool = False
    """Make the notes' table of sizes and epochs, and print theirs beside it."""
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0
    schedule: Schedule = "step"
    output: Path = Path("runs/resnet_flowers")


def main(s: Settings) -> None:
    """Train a network on photographs in two phases; with --sweep, make the notes' whole table."""
    sweep(s, train) if s.sweep else train(s)


def train(s: Settings) -> tuple[fastload.Trainer, TrainResult, str]:
    """Train in one or two phases; return by whom, what came of it, and where the first weights were from."""
    trainer = fastload.Trainer(s)
    train, valid = (open_resident(s.dataset, split, channels=3) for split in ("train", "valid"))
    network, origin = build(s.model, len(train.classes), s.weights)
    crop = s.crop or max(32, s.size * 7 // 8 // 32 * 32)
    check_takes(network, crop // 2 if s.small_epochs else crop, s.size if s.augment == "strong" else crop)

    def loaders(size: int, crop: int) -> dict[str, Any]:
        # Those of one split share its copy in memory, whatever they make of it.
        shared: dict[str, Any] = {"placement": s.placement, "seed": s.seed}
        augment, plain = transforms(s.augment, size, crop)
        return {"train": fastload.Loader(train, s.batch_size, augment=augment, **shared),
                "valid": fastload.Loader(valid, s.batch_size, augment=plain, shuffle=False, **shared)}  # fmt: skip

    phases = [fastload.Phase(name="all", epochs=s.epochs, lr=s.lr)]
    if s.small_epochs:
        half = loaders(s.size // 2, crop // 2)
        phases.insert(0, fastload.Phase(name="small", epochs=s.small_epochs, lr=s.lr, **half))
    head_epochs = s.epochs * (s.weights != "none") if s.head_epochs is None else s.head_epochs
    if head_epochs:
        phases.insert(0, fastload.Phase(name="head", epochs=head_epochs, lr=s.head_lr, trainable=head_of(network)))
    info = {
        "model": s.model, "weights": origin, "augment": s.augment, "size": s.size, "batch_size": s.batch_size,
        "crop": s.size if s.augment == "strong" else crop, "mean": MEAN, "std": STD, "images": train.manifest.settings
    }  # fmt: skip
    return trainer, trainer.fit(network, *loaders(s.size, crop).values(), phases=tuple(phases), info=info), origin


def transforms(name: str, size: int, crop: int) -> list[fastload.Augment]:
    """Return [for training, for validation]."""
    resize, flip = T.Resize((size, size)), T.RandomHorizontalFlip()
    plain = [resize, T.CenterCrop(crop)]
    train, valid = {
        "none": (plain, plain),
        "flip": ([resize, T.RandomCrop(crop, padding=crop // 8), flip], plain),
        "notes": ([resize, T.RandomRotation(45), T.CenterCrop(crop), flip, T.RandomVerticalFlip(),
                   T.ColorJitter(0.2, 0.1, 0.1, 0.1), T.RandomGrayscale(0.025)], plain),
        # Such crops enlarge things by a seventh in the mean; whole images may be larger, too (FixRes: Touvron, 2019).
        "strong": ([T.RandomResizedCrop(crop, scale=(0.5, 1)), flip, T.ColorJitter(0.2, 0.2, 0.2)], [resize]),
    }[name]  # fmt: skip
    end = [T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(MEAN, STD)]
    return [fastload.Augment(T.Compose([*way, *end])) for way in (train, valid)]


if __name__ == "__main__":
    settings.run(main, Settings)
