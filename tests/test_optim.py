"""Optimizers, schedules, and which parameters train."""

import math

import pytest
import torch

from fastload import TrainConfig
from fastload.optim import freeze_all_but, make_optimizer, make_scheduler, train_mode
from tests.test_train import network


def rates(**config: object) -> list[float]:
    settings = TrainConfig(lr=1.0, **config)  # type: ignore[arg-type]
    optimizer = make_optimizer(network(), settings)
    scheduler = make_scheduler(optimizer, settings, steps_per_epoch=5)
    found = []
    for _ in range(settings.epochs * 5):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_schedules() -> None:
    cosine = rates(epochs=4, schedule="cosine")
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * s / 20)) for s in range(20)])
    step = rates(epochs=5, schedule="step", step_epochs=2, gamma=0.1)
    assert step == pytest.approx([1.0] * 10 + [0.1] * 10 + [0.01] * 5)
    assert rates(epochs=2, schedule="constant") == [1.0] * 10
    cycle = rates(epochs=4, schedule="one_cycle")
    assert (cycle[0], max(cycle), cycle.index(max(cycle))) == (pytest.approx(0.04), 1.0, 6)
    assert cycle[:7] == sorted(cycle[:7])
    assert cycle[6:] == sorted(cycle[6:], reverse=True)
    assert cycle[-1] < 0.02
    assert rates(epochs=4, schedule="one_cycle", warmup_epochs=1).index(1.0) == 5
    warm = rates(epochs=3, schedule="constant", warmup_epochs=1)
    assert warm[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])


def test_norms_and_biases_do_not_decay() -> None:
    decayed, plain = make_optimizer(network(), TrainConfig()).param_groups
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


def test_a_frozen_parents_own_parameters_say_nothing_of_what_is_below() -> None:
    class WithToken(torch.nn.Sequential):
        def __init__(self) -> None:
            super().__init__(network(), torch.nn.Dropout())
            self.token = torch.nn.Parameter(torch.zeros(1))

    model = WithToken()
    freeze_all_but(model, ("0.1", "0.5"))
    train_mode(model)
    modes = {name: module.training for name, module in model.named_modules()}
    assert not modes[""]
    assert not modes["0.0"]
    assert modes["0.1"], "the norm trains: its batch statistics are to move"
    assert modes["0.5"]
    assert modes["1"]
    freeze_all_but(model, ("0.5",))
    train_mode(model)
    assert not model.get_submodule("0.1").training


@pytest.mark.parametrize(("trainable", "moves"), [(("3.",), False), (("0",), False), (("1",), True), (None, True)])
def test_statistics_without_parameters_are_frozen_by_their_name(trainable: tuple[str, ...] | None, moves: bool) -> None:
    below = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2, affine=False))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), below, torch.nn.Dropout(), torch.nn.Linear(2, 2))
    freeze_all_but(model, trainable)
    train_mode(model, trainable)
    before = model.get_buffer("1.1.running_mean").clone()
    model(torch.randn(5, 2))
    assert torch.equal(model.get_buffer("1.1.running_mean"), before) != moves
    assert model[2].training
