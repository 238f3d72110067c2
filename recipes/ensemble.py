"""Soft voting: the weighted mean of several checkpoints' probabilities.

python recipes/ensemble.py food11.fastload runs/cnn_food11/best.safetensors runs/cnn_food11-2/best.safetensors --tta

Not measured yet; the tests compare it with the mean of the probabilities, taken by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from whole_checkpoints import open_checkpoint, view

import fastload
from fastload import settings
from fastload.config import Precision
from fastload.errors import ConfigError, printable
from fastload.profiling.report import described, write_json
from fastload.records import UNLABELLED


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Let several checkpoints vote."""

    dataset: tyro.conf.Positional[Path]
    """What `fastload convert` wrote, with the classes that the checkpoints know."""
    checkpoints: tyro.conf.Positional[tuple[Path, ...]]
    """.safetensors files that recipes for photographs wrote, their .json beside them."""
    votes: tuple[float, ...] = ()
    """How much each counts; else all the same."""
    split: str = "valid"
    """Whose images they vote on; weights chosen by a split's accuracy are flattered by it: judge them on another."""
    tta: bool = False
    """Each sees the mirrored images, too."""
    batch_size: int = 64
    """Images per process and step."""
    mixed_precision: Precision | None = None
    """no, bf16 or fp16; None takes what accelerate launch was told."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; else the best one."""
    result: Path = Path("runs/ensemble.json")
    """What came of it, to write."""


def main(s: Settings) -> None:
    """Let checkpoints vote on a split of a dataset; print the accuracy of each, and of all together."""
    if not s.checkpoints:
        raise ConfigError("no checkpoint to ask; pass some behind the dataset: runs/cnn_food11/best.safetensors ...")
    votes = s.votes or (1.0,) * len(s.checkpoints)
    if len(votes) != len(s.checkpoints) or min(votes, default=0) < 0 or not sum(votes):
        raise ConfigError(
            f"--votes: {len(votes)} for {len(s.checkpoints)} checkpoints; give each a number from 0 on, not all 0."
        )
    config = fastload.TrainConfig(
        tta=s.tta, mixed_precision=s.mixed_precision, device=s.device, output=s.result.parent, log_with=None
    )
    trainer = fastload.Trainer(config)
    dataset = fastload.open_dataset(s.dataset, s.split)
    if not (dataset.labels != UNLABELLED).any():
        raise ConfigError(f"--split {s.split} of {printable(s.dataset)} has no labels to judge by; use another.")
    shares, members = torch.zeros(()), []
    for file, vote in zip(s.checkpoints, votes, strict=True):
        network, about = open_checkpoint(file)
        if tuple(about["classes"]) != dataset.classes:
            raise ConfigError(f"{printable(file)} knows other classes than {printable(s.dataset)}; leave it out.")
        loader = fastload.Loader(dataset, s.batch_size, augment=view(about), shuffle=False)
        outputs, labels = trainer.predict(network, loader)
        p = outputs.float().softmax(1)
        shares = shares + vote / sum(votes) * p
        members.append({"model": about["model"], "size": about["size"], "vote": vote, "accuracy": accuracy(p, labels)})
    if not trainer.is_main:
        return
    together = accuracy(shares, labels)
    for file, row in zip(s.checkpoints, members, strict=True):
        print(f"{row['accuracy']:7.2%}  {row['model']}, vote {row['vote']:g}  ({printable(file)})")
    print(f"{together:7.2%}  together{', with mirrored images' if s.tta else ''}: {len(labels):,} images of {s.split}")
    write_json(s.result, {
        "schema": "fastload-ensemble", "version": 1, **described(),
        "num_processes": trainer.accelerator.num_processes, "device": trainer.accelerator.device.type,
        "data": {"name": dataset.source_name, "digest": dataset.digest, "split": s.split, "images": len(labels)},
        "tta": s.tta, "members": members, "accuracy": together,
    })  # fmt: skip


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of labelled samples whose highest score is that of their class."""
    counted = labels != UNLABELLED
    return (scores.argmax(1) == labels)[counted].float().mean().item()


if __name__ == "__main__":
    settings.run(main, Settings)
