"""Who has diabetes, out of eight measurements: a tiny network of sigmoids, and what its optimizer makes of it.

fastload convert diabetes.csv.gz
python recipes/mlp_diabetes.py diabetes.csv.gz.fastload                                         # Adam
python recipes/mlp_diabetes.py diabetes.csv.gz.fastload --optimizer sgd --lr 0.1 --epochs 100   # as the notes have it

With 758 rows one validation split says little, so this one cross-validates: each row is validated once, by a network
that never saw it. What counts is the last epoch: choosing the best one of each fold would be choosing by the rows that
judge. Adam's learning rate was chosen so, in a few trials; other folds and seeds gave it 74.3% to 76.4%.

Measured: Adam: 76.4% (stratified 5-fold cross-validation, deviation 4.3%); always the more frequent class 65.3%; 30
epochs in 13 s. SGD as in the notes, which learns nothing: 65.3% (stratified 5-fold cross-validation, deviation 0.2%);
always the more frequent class 65.3%; 100 epochs in 36 s. On 2 cores of AMD EPYC, shared with other work; torch
2.11.0, Python 3.11.7, 2026-11-21.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from inputs import check_range
from models import mlp
from several import in_new_folder, tell
from torch import nn
from torch.utils.data import TensorDataset

import fastload
from fastload import settings
from fastload.config import Loss, Optimizer, Schedule
from fastload.errors import ConfigError, printable


@dataclass(frozen=True, kw_only=True)
class Settings(fastload.TrainConfig):
    """Cross-validate a tiny network on a table with two classes."""

    dataset: tyro.conf.Positional[Path] = Path("diabetes.csv.gz.fastload")
    """What `fastload convert` wrote, not split: this does it."""
    folds: int = 5
    """Parts of the rows: each validates a network that learned from the others."""
    hidden: tuple[int, ...] = (6, 4)
    """Widths of the hidden layers."""
    activation: Literal["sigmoid", "relu"] = "sigmoid"
    """Between the layers."""
    batch_size: int = 32
    """Rows per process and step."""
    epochs: int = 30
    optimizer: Optimizer = "adam"
    lr: float = 3e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    loss: Loss = "bce"
    output: Path = Path("runs/mlp_diabetes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, "hidden")


def main(s: Settings) -> None:
    """Train once per fold; tell the accuracy of all, and that of always saying what is most frequent."""
    dataset = fastload.open_dataset(s.dataset, "train")
    if not dataset.is_table or len(dataset.classes) != 2 or not 2 <= s.folds <= len(dataset):
        raise ConfigError(
            f"{printable(s.dataset)} holds {dataset.sample} of {len(dataset.classes)} classes, --folds is {s.folds}; "
            "a table with two classes is needed, and 2 folds or more."
        )
    features, labels = torch.cat(dataset.shards), dataset.labels
    # Every n-th row of each class: conversion has put the rows in a random order.
    fold_of = torch.empty_like(labels)
    fold_of[labels.argsort(stable=True)] = torch.arange(len(labels)) % s.folds
    s, results = in_new_folder(s), []
    for fold in range(s.folds):
        trainer = fastload.Trainer(replace(s, output=s.output / f"fold-{fold + 1}"))
        known = fold_of != fold
        # The conversion standardized by all rows; here a fold's own rows must not have a say.
        own = (features - features[known].mean(0)) / features[known].std(0).clamp_min(1e-6)
        train, valid = (TensorDataset(own[rows], labels[rows]) for rows in (known, ~known))
        train_loader = fastload.Loader(train, s.batch_size, seed=s.seed, workers=0)
        valid_loader = fastload.Loader(valid, s.batch_size, shuffle=False, workers=0)
        activation = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}[s.activation]
        widths = (features.shape[1], *s.hidden, 1)
        info = {"model": f"mlp {'-'.join(map(str, widths))} {s.activation}", "fold": fold + 1}
        results.append(trainer.fit(mlp(*widths, activation=activation), train_loader, valid_loader, info=info))
    if trainer.is_main:
        share = labels.float().mean().item()
        beside = f"always the more frequent class {max(share, 1 - share):.1%}"
        tell(results, s, dataset, what=f"stratified {s.folds}-fold cross-validation", beside=beside)


if __name__ == "__main__":
    settings.run(main, Settings)
