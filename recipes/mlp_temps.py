"""Tomorrow's highest temperature out of a table: one hidden layer, beside what needs no training at all.

fastload convert temps.csv --target actual --split valid=0.2
python recipes/mlp_temps.py temps.csv.fastload

The week's days are one-hot and the numbers standardized by the conversion: 14 features of 9 columns. Writes
`predicted.png`, predicted against true, beside the checkpoints (extra `plot`).

Measured: mean absolute error 3.40; temp_1 3.86, average 4.43; 100 epochs in 76 s. On 2 cores of AMD EPYC, shared with
other work; torch 2.11.0, Python 3.11.7, 2026-11-21.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from inputs import check_range
from models import Affine, mlp
from torch import nn

import fastload
from fastload import settings
from fastload.config import Loss, Monitor, Optimizer, Schedule
from fastload.errors import ConfigError, printable
from fastload.files import write_whole, writing
from fastload.formats import Dataset


@dataclass(frozen=True, kw_only=True)
class Settings(fastload.TrainConfig):
    """Train a perceptron to predict an amount."""

    dataset: tyro.conf.Positional[Path] = Path("temps.csv.fastload")
    """What `fastload convert --target` wrote."""
    hidden: int = 128
    """Width of the hidden layer."""
    baselines: tuple[str, ...] = ("temp_1", "average")
    """Columns to compare with, as if each were the prediction: yesterday's, and the day's average of past years."""
    batch_size: int = 16
    """Rows per process and step."""
    epochs: int = 100
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    loss: Loss = "mse"
    monitor: Monitor = "loss"
    output: Path = Path("runs/mlp_temps")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, "hidden")


def main(s: Settings) -> None:
    """Train on `train`; tell the mean absolute error on `valid`, and those of the baselines."""
    trainer = fastload.Trainer(s)
    train = fastload.open_dataset(s.dataset, "train")
    if not train.is_regression:
        raise ConfigError(f"{printable(s.dataset)} has classes, and this recipe predicts an amount; pass --target.")
    valid = fastload.open_dataset(s.dataset, "valid")
    errors = {name: mean_error(column(valid, name), valid.labels[:, 0]) for name in s.baselines}
    train_loader = fastload.Loader(train, s.batch_size, seed=s.seed)
    valid_loader = fastload.Loader(valid, s.batch_size, shuffle=False)

    # Standardized targets are quicker to learn, degrees are what people read: the last layer turns one into the other.
    targets = train.labels[:, 0]
    network = nn.Sequential(
        mlp(*train.sample_shape, s.hidden, 1, activation=nn.Sigmoid), Affine(targets.std(), targets.mean())
    )
    info = {"model": f"mlp {train.sample_shape[0]}-{s.hidden}-1", "baselines": errors}
    result = trainer.fit(network, train_loader, valid_loader, info=info)
    predicted, true = (values.cpu()[:, 0] for values in trainer.predict(network, valid_loader))
    if trainer.is_main:
        for name, error in {"the network's last state": mean_error(predicted, true), **errors}.items():
            print(f"mean absolute error of {name}: {error:.2f}")
        plot(result.output / "predicted.png", predicted, true)


def column(dataset: Dataset, name: str) -> torch.Tensor:
    """Return a column of numbers as it stood in the table, float32 [n]: what the conversion did, undone."""
    table = dataset.manifest.table or {}
    about = {c["name"]: c for c in table["columns"]["features"] if c["kind"] == "number"}
    if name not in about:
        raise ConfigError(f"--baselines {printable(name)}: no such column of numbers ({printable(', '.join(about))}).")
    stored: torch.Tensor = torch.cat(dataset.shards)[:, table["feature_names"].index(name)]
    return stored * float(about[name]["std"]) + float(about[name]["mean"])


def mean_error(predicted: torch.Tensor, true: torch.Tensor) -> float:
    """Return the mean absolute error."""
    return float((predicted - true).abs().mean())


def plot(file: Path, predicted: torch.Tensor, true: torch.Tensor) -> None:
    """Draw predicted against true, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('no predicted.png without matplotlib: pip install "fastload[plot]"')
        return
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="true", ylabel="predicted", aspect="equal")
    axes.axline((float(true[0]), float(true[0])), slope=1, color="0.7", linewidth=1)
    axes.scatter(true, predicted, s=12)
    axes.set_title(f"mean absolute error {mean_error(predicted, true):.2f}")
    figure.savefig(png := io.BytesIO(), format="png", dpi=120)
    with writing(file):
        write_whole(file, [png.getvalue()])


if __name__ == "__main__":
    settings.run(main, Settings)
