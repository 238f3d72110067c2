"""Loss, labels and outputs that do not go together: one sentence before the first step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from fastload import Loader, TrainConfig, Trainer
from fastload.agreement import check_labels, check_outputs
from fastload.config import Loss
from fastload.errors import ConfigError
from fastload.evaluation import loss_of
from fastload.formats.mapstyle import MapDataset

pytestmark = pytest.mark.usefixtures("no_accelerate_left")


class Listed(TensorDataset):
    """Rows of four numbers whose labels are listed."""

    def __init__(self, labels: list[Any], classes: tuple[str, ...] = ()) -> None:
        self.targets, self.classes = torch.tensor(labels), classes
        super().__init__(torch.randn(len(labels), 4), self.targets)


AMOUNTS = Listed([[0.5], [1.5], [2.5], [1.0]])
TWO, THREE = Listed([0, 1, 1, 0], ("no", "yes")), Listed([0, 1, 2, 0], ("a", "b", "c"))
WITHOUT = Listed([-1, -1, -1, -1], ("no", "yes"))
TWO_TARGETS = Listed([[0.5, 1.0]] * 4)
UNLISTED = TensorDataset(torch.randn(4, 4), torch.tensor([0, 1, 1, 0]))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    done: list[int] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: done.append(1))
    yield done
    assert not done, "a step was made before anything was said"


@pytest.mark.parametrize(
    ("loss", "train", "valid", "num_outputs", "said"),
    [
        ("mse", THREE, None, 3, "loss=mse is for amounts, and Listed has classes; use loss=cross_entropy"),
        ("bce", THREE, None, 1, "loss=bce is for two classes, and Listed has 3"),
        ("cross_entropy", AMOUNTS, None, 1, "the labels of Listed are amounts; use loss=mse"),
        ("cross_entropy", TWO, AMOUNTS, 2, "the labels of Listed are amounts; use loss=mse"),
        ("cross_entropy", TWO, None, 1, r"wants a logit for each class, 2 or more, and for labels \[2\]"),
        ("cross_entropy", UNLISTED, None, 1, "wants a logit for each class, 2 or more"),
        ("mse", UNLISTED, None, 1, r"one output for each amount, and for labels \[2\] \(int64\)"),
        ("mse", TWO_TARGETS, None, 1, r"labels \[2, 2\] \(float32\) the model gives \[2, 1\]"),
        ("bce", TWO, None, 2, r"one logit for each sample, .* the model gives \[2, 2\]"),
        ("cross_entropy", TWO, WITHOUT, 2, "the split valid of Listed has no labelled sample"),
    ],
)
def test_what_does_not_go_together_is_said_before_the_first_step(
    loss: Loss, train: Any, valid: Any, num_outputs: int, said: str, tmp_path: Path, steps: list[int]
) -> None:
    config = TrainConfig(loss=loss, device="cpu", output=tmp_path / "run", epochs=1, log_with=None, max_steps=2)
    trainer = Trainer(config)
    loader = Loader(train, 2, workers=0)
    judge = None if valid is None else Loader(MapDataset(valid, split="valid"), 2, shuffle=False, workers=0)
    with pytest.raises(ConfigError, match=said):
        trainer.fit(torch.nn.Linear(4, num_outputs), loader, judge)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("loss", "outputs", "labels"),
    [
        ("cross_entropy", (3, 5), torch.tensor([0, 1, -1])),  # a head of more classes than these
        ("cross_entropy", (3, 4), torch.rand(3, 4)),
        ("bce", (3,), torch.tensor([0, 1, -1])),
        ("bce", (3, 1), torch.tensor([0, 0, 0])),
        ("mse", (3, 1), torch.rand(3)),
        ("mse", (3, 2), torch.rand(3, 2)),
    ],
)
def test_what_goes_together_passes_and_has_a_loss(loss: Loss, outputs: tuple[int, ...], labels: torch.Tensor) -> None:
    check_outputs(loss, torch.zeros(outputs), labels, 0)
    assert loss_of(loss, torch.zeros(outputs), labels).isfinite()
    check_labels(loss, [None])
