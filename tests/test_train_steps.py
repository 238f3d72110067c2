"""What the Trainer does at each step of the optimizer, and which epoch is the best one.

Rate, clipping, smoothing, momentum, running mean: everything is compared with the formula, or with torch's own
optimizer on the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastload import Loader, TrainConfig, Trainer, open_dataset
from fastload.config import Monitor
from fastload.results import Epoch, TrainResult
from fastload.train import Phase

pytestmark = pytest.mark.usefixtures("no_accelerate_left")
BATCHES = 3  # of 4 images each, of 13


def linear() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20 * 20 * 3, 3))


def loader(dataset: Path) -> Loader:
    return Loader(open_dataset(dataset), 4)


def fit(
    dataset: Path, output: Path, model: torch.nn.Module, phases: list[Phase] | None = None, **config: object
) -> TrainResult:
    plain = {
        "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "epochs": 1, "device": "cpu",
        "max_steps": BATCHES, "log_with": None, "output": output,
    }  # fmt: skip
    trainer = Trainer(TrainConfig(**{**plain, **config}))  # type: ignore[arg-type]
    return trainer.fit(model, loader(dataset), phases=phases)


@contextmanager
def watched(model: torch.nn.Module) -> Iterator[list[tuple[float, list[torch.Tensor]]]]:
    """Give the learning rate and the parameters of the model after each step of any optimizer."""
    seen: list[tuple[float, list[torch.Tensor]]] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.append((optimizer.param_groups[0]["lr"], [p.detach().clone() for p in model.parameters()]))

    handle = register_optimizer_step_post_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def test_the_rate_of_every_step_is_the_schedules_over_the_phases_own_epochs(dataset: Path, tmp_path: Path) -> None:
    model = linear()
    phases = [Phase("a", 2, lr=0.4), Phase("b", 3)]
    with watched(model) as seen:
        fit(dataset, tmp_path / "run", model, phases, lr=0.01, schedule="cosine", accumulate=2, epochs=7)
    updates = math.ceil(BATCHES / 2)  # an epoch's last window has one batch
    expected = [
        0.5 * lr * (1 + math.cos(math.pi * step / (epochs * updates)))
        for epochs, lr in ((2, 0.4), (3, 0.01))
        for step in range(epochs * updates)
    ]
    assert [rate for rate, _ in seen] == pytest.approx(expected)


@pytest.mark.parametrize("most", [0.01, None])
def test_a_step_is_as_long_as_the_clipped_gradient(dataset: Path, tmp_path: Path, most: float | None) -> None:
    model, own = linear(), linear()
    images, labels = next(iter(loader(dataset)))
    cross_entropy(own(images), labels).backward()
    gradient = torch.cat([p.grad.flatten() for p in own.parameters() if p.grad is not None]).norm().item()
    assert gradient > 0.1, "else there would be nothing to clip"
    fit(dataset, tmp_path / "run", model, lr=0.5, clip_grad_norm=most, max_steps=1)
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), own.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(0.5 * (gradient if most is None else most), rel=1e-3)


def test_the_training_loss_is_that_of_smoothed_labels(dataset: Path, tmp_path: Path) -> None:
    images, labels = next(iter(loader(dataset)))
    smoothed, plain = (cross_entropy(linear()(images), labels, label_smoothing=share).item() for share in (0.1, 0.0))
    assert abs(smoothed - plain) > 1e-3
    result = fit(dataset, tmp_path / "run", linear(), lr=1e-12, label_smoothing=0.1, max_steps=1)
    assert result.epochs[0].train_loss == pytest.approx(smoothed, rel=1e-5)


def test_the_running_mean_is_that_of_a_loop_by_hand(dataset: Path, tmp_path: Path) -> None:
    model = linear()
    with watched(model) as seen:
        result = fit(dataset, tmp_path / "run", model, lr=0.1, ema=0.5, max_steps=2, epochs=2)
    assert len(seen) == 4
    # Its decay rises from 0, 1 - n**(-2/3) at update n, up to the config's: the first weights are soon forgotten.
    decays = [min(0.5, 1 - n ** (-2 / 3)) for n in (1, 2, 3, 4)]
    assert decays[1] < decays[2] == decays[3] == 0.5
    mean = [torch.zeros_like(p) for p in model.parameters()]
    for decay, (_, weights) in zip(decays, seen, strict=True):
        mean = [decay * m + (1 - decay) * w for m, w in zip(mean, weights, strict=True)]
    kept = load_file(result.output / "last.safetensors")
    for (name, parameter), expected in zip(model.named_parameters(), mean, strict=True):
        torch.testing.assert_close(kept[name], expected)
        assert not torch.allclose(parameter, expected, atol=1e-4)


def test_momentum_is_nesterovs(dataset: Path, tmp_path: Path) -> None:
    model, own = linear(), linear()
    fit(dataset, tmp_path / "run", model, lr=0.1, momentum=0.8)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.8, nesterov=True)
    for images, labels in loader(dataset):
        optimizer.zero_grad()
        cross_entropy(own(images), labels).backward()
        optimizer.step()
    for a, b in zip(model.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(a, b)


NAN = float("nan")
BEST = Epoch(
    epoch=0, phase="all", lr=0.1, train_loss=1.0, valid_loss=0.5, accuracy=0.7, seconds=1.0, images_per_second=None,
    data_wait=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("now", "best", "by_accuracy", "by_loss"),
    [
        # (validation loss, accuracy), of this epoch and of the best one before it.
        ((0.4, 0.6), (0.5, 0.7), False, True),
        ((0.6, 0.8), (0.5, 0.7), True, False),
        ((0.5, 0.7), (0.5, 0.7), False, False),  # the first of two is kept
        ((0.4, None), (0.5, None), True, True),  # amounts have a loss only
        ((0.6, None), (0.5, None), False, False),
        ((0.4, None), (NAN, None), True, True),
        ((NAN, None), (0.5, None), False, False),
        ((None, None), (None, None), True, True),  # nothing to judge by: the latest one
        ((0.5, 0.1), None, True, True),
    ],
)
def test_which_epoch_is_better(
    now: tuple[float | None, float | None],
    best: tuple[float | None, float | None] | None,
    by_accuracy: bool,
    by_loss: bool,
) -> None:
    before = None if best is None else replace(BEST, valid_loss=best[0], accuracy=best[1])
    this = replace(BEST, epoch=1, valid_loss=now[0], accuracy=now[1])
    monitors: dict[Monitor, bool] = {"accuracy": by_accuracy, "loss": by_loss}
    for monitor, expected in monitors.items():
        assert this.is_better(before, monitor) is expected
