"""Ants or bees, from 245 photographs: a network that has seen other things before, fine-tuned or with a new head alone.

fastload convert hymenoptera --size 256         # {train,val}/{ants,bees}/
python recipes/transfer_ants_bees.py hymenoptera.fastload
python recipes/transfer_ants_bees.py hymenoptera.fastload --model vgg16.tv_in1k --frozen
python recipes/transfer_ants_bees.py hymenoptera.fastload --weights runs/resnet_flowers/best.safetensors

The notes keep these photographs in three ways: class folders; ants_image/ with a text file for each in ants_label/;
a list of paths and labels. `fastload convert` makes the same dataset of all three.

Measured at 64 px (--model resnet18 --size 72 --crop 64 --epochs 15 --lr 5e-3) on the 153 photographs of val, after the
last epoch: from scratch 60.8% (best epoch 66.7%); from a ResNet-18 that had seen flowers5 for two epochs (50.7% there)
64.7% (best epoch 66.0%): one run each, six photographs apart, the larger class is 54.2%. No ImageNet weights were at
hand. 2 cores of AMD EPYC; seconds tell nothing, as the runs were paused for others; torch 2.11.0, timm 1.0.31.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision.transforms.v2 as T
import tyro
from inputs import check_takes, open_resident
from transfer import MEAN, STD, head_of

import fastload
from fastload import settings
from fastload.config import Optimizer, Schedule
from fastload.weights import build


@dataclass(frozen=True, kw_only=True)
class Settings(fastload.TrainConfig):
    """Fine-tune a network on few photographs."""

    dataset: tyro.conf.Positional[Path] = Path("hymenoptera.fastload")
    """What `fastload convert` wrote."""
    model: str = "resnet18.tv_in1k"
    """timm's or torchvision's name; the notes take ResNet-18 and VGG16 (vgg16.tv_in1k)."""
    weights: str = "auto"
    """auto: this model's ImageNet weights, where they are found; none: from scratch; or a file."""
    frozen: bool = False
    """Train the new head alone."""
    size: int = 256
    """Side in pixels to which images are brought."""
    crop: int = 224
    """Side of the square that the network sees."""
    batch_size: int = 16
    """Images per process and step."""
    epochs: int = 25
    optimizer: Optimizer = "sgd"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule = "step"
    step_epochs: int = 7
    output: Path = Path("runs/transfer_ants_bees")


def main(s: Settings) -> None:
    """Fine-tune on `train`, and tell how well it does on `valid`."""
    trainer = fastload.Trainer(s)
    train, valid = (open_resident(s.dataset, split, channels=3) for split in ("train", "valid"))
    network, origin = build(s.model, len(train.classes), s.weights)
    check_takes(network, s.crop)

    end = [T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(MEAN, STD)]
    augment = fastload.Augment([T.RandomResizedCrop(s.crop), T.RandomHorizontalFlip(), *end])
    plain = fastload.Augment([T.Resize((s.size, s.size)), T.CenterCrop(s.crop), *end])
    train_loader = fastload.Loader(train, s.batch_size, augment=augment, seed=s.seed)
    valid_loader = fastload.Loader(valid, s.batch_size, augment=plain, shuffle=False)

    phase = fastload.Phase(
        name="head" if s.frozen else "all", epochs=s.epochs, lr=s.lr, trainable=head_of(network) if s.frozen else None
    )
    info = {
        "model": s.model, "weights": origin, "size": s.size, "crop": s.crop, "mean": MEAN, "std": STD,
        "batch_size": s.batch_size, "images": train.manifest.settings
    }  # fmt: skip
    trainer.fit(network, train_loader, valid_loader, phases=(phase,), info=info)


if __name__ == "__main__":
    settings.run(main, Settings)
