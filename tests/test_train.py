import json
import math
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from fastload import Loader, TrainConfig, Trainer, open_dataset
from fastload.checkpoint import load_matching, load_weights, save_checkpoint
from fastload.errors import CheckpointError, ConfigError, TrainError
from fastload.optim import make_optimizer, make_scheduler


@pytest.fixture(autouse=True)
def _no_accelerate_left():  # type: ignore[no-untyped-def]
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def network(classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(3), torch.nn.Flatten(), torch.nn.Linear(72, classes),
    )  # fmt: skip


def fit(dataset: Path, output: Path, **config: object):  # type: ignore[no-untyped-def]
    settings = {"epochs": 8, "lr": 0.02, "device": "cpu", "output": output, **config}
    trainer = Trainer(TrainConfig(**settings))  # type: ignore[arg-type]
    train = Loader(open_dataset(dataset), 4, drop_last=False)
    valid = Loader(open_dataset(dataset, "valid"), 3, shuffle=False)
    model = network()
    return trainer.fit(model, train, valid, info={"model": "tiny"}), model, trainer


def test_it_learns_and_writes_what_it_promises(dataset: Path, tmp_path: Path) -> None:
    result, model, trainer = fit(dataset, tmp_path / "run", epochs=12)
    assert result.epochs[-1].train_loss < 0.7 * result.epochs[0].train_loss
    last = load_file(result.output / "last.safetensors")
    assert all(torch.equal(last[name], t) for name, t in model.state_dict().items())
    written = json.loads((result.output / "result.json").read_text())
    assert written["best"]["accuracy"] == pytest.approx(result.best.accuracy)
    assert written["best"]["accuracy"] == max(e["accuracy"] for e in written["epochs"])
    assert written["machine"]["cores"] >= 1
    assert str(tmp_path) not in json.dumps(written)
    beside = json.loads((result.output / "best.json").read_text())
    assert (beside["classes"], beside["model"]) == (["ant", "bee", "wasp"], "tiny")
    assert list(result.output.glob("events.out.tfevents.*"))
    # The best checkpoint gives the accuracy that is written beside it.
    best = network()
    load_matching(best, result.output / "best.safetensors")
    loader = Loader(open_dataset(dataset, "valid"), 2, shuffle=False)
    assert trainer.evaluate(best, loader).accuracy == pytest.approx(beside["accuracy"])


def test_evaluation_is_the_mean_over_samples_whatever_the_batch(dataset: Path, tmp_path: Path) -> None:
    trainer, model = Trainer(TrainConfig(device="cpu", output=tmp_path)), network()
    opened = open_dataset(dataset, "valid")
    images = torch.stack([opened[i][0] for i in range(7)]).permute(0, 3, 1, 2) / 255
    logits = model.eval()(images)
    loss = torch.nn.functional.cross_entropy(logits, opened.labels).item()
    accuracy = (logits.argmax(1) == opened.labels).float().mean().item()
    for batch_size in (1, 3, 7, 50):
        got = trainer.evaluate(model, Loader(opened, batch_size, shuffle=False))
        assert (got.loss, got.accuracy) == pytest.approx((loss, accuracy), abs=1e-5)


def test_the_same_seed_gives_the_same_run(dataset: Path, tmp_path: Path) -> None:
    a, b = (fit(dataset, tmp_path / name, epochs=2)[0] for name in "ab")
    assert [e.train_loss for e in a.epochs] == [e.train_loss for e in b.epochs]


def test_early_stopping(dataset: Path, tmp_path: Path) -> None:
    result, _, _ = fit(dataset, tmp_path / "run", epochs=50, lr=1e-12, patience=2)
    assert len(result.epochs) == 3
    assert result.best.epoch == 0


def test_an_earlier_run_is_not_overwritten(dataset: Path, tmp_path: Path) -> None:
    first, second = (fit(dataset, tmp_path / "run", epochs=1)[0].output for _ in range(2))
    assert (first.name, second.name) == ("run", "run-2")


def test_a_loss_that_is_no_number_stops(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="smaller lr"):
        fit(dataset, tmp_path / "run", optimizer="sgd", lr=1e30, schedule="constant")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precision_and_clipping(dataset: Path, tmp_path: Path, precision: str) -> None:
    result, _, _ = fit(dataset, tmp_path / "run", epochs=2, mixed_precision=precision, clip_grad_norm=0.5, max_steps=2)
    assert len(result.epochs) == 2
    assert json.loads((result.output / "result.json").read_text())["precision"] == precision


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
    warm = rates(epochs=3, schedule="constant", warmup_epochs=1)
    assert warm[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])


def test_norms_and_biases_do_not_decay() -> None:
    decayed, plain = make_optimizer(network(), TrainConfig()).param_groups
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"lr": 0}, {"lr": float("nan")}, {"schedule": "random"}, {"optimizer": "x"}, {"patience": 0},
     {"label_smoothing": 1.0}, {"weight_decay": -1}, {"mixed_precision": "fp8"}, {"monitor": "x"}, {"max_steps": 0}],
)  # fmt: skip
def test_wrong_settings_are_refused_when_made(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)  # type: ignore[arg-type]


# --- checkpoints ---


def test_weights_of_another_head_load_without_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", network(7), {})
    model = network(3)
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[union-attr, operator]
    matched = load_matching(model, tmp_path / "a.safetensors")
    assert matched.skipped == ("5.weight", "5.bias")
    assert model[0].weight.abs().sum() > 0  # type: ignore[union-attr, operator, index]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", torch.nn.Linear(4, 4), {})
    with pytest.raises(CheckpointError, match="another model"):
        load_matching(network(), tmp_path / "a.safetensors")


def test_a_pth_file_with_a_state_dict_and_nothing_else(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pth")
    assert load_matching(network(), tmp_path / "a.pth").skipped == ()
    torch.save(network(), tmp_path / "model.pth")  # a pickled module: code
    for name, content in (("no.pth", b"x"), ("no.safetensors", b"x" * 20)):
        (tmp_path / name).write_bytes(content)
    for name in ("model.pth", "no.pth", "no.safetensors", "missing.pth"):
        with pytest.raises(CheckpointError):
            load_weights(tmp_path / name)


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "a.safetensors", network(), {})
