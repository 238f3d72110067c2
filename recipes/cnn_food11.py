"""Food-11 with the notes' own network: five convolutions and three linear layers, AutoAugment in training.

fastload convert food11 --size 128          # {training,validation}/3_102.jpg: the label stands before the first _
python recipes/cnn_food11.py food11.fastload --epochs 200
python recipes/cnn_food11.py food11.fastload --model resnet50

Published for this network on the real Food-11: 67% after 40 epochs; 76.5% after 200, with augmentation; 78% by voting
(ensemble.py).

Measured: flowers5 in Food-11's layout (README.md), 3,882 photographs of 5 classes, 12 epochs at 64 px: 66.2%; 4,042 s
with long pauses, some 65 an epoch. On 2 cores of AMD EPYC; torch 2.11.0, Python 3.11.7, 2026-11-22. Not on Food-11.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torchvision.transforms.v2 as T
import tyro
from inputs import check_takes, open_resident
from torch import nn

import fastload
from fastload import settings
from fastload.config import Monitor, Optimizer, Schedule
from fastload.errors import ConfigError
from fastload.weights import build


@dataclass(frozen=True, kw_only=True)
class Settings(fastload.TrainConfig):
    """Train the notes' network on food, or on anything else."""

    dataset: tyro.conf.Positional[Path] = Path("food11.fastload")
    """What `fastload convert` wrote."""
    model: str = "food11"
    """food11: the notes' network; or timm's name of another one, e.g. resnet50."""
    weights: str = "none"
    """Of a model of timm's: none, from scratch; auto, its ImageNet weights, where they are found; or a file."""
    size: int = 128
    """Side of the images in pixels; of food11 a multiple of 32."""
    augment: bool = True
    """AutoAugment, with the policy found for ImageNet."""
    batch_size: int = 64
    """Images per process and step."""
    epochs: int = 40
    optimizer: Optimizer = "adam"
    lr: float = 3e-4
    weight_decay: float = 1e-5
    schedule: Schedule = "constant"
    clip_grad_norm: float | None = 10.0
    monitor: Monitor = "loss"
    patience: int | None = 300
    output: Path = Path("runs/cnn_food11")


class Food11(nn.Sequential):
    """Images [B, 3, size, size] -> logits [B, num_classes]; the side halves after each of five convolutions."""

    def __init__(self, num_classes: int, size: int) -> None:
        if size % 32:
            raise ConfigError(f"--size {size}: food11 halves it five times; use a multiple of 32, e.g. 128.")
        layers: list[nn.Module] = []
        for before, after in pairwise((3, 64, 128, 256, 512, 512)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        features = 512 * (size // 32) ** 2
        head = [nn.Linear(features, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, num_classes)]
        super().__init__(*layers, nn.Flatten(), *head)


def main(s: Settings) -> None:
    """Train on `train`, and keep what has the lowest loss on `valid`."""
    trainer = fastload.Trainer(s)
    train, valid = (open_resident(s.dataset, split, channels=3) for split in ("train", "valid"))
    network, origin = make(s.model, len(train.classes), s.size, s.weights)
    check_takes(network, s.size)

    resize = [] if train.sample_shape[0] == s.size else [T.Resize((s.size, s.size))]
    policy = [T.AutoAugment(T.AutoAugmentPolicy.IMAGENET)] if s.augment else []
    end = [T.ToImage(), T.ToDtype(torch.float32, scale=True)]
    train_loader = fastload.Loader(train, s.batch_size, augment=fastload.Augment([*resize, *policy, *end]), seed=s.seed)
    valid_loader = fastload.Loader(valid, s.batch_size, augment=fastload.Augment([*resize, *end]), shuffle=False)
    info = {
        "model": s.model, "weights": origin, "size": s.size, "crop": s.size, "mean": (0.0,) * 3, "std": (1.0,) * 3,
        "batch_size": s.batch_size, "images": train.manifest.settings
    }  # fmt: skip
    trainer.fit(network, train_loader, valid_loader, info=info)


def make(model: str, num_classes: int, size: int, weights: str, **options: object) -> tuple[nn.Module, str]:
    """Return a network and the origin of its weights: the notes' own, or one of timm's or torchvision's."""
    if model == "food11":
        return Food11(num_classes, size), "none: from scratch"
    return build(model, num_classes, weights, **options)


if __name__ == "__main__":
    settings.run(main, Settings)
