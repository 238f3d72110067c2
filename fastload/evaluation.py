"""Losses, and what a model is worth on a split: sums on the device, reduced over ranks once.

Shape letters: N batch, K classes, T targets.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from fastload.config import Loss
from fastload.errors import ConfigError, printable
from fastload.files import write_table, write_whole, writing
from fastload.records import UNLABELLED


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over the samples of a split that have a label.

    Attributes:
        loss: of the kind that was trained.
        accuracy: share of samples with the right class; None of amounts.
        mean_absolute_error: of amounts, in their unit; None of classes.
        num_samples: how many samples that was.
        confusion: int64 [K, K], row: the true class, column: what was said; None of amounts.
    """

    loss: float
    accuracy: float | None
    mean_absolute_error: float | None
    num_samples: int
    confusion: torch.Tensor | None = field(repr=False, default=None)

    @property
    def figures(self) -> dict[str, float | None]:
        """The means by the names that an epoch has for them."""
        return {"valid_loss": self.loss, "accuracy": self.accuracy, "mean_absolute_error": self.mean_absolute_error}


def loss_of(kind: Loss, outputs: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Return the mean loss of a batch.

    Args:
        kind: `cross_entropy`: outputs [N, K], labels int64 [N] or rows [N, K]; `bce`: outputs [N] or [N, 1] as
            logits, labels 0 or 1; `mse`: outputs and labels [N, T].
        outputs, labels: of the model and the loader.
        smoothing: of the labels of a cross entropy.
    """
    return _losses(kind, outputs.float(), labels, smoothing).mean()


def sums_on(device: torch.device, *numbers: float) -> torch.Tensor:
    """Return numbers to add to on a device: float64, but float32 on Apple's GPUs, which know no other."""
    return torch.tensor(numbers, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


class Totals:
    """Adds up loss, hits and errors of batches on their device.

    Args:
        kind: of the loss.
        device: where the batches are.
    """

    def __init__(self, kind: Loss, device: torch.device) -> None:
        self.kind = kind
        self._sums = sums_on(device, 0, 0, 0)
        self._confusion: torch.Tensor | None = None

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch, without its padding; samples without a label do not count."""
        outputs = outputs.float()
        error = outputs.new_zeros(())
        if self.kind == "mse":
            error = _mean_of_each((outputs.reshape(labels.shape) - labels).abs()).sum()
            num_samples = outputs.new_full((), len(labels))
        else:
            said = (outputs.flatten() > 0).long() if self.kind == "bce" else outputs.argmax(1)
            true = labels.argmax(1) if labels.ndim == 2 else labels
            labelled = true != UNLABELLED
            num_samples = labelled.sum()
            if self._confusion is None:
                size = 2 if self.kind == "bce" else outputs.shape[1]
                self._confusion = self._sums.new_zeros((size, size))
            self._confusion.index_put_((true.clamp(min=0), said), labelled.to(self._sums.dtype), accumulate=True)
        loss = _losses(self.kind, outputs, labels).sum()
        self._sums += torch.stack([x.to(self._sums) for x in (loss, error, num_samples)])

    def result(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> Evaluation:
        """Return the means.

        Args:
            reduce: sums a tensor over all ranks.

        Raises:
            ConfigError: no sample had a label.
        """
        confusion = self._confusion
        parts = [self._sums] if confusion is None else [self._sums, confusion.flatten()]
        loss, error, num_samples, *counts = reduce(torch.cat(parts)).tolist()
        if not num_samples:
            raise ConfigError("the split has no labelled sample, so there is nothing to evaluate on; use another.")
        if confusion is None:
            return Evaluation(
                loss=loss / num_samples, accuracy=None, mean_absolute_error=error / num_samples,
                num_samples=round(num_samples),
            )  # fmt: skip
        table = torch.tensor(counts).round().long().view(confusion.shape)
        return Evaluation(
            loss=loss / num_samples, accuracy=table.trace().item() / num_samples, mean_absolute_error=None,
            num_samples=round(num_samples), confusion=table,
        )  # fmt: skip


def write_confusion(folder: Path, confusion: torch.Tensor, classes: Sequence[str]) -> None:
    """Write `confusion.csv` (a row per true class, a column per class that was said) and `per_class.csv`.

    Raises:
        ConfigError: the disk is full or the folder cannot be written.
    """
    names = [printable(c) for c in classes] if len(classes) == len(confusion) else [*map(str, range(len(confusion)))]
    rows = confusion.tolist()
    table = ((name, *row) for name, row in zip(names, rows, strict=True))
    with writing(folder / "confusion.csv"):
        write_table(folder / "confusion.csv", ("true class", *names), table)
    counts = [(name, sum(row), row[k]) for k, (name, row) in enumerate(zip(names, rows, strict=True))]
    per_class = ((*c, f"{c[2] / c[1]:.4f}" if c[1] else "") for c in counts)
    with writing(folder / "per_class.csv"):
        write_table(folder / "per_class.csv", ("class", "samples", "right", "accuracy"), per_class)


def draw_confusion(folder: Path) -> None:
    """Draw what `write_confusion` wrote, if anything, as `confusion.png`; nothing without matplotlib.

    Raises:
        ConfigError: the disk is full or the folder cannot be written.
    """
    table = folder / "confusion.csv"
    if not table.exists() or find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    with table.open(newline="", encoding="utf-8") as file:
        (_, *names), *rows = csv.reader(file)
    names = [name.replace("$", r"\$") for name in names]  # a pair of them would be a formula
    counts = np.array([row[1:] for row in rows], dtype=np.int64)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    side, font = min(24.0, 3.0 + 0.35 * len(names)), "medium" if len(names) <= 60 else 7
    figure = Figure(figsize=(side + 6, side), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(side, 4))
    figure.colorbar(matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1), ax=matrix, fraction=0.03, pad=0.02)
    matrix.set(xlabel="said", ylabel="true", title="share of each true class")
    order = shares.diagonal().argsort(kind="stable")
    bars.barh(range(len(names)), shares.diagonal()[order])
    bars.set(xlim=(0, 1), xlabel="accuracy of each class", ylim=(-0.6, len(names) - 0.4))
    if len(names) <= 120:
        matrix.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
        matrix.set_yticks(range(len(names)), names, fontsize=font)
        bars.set_yticks(range(len(names)), [names[k] for k in order], fontsize=font)
    if len(names) <= 15:
        for (row, column), count in np.ndenumerate(counts):
            ink = "white" if shares[row, column] > 0.5 else "black"
            matrix.text(column, row, str(count), ha="center", va="center", color=ink)
    figure.savefig(png := io.BytesIO(), format="png", dpi=100)
    with writing(folder / "confusion.png"):
        write_whole(folder / "confusion.png", [png.getvalue()])


def _losses(kind: Loss, outputs: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Return the loss of each sample, float32 [N]; 0 of those without a label."""
    if kind == "mse":
        return _mean_of_each(functional.mse_loss(outputs.reshape(labels.shape), labels, reduction="none"))
    if kind == "bce":
        known = labels != UNLABELLED
        losses = functional.binary_cross_entropy_with_logits(outputs.flatten(), labels.float(), reduction="none")
        return losses.where(known, 0.0)
    ignore = {"ignore_index": UNLABELLED} if labels.ndim == 1 else {}
    return functional.cross_entropy(outputs, labels, reduction="none", label_smoothing=smoothing, **ignore)  # type: ignore[arg-type]


def _mean_of_each(errors: torch.Tensor) -> torch.Tensor:
    """Return the mean over a sample's targets; a dataset that is not ours may list one for each, without an axis."""
    return errors if errors.ndim == 1 else errors.flatten(1).mean(1)
