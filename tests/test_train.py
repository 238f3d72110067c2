"""The Trainer: what it learns, keeps and writes, alone on a CPU; test_resuming has its processes."""

import json
import math
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
import torchvision.transforms.v2 as T
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from fastload import Augment, Loader, TrainConfig, Trainer, convert, open_dataset, settings
from fastload.augment import MixUp
from fastload.checkpoint import load_matching
from fastload.config import Loss
from fastload.errors import ConfigError, TrainError
from fastload.evaluation import Totals, draw_confusion, write_confusion
from fastload.phases import Phase
from fastload.profiling.report import write_json
from fastload.results import make_output

pytestmark = pytest.mark.usefixtures("no_accelerate_left")
QUICK: dict[str, object] = {"log_with": None, "max_steps": 1000}  # no tracker, and nothing is drawn


def network(classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(3), torch.nn.Flatten(), torch.nn.Linear(72, classes),
    )  # fmt: skip


def fit(dataset: Path, output: Path | str, **config: object):  # type: ignore[no-untyped-def]
    settings = {"epochs": 8, "lr": 0.02, "device": "cpu", "output": output, **QUICK, **config}
    trainer = Trainer(TrainConfig(**settings))  # type: ignore[arg-type]
    train = Loader(open_dataset(dataset), 4, drop_last=False)
    valid = Loader(open_dataset(dataset, "valid"), 3, shuffle=False)
    model = network()
    return trainer.fit(model, train, valid, info={"model": "tiny"}), model, trainer


def test_it_learns_and_writes_what_it_promises(dataset: Path, tmp_path: Path) -> None:
    result, model, trainer = fit(dataset, tmp_path / "run", epochs=12, log_with="tensorboard")
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


def test_an_earlier_run_is_not_overwritten(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (fit(dataset, str(tmp_path / "run"), epochs=1)[0].output for _ in range(2))
    assert (first, second) == (tmp_path / "run", tmp_path / "run-2")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):  # two that are started together, before either has written anything
        config = TrainConfig(device="cpu", output=tmp_path / name)
        assert [make_output(config, True).name for _ in range(3)] == [name, f"{name}-2", f"{name}-3"]
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for wrong, said in (("file/run", "cannot be made"), ("file", "file cannot be made"), (".", r"\. is not empty")):
        with pytest.raises(ConfigError, match=f"{said}.*pass another --output"):
            fit(dataset, wrong, epochs=1)
    monkeypatch.setattr(Path, "iterdir", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(ConfigError, match="run cannot be read"):
        fit(dataset, tmp_path / "run", epochs=1)


def test_a_loss_that_is_no_number_stops(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="smaller lr"):
        fit(dataset, tmp_path / "run", optimizer="sgd", lr=1e30, schedule="constant")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precision_and_clipping(dataset: Path, tmp_path: Path, precision: str) -> None:
    result, _, _ = fit(dataset, tmp_path / "run", epochs=2, mixed_precision=precision, clip_grad_norm=0.5, max_steps=2)
    assert len(result.epochs) == 2
    assert json.loads((result.output / "result.json").read_text())["precision"] == precision


def test_accumulated_batches_make_one_step_and_the_last_window_may_be_smaller(dataset: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "epochs": 2, "accumulate": 2, "optimizer": "sgd", "schedule": "constant", "weight_decay": 0.0}
    trainer = Trainer(TrainConfig(device="cpu", output=tmp_path / "run", lr=0.1, momentum=0.0, **settings))  # type: ignore[arg-type]
    model, loader = network(), Loader(open_dataset(dataset), 4)
    trainer.fit(model, loader)
    own, batches = network().train(), Loader(open_dataset(dataset), 4)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    for _ in range(2):
        three = list(batches)
        assert len(three) == 3
        for window in (three[:2], three[2:]):
            losses = [torch.nn.functional.cross_entropy(own(images), labels) for images, labels in window]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
    for a, b in zip(model.state_dict().values(), own.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_running_mean_of_the_weights_is_what_is_kept(dataset: Path, tmp_path: Path) -> None:
    result, model, trainer = fit(dataset, tmp_path / "run", epochs=2, ema=0.99)
    kept = network()
    load_matching(kept, result.output / "last.safetensors")
    assert not torch.equal(kept[0].weight, model[0].weight)  # type: ignore[union-attr, operator, index, arg-type]
    loader = Loader(open_dataset(dataset, "valid"), 7, shuffle=False)
    assert trainer.evaluate(kept, loader).loss == pytest.approx(result.epochs[-1].valid_loss, abs=1e-6)


def test_mirrored_views_are_averaged(dataset: Path, tmp_path: Path) -> None:
    model, loader = network(), Loader(open_dataset(dataset, "valid"), 7, shuffle=False)
    plain, mirrored = (Trainer(TrainConfig(device="cpu", output=tmp_path, tta=tta)) for tta in (False, True))
    images, _ = next(iter(loader))
    one, _ = plain.predict(model, loader)
    both, labels = mirrored.predict(model, loader)
    assert torch.equal(labels, loader.dataset.labels)
    with torch.no_grad():
        torch.testing.assert_close(both, (one + model.eval()(images.flip(3))) / 2)


def table(tmp_path: Path, target: str) -> Path:
    """Write a table: y is twice a less b, c whether that is above 0."""
    numbers = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    rows = [f"{a:.3f},{b:.3f},{2 * a - b:.3f},{int(2 * a > b)}" for a, b in numbers.tolist()]
    (tmp_path / "t.csv").write_text("a,b,y,c\n" + "\n".join(rows) + "\n")
    kept = {"y": ["a", "b", "y"], "c": ["a", "b", "c"]}[target]
    keep = [["a", "b", "y", "c"].index(k) for k in kept]
    lines = [",".join(line.split(",")[k] for k in keep) for line in (tmp_path / "t.csv").read_text().splitlines()]
    (tmp_path / f"{target}.csv").write_text("\n".join(lines) + "\n")
    return convert(tmp_path / f"{target}.csv", tmp_path / f"{target}.fastload", target=[target], split={"valid": 0.25})


@pytest.mark.parametrize(("loss", "target"), [("mse", "y"), ("bce", "c")])
def test_amounts_and_yes_or_no(tmp_path: Path, loss: str, target: str) -> None:
    path = table(tmp_path, target)
    trainer = Trainer(TrainConfig(
        device="cpu", output=tmp_path / "run", loss=loss, epochs=12, lr=0.3, weight_decay=0.0, **QUICK,  # type: ignore[arg-type]
    ))  # fmt: skip
    model = torch.nn.Linear(2, 1)
    valid = Loader(open_dataset(path, "valid"), 4, shuffle=False)
    result = trainer.fit(model, Loader(open_dataset(path), 8), valid)
    outputs, labels = trainer.predict(model, valid)
    found = trainer.evaluate(model, valid)
    assert found.num_samples == len(labels) == len(outputs) == 10
    if loss == "mse":
        assert (found.accuracy, found.confusion) == (None, None)
        assert found.mean_absolute_error == pytest.approx((outputs - labels).abs().mean().item(), abs=1e-6)
        assert found.loss == pytest.approx((outputs - labels).square().mean().item(), abs=1e-6)
        assert not (result.output / "confusion.csv").exists()
        assert result.best.valid_loss == min(e.valid_loss or 9 for e in result.epochs)
        assert result.best.mean_absolute_error is not None
        assert result.best.mean_absolute_error < 0.3
    else:
        assert found.accuracy == ((outputs[:, 0] > 0) == labels).float().mean().item()
        assert found.accuracy >= 0.8
        said = torch.nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], labels.float()).item()
        assert found.loss == pytest.approx(said, abs=1e-6)
    mirrors = Trainer(TrainConfig(device="cpu", output=tmp_path / "mirrored", loss=loss, tta=True))
    assert mirrors.evaluate(model, valid).loss == pytest.approx(found.loss)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_samples_without_a_label_count_nowhere(loss: Loss) -> None:
    outputs = torch.tensor([[0.3], [-1.2], [2.0]]) if loss == "bce" else torch.randn(3, 2)
    found = []
    for labels in (torch.tensor([1, 0, -1]), torch.tensor([1, 0])):
        totals = Totals(loss, torch.device("cpu"))
        totals.add(outputs[: len(labels)], labels)
        found.append(totals.result(lambda sums: sums))
    assert found[0].figures == found[1].figures
    assert found[0].num_samples == 2


def test_soft_labels(dataset: Path, tmp_path: Path) -> None:
    trainer = Trainer(TrainConfig(device="cpu", output=tmp_path / "run", epochs=1, label_smoothing=0.1, **QUICK))
    train = Loader(open_dataset(dataset), 4, augment=Augment([MixUp(num_classes=3)]))
    result = trainer.fit(network(), train, Loader(open_dataset(dataset, "valid"), 4, shuffle=False))
    assert math.isfinite(result.best.train_loss)


def test_phases_have_their_own_parameters_rates_and_sizes(dataset: Path, tmp_path: Path) -> None:
    trainer = Trainer(TrainConfig(device="cpu", output=tmp_path / "run", lr=0.01, schedule="constant", **QUICK))
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    seen: dict[str, set[int]] = {"head": set(), "all": set()}
    frozen: dict[str, torch.Tensor] = {}

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if module.training:
            head_only = not module[0].weight.requires_grad  # type: ignore[index, union-attr]
            seen["head" if head_only else "all"].add(inputs[0].shape[2])
            if head_only:
                frozen.update({name: t.clone() for name, t in module.state_dict().items()})

    model.register_forward_pre_hook(watch)
    small = Loader(open_dataset(dataset), 4, augment=Augment([T.Resize(12)]))
    phases = [Phase("head", 2, lr=0.05, trainable=("5",), train=small), Phase("all", 1)]
    result = trainer.fit(model, Loader(open_dataset(dataset), 4), phases=phases)
    assert seen == {"head": {12}, "all": {20}}
    assert [(e.phase, e.lr) for e in result.epochs] == [("head", 0.05), ("head", 0.05), ("all", 0.01)]
    changed = {name for name, t in frozen.items() if not torch.equal(t, before[name])}
    assert changed == {"5.weight", "5.bias"}, "frozen weights and their batch statistics stay"
    after = model.state_dict()
    assert all(not torch.equal(t, before[name]) for name, t in after.items())
    with pytest.raises(ConfigError, match="this model has 0, 1, 5"):
        trainer.fit(network(), small, phases=[Phase("x", 1, trainable=("fc",))])
    with pytest.raises(ConfigError, match="at least 1 epoch"):
        Phase("x", 0)


def test_patience_ends_a_phase_and_not_the_run(dataset: Path, tmp_path: Path) -> None:
    trainer = Trainer(TrainConfig(device="cpu", output=tmp_path / "run", lr=1e-12, patience=1, **QUICK))
    loaders = (Loader(open_dataset(dataset, split), 4, shuffle=split == "train") for split in ("train", "valid"))
    result = trainer.fit(network(), *loaders, phases=[Phase("a", 5), Phase("b", 5)])
    assert [e.phase for e in result.epochs] == ["a", "a", "b"]


def test_compiled_in_place_keys_keep_their_names(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def compiled(module: torch.nn.Module) -> None:  # the real one takes half a minute
        done.append("compile")
        module._compiled_call_impl = module._call_impl

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "reset", lambda: done.append("reset"))
    result, model, _ = fit(dataset, tmp_path / "run", epochs=1, compile=True, ema=0.9)
    assert load_file(result.output / "last.safetensors").keys() == network().state_dict().keys()
    assert model._compiled_call_impl is not None
    assert done == ["reset", "compile"], "graphs of earlier runs count towards Dynamo's limit"


def test_deterministic_mode(dataset: Path, tmp_path: Path) -> None:
    try:
        runs = [fit(dataset, tmp_path / name, epochs=2, deterministic=True)[1] for name in "ab"]
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(*(model.state_dict().values() for model in runs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_on_a_gpu_gradients_are_scaled_and_a_run_goes_on(dataset: Path, tmp_path: Path) -> None:
    settings = {"device": "cuda", "mixed_precision": "fp16", "epochs": 2, "ema": 0.9}
    result, model, _ = fit(dataset, tmp_path / "run", **settings)
    assert math.isfinite(result.epochs[-1].train_loss)
    assert next(model.parameters()).is_cuda
    with safe_open(result.output / "state.safetensors", framework="pt") as state:
        assert json.loads(state.metadata()["fastload"])["scaler"]["scale"] > 1
        assert any(name.startswith("generator.cuda") for name in state.keys())  # noqa: SIM118 - no dict
    again, _, _ = fit(dataset, tmp_path / "run", resume=True, **settings)
    assert again.epochs == result.epochs


def test_half_precision_by_scaling_is_for_gpus() -> None:
    with pytest.raises(ConfigError, match="bf16"):
        Trainer(TrainConfig(device="cpu", mixed_precision="fp16"))


def test_the_tracker_has_curves_pictures_and_a_graph_and_the_trace_steps(dataset: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, _, _ = fit(dataset, tmp_path / "run", epochs=2, trace=True, log_with="tensorboard")
    events = EventAccumulator(str(result.output)).Reload()
    tags = events.Tags()
    assert {"train_loss", "valid_loss", "accuracy", "lr", "images_per_second"} <= set(tags["scalars"])
    assert [s.value for s in events.Scalars("accuracy")] == pytest.approx([e.accuracy for e in result.epochs])
    assert tags["images"] == ["images"]
    picture = events.Images("images")[0]
    assert (picture.width, picture.height) == (4 * 22 + 2, 22 + 2)  # four images of 20 with a border of 2
    assert tags["graph"]
    trace = json.loads((result.output / "trace.json").read_text())
    assert any("conv" in e.get("name", "") for e in trace["traceEvents"])
    with pytest.raises(ConfigError, match="no tracker"):
        Trainer(TrainConfig(log_with="nonsense"))


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_confusion(tmp_path, torch.eye(2).long(), ["a", "b"])
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(28, "No space left on device")))
    for write in (
        lambda: settings.save(TrainConfig(), tmp_path / "settings.yaml"),
        lambda: write_confusion(tmp_path, torch.zeros(2, 2).long(), ["a", "b"]),
        lambda: draw_confusion(tmp_path),
        lambda: write_json(tmp_path / "result.json", {}),
    ):
        with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\); make room"):
            write()
    assert {file.name for file in tmp_path.iterdir()} == {"confusion.csv", "per_class.csv"}
    assert "1" in (tmp_path / "confusion.csv").read_text(), "what was there is still whole"


def test_what_is_confused_with_what(dataset: Path, tmp_path: Path) -> None:
    result, _, trainer = fit(dataset, tmp_path / "run", epochs=3, max_steps=None)
    valid = Loader(open_dataset(dataset, "valid"), 7, shuffle=False)
    best = network()
    load_matching(best, result.output / "best.safetensors")
    outputs, labels = trainer.predict(best, valid)
    expected = [[int(((labels == t) & (outputs.argmax(1) == s)).sum()) for s in range(3)] for t in range(3)]
    header, *rows = [line.split(",") for line in (result.output / "confusion.csv").read_text().splitlines()]
    assert header == ["true class", "ant", "bee", "wasp"]
    assert [[int(n) for n in row[1:]] for row in rows] == expected
    lines = (result.output / "per_class.csv").read_text().splitlines()
    assert lines[1] == f"ant,3,{expected[0][0]},{expected[0][0] / 3:.4f}"
    with Image.open(result.output / "confusion.png") as picture:
        assert picture.width > 300


def test_hostile_class_names_are_drawn(tmp_path: Path) -> None:
    names = ['a,"b"', "$x_1$", "\x1b[31mred"]
    write_confusion(tmp_path, torch.eye(3).long(), names)
    draw_confusion(tmp_path)
    assert (tmp_path / "confusion.png").exists()
    assert "\x1b" not in (tmp_path / "confusion.csv").read_text()


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"lr": 0}, {"lr": float("nan")}, {"schedule": "random"}, {"optimizer": "x"}, {"patience": 0},
     {"label_smoothing": 1.0}, {"weight_decay": -1}, {"mixed_precision": "fp8"}, {"monitor": "x"}, {"max_steps": 0},
     {"accumulate": 0}, {"ema": 1.0}, {"loss": "x"}, {"save_every_steps": 0}, {"label_smoothing": 0.1, "loss": "mse"}],
)  # fmt: skip
def test_wrong_settings_are_refused_when_made(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("has_them", [True, False])
def test_bfloat16_that_a_cpu_only_emulates_is_told(
    has_them: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_them)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    Trainer(TrainConfig(device="cpu", output=tmp_path, mixed_precision="bf16"))
    assert ("no instructions for it" in capsys.readouterr().err) is not has_them
