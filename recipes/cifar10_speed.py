"""CIFAR-10 towards 94% in as few seconds as an honest, general loader and augmentation allow. For a GPU.

fastload convert cifar10 --size 32                    # cifar10/{train,test}/CLASS/, or torchvision:CIFAR10 --root data
python recipes/cifar10_speed.py cifar10.fastload --compile --runs 10
python recipes/cifar10_speed.py cifar10.fastload --compile --epochs 40 --cutout 12    # slower, for more than 94%

The ideas are public: the network's shape, whitening as its first layer, the alternating flip and most of the numbers
are Keller Jordan's ("94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, github.com/KellerJordan/cifar10-airbench);
whitening and label smoothing at this speed are Tysam Balsam's (hlb-CIFAR10) and David Page's ("How to Train Your
ResNet"). The code is our own, and images come through the Loader, Augment and Trainer of every other recipe.

Not measured on a GPU yet; on a CPU it was run for a few steps only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torchvision.transforms.v2 as T
import tyro
from several import tell
from speed_network import make_network

import fastload
from fastload import settings
from fastload.augment import AlternatingFlip, Cutout
from fastload.errors import ConfigError
from fastload.formats import Dataset

SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Settings(fastload.TrainConfig):
    """Train to 94% on CIFAR-10 as fast as it goes."""

    dataset: tyro.conf.Positional[Path] = Path("cifar10.fastload")
    """What `fastload convert` wrote, with images of 32 pixels."""
    runs: int = 1
    """How often to train, each time with another seed; the mean is told."""
    width: int = 64
    """Channels of the first block; the others have four times as many."""
    cutout: int = 0
    """Side of the square that is hidden in each training image; 0 hides none."""
    batch_size: int = 1024
    """Images per process and step."""
    epochs: int = 10
    optimizer: Literal["adamw", "adam", "sgd"] = "sgd"
    lr: float = 1.5
    momentum: float = 0.85
    weight_decay: float = 1.3e-3
    schedule: Literal["cosine", "step", "one_cycle", "constant"] = "one_cycle"
    label_smoothing: float = 0.2
    mixed_precision: Literal["no", "bf16", "fp16"] | None = "bf16"
    tta: bool = True
    output: Path = Path("runs/cifar10_speed")


def main(s: Settings) -> None:
    """Train `runs` times on `train`; tell accuracies on `test` after the last epoch, and seconds."""
    results = []
    for run in range(s.runs):
        trainer = fastload.Trainer(replace(s, seed=s.seed + run, output=s.output / f"run-{run + 1}"))
        train = fastload.open_dataset(s.dataset, "train")
        if train.sample_shape != (SIZE, SIZE, 3):
            raise ConfigError(f"{s.dataset} holds images of {train.sample}; convert colour images with --size {SIZE}.")
        end = [T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(train.mean, train.std)]
        hidden = [Cutout(s.cutout, value=tuple(255 * m for m in train.mean))] if s.cutout else []
        moves = [T.RandomCrop(SIZE, padding=2, padding_mode="reflect"), AlternatingFlip(), *hidden]
        augment = fastload.Augment([*moves, *end])
        train_loader = fastload.Loader(train, s.batch_size, augment=augment, seed=s.seed + run)
        plain, test = fastload.Augment(end), fastload.open_dataset(s.dataset, "test")
        test_loader = fastload.Loader(test, 2 * s.batch_size, augment=plain, shuffle=False)
        network = make_network(s.width, len(train.classes), whitening(train, plain))
        results.append(trainer.fit(network, train_loader, test_loader, info={"model": f"speed {s.width}"}))
    if trainer.is_main:
        each = sum(r.seconds for r in results) / s.runs
        tell(results, s, train, what=f"mean of {s.runs} runs of {each:.1f} s")


def whitening(train: Dataset, plain: fastload.Augment, count: int = 5000) -> torch.Tensor:
    """Return filters [24, 3, 2, 2] that make 2x2 patches uncorrelated and of one size, and their opposites."""
    # Conversion has put `train` in a random order, so the first rows are a fair sample.
    images = torch.stack([train[i][0] for i in range(min(count, len(train)))])
    patches = plain(images).unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
    return torch.cat([filters, -filters])


if __name__ == "__main__":
    settings.run(main, Settings)
