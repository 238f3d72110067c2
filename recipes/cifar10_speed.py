"""CIFAR-10 towards 94% in as few seconds as an honest, general loader and augmentation allow. For a GPU.

fastload convert cifar10 --size 32                    # cifar10/{train,test}/CLASS/, or torchvision:CIFAR10 --root data
python recipes/cifar10_speed.py cifar10.fastload --compile --runs 10
python recipes/cifar10_speed.py cifar10.fastload --compile --epochs 40 --cutout 12    # slower, for more than 94%

The ideas are public: the network's shape, whitening as its first layer, Lookahead, moved views in evaluation, the
alternating flip and most of the numbers are Keller Jordan's ("94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024,
github.com/KellerJordan/cifar10-airbench); whitening and label smoothing at this speed are Tysam Balsam's (hlb-CIFAR10)
and David Page's ("How to Train Your ResNet"). The code is our own, and images come through the Loader, Augment and
Trainer of every other recipe. Jordan's airbench94.py comes to 94.01% in 9.9 epochs; 14 leave room for what differs
here: bfloat16, another schedule, biases that do not decay. The seconds of a run are those of its epochs, loading
included, and of one evaluation at its end; what comes before the first run (whitening, compiling, three steps to warm
up) is told apart; moving data into memory and checkpoints are left out. Not measured on a GPU yet.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2 as T
import tyro
from inputs import check_range, open_resident
from lookahead import Lookahead
from several import in_new_folder, tell
from speed_network import Views, make_network, whitening

import fastload
from fastload import settings
from fastload.augment import AlternatingFlip, Cutout
from fastload.config import Optimizer, Precision, Schedule
from fastload.devices import current_rank
from fastload.errors import ConfigError
from fastload.formats import Dataset
from fastload.results import TrainResult

SIZE = 32
EVALUATED = 2000  # images at once: the test split has five times as many, so no batch is shorter and compiled for anew


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
    epochs: int = 14
    optimizer: Optimizer = "sgd"
    lr: float = 1.5
    momentum: float = 0.85
    weight_decay: float = 1.3e-3
    schedule: Schedule = "one_cycle"
    label_smoothing: float = 0.2
    mixed_precision: Precision | None = "bf16"
    tta: bool = True
    log_with: str | None = None
    output: Path = Path("runs/cifar10_speed")


def main(s: Settings) -> None:
    """Train `runs` times on `train`; tell accuracies on `test` after the last epoch, and seconds."""
    check_range(s, 1, "runs", "width")
    if s.resume or s.ema is not None:
        raise ConfigError("--resume and --ema do not go with Lookahead, whose weights are not saved; leave them out.")
    begin = time.perf_counter()
    train = open_resident(s.dataset, "train")
    if train.sample_shape != (SIZE, SIZE, 3):
        raise ConfigError(f"{s.dataset} holds images of {train.sample}; convert colour images with --size {SIZE}.")
    test = open_resident(s.dataset, "test")
    plain = [T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(train.mean, train.std)]
    filters = whitening(train, fastload.Augment(plain))
    layers = make_network(s.width, len(train.classes), filters)
    if s.compile:
        # Here, once for all runs, and not by each Trainer: what Accelerate wraps around it is another one every time.
        layers.compile()
    network = Views(layers, moved=s.tta)
    s = in_new_folder(s)
    train_once(replace(s, epochs=1, max_steps=3, output=s.output / "warm-up"), network, filters, train, test, plain)
    before = time.perf_counter() - begin
    runs = [replace(s, seed=s.seed + n, output=s.output / f"run-{n + 1}") for n in range(s.runs)]
    results = [train_once(run, network, filters, train, test, plain) for run in runs]
    if current_rank().rank == 0:
        each = sum(r.seconds for r in results) / s.runs
        tell(results, s, train, what=f"mean of {s.runs} runs of {each:.1f} s", beside=f"{before:.1f} s before them")


def train_once(
    s: Settings, network: Views, filters: torch.Tensor, train: Dataset, test: Dataset, plain: list[Any]
) -> TrainResult:
    """Train the network from the beginning, by the seed, and return the result with accuracy and seconds."""
    trainer = fastload.Trainer(replace(s, compile=False))
    # Into the same tensors: compiled graphs stay right.
    network.layers.load_state_dict(make_network(s.width, len(train.classes), filters).state_dict())
    hidden = [Cutout(s.cutout, value=tuple(255 * m for m in train.mean))] if s.cutout else []
    moves = [T.RandomCrop(SIZE, padding=2, padding_mode="reflect"), AlternatingFlip(), *hidden]
    loader = fastload.Loader(train, s.batch_size, augment=fastload.Augment([*moves, *plain]), seed=s.seed)
    test_loader = fastload.Loader(test, EVALUATED, augment=fastload.Augment(plain), shuffle=False)
    steps = -(-min(len(loader), s.max_steps or len(loader)) // s.accumulate)
    with Lookahead(network, s.epochs * steps):
        result = trainer.fit(network, loader, info={"model": f"speed {s.width}", "compiled": s.compile})
    begin = time.perf_counter()
    last = replace(result.epochs[-1], **trainer.evaluate(network, test_loader).figures)  # type: ignore[arg-type]
    seconds = sum(e.seconds for e in result.epochs) + time.perf_counter() - begin
    return replace(result, seconds=seconds, epochs=(*result.epochs[:-1], last))


if __name__ == "__main__":
    settings.run(main, Settings)
