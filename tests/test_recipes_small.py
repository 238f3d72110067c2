"""The recipes of small networks and tables: each for two steps, and what their own functions promise."""

import csv
import importlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bench.figures import outcome
from fastload import Augment, convert, open_dataset, settings
from fastload.errors import ConfigError, DatasetError
from tests.conftest import ROOT, launch, write_image

RECIPES = ROOT / "recipes"
SMALL = ("mlp_mnist", "cnn_mnist", "cifar10_quick", "cifar10_speed", "classics", "mlp_temps", "mlp_diabetes")
OPEN_RESIDENT = (
    "mlp_mnist", "cnn_mnist", "cifar10_quick", "cifar10_speed", "classics", "resnet_flowers", "vit_flowers",
    "cnn_food11", "transfer_ants_bees",
)  # fmt: skip
FEW: dict[str, Any] = {"epochs": 1, "max_steps": 2, "batch_size": 5, "device": "cpu", "log_with": None}

pytestmark = pytest.mark.usefixtures("no_accelerate_left")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a recipe as Python does that runs it: its folder is where it looks for its siblings."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 + 7 images of noise of 28x28 pixels in MNIST's own files."""
    root = tmp_path_factory.mktemp("digits") / "mnist"
    root.mkdir()
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (36, 28, 28), np.uint8), (np.arange(36) % 4).astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        (root / f"t10k-{name}-ubyte").write_bytes(head + array.tobytes())
    return convert(root, size=28, split={"valid": 0.2}, workers=1)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 + 6 images of 32x32 pixels, with train and test as CIFAR-10 has them."""
    root = tmp_path_factory.mktemp("colours") / "cifar10"
    for seed in range(26):
        split = "train" if seed < 20 else "test"
        write_image(root / split / ("cat", "dog")[seed % 2] / f"{seed}.jpg", seed, width=32, height=32)
    return convert(root, size=32, workers=1)


def write_table(file: Path, *, num_rows: int = 31) -> list[list[str]]:
    """Write a table in the columns of temps.csv, whose target is a little above yesterday's; return its rows."""
    rng = np.random.default_rng(1)
    rows = []
    for day in range(num_rows):
        yesterday, usual = (int(n) for n in rng.integers(40, 90, 2))
        rows.append([str(v) for v in (2016, 1, day, ("Mon", "Tue", "Wed")[day % 3], yesterday, usual, yesterday + 2)])
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([["year", "month", "day", "week", "temp_1", "average", "actual"], *rows])
    return rows


@pytest.fixture
def temps(tmp_path: Path) -> Path:
    write_table(tmp_path / "temps.csv")
    return convert(tmp_path / "temps.csv", target="actual", split={"valid": 0.3})


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    with (tmp_path / "patients.csv").open("w") as file:
        for row in range(23):
            file.write(",".join([*(f"{x:.3f}" for x in rng.normal(size=8)), str(int(row % 3 > 0))]) + "\n")
    return convert(tmp_path / "patients.csv", target="-1")


def result_of(output: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def earlier_run(output: Path) -> Path:
    """Write an earlier run's summary, which no later one may touch."""
    output.mkdir()
    (output / "result.json").write_text("earlier")
    return output / "result.json"


@pytest.mark.parametrize(
    ("name", "more", "model"),
    [
        ("mlp_mnist", {"hidden": (9, 8), "dropout": 0.0}, "mlp 784-9-8-4"),
        ("cnn_mnist", {}, "cnn 16-32-64"),
        ("cnn_mnist", {"model": "10-20", "optimizer": "sgd"}, "cnn 10-20"),
        ("classics", {"init": "xavier"}, "lenet"),
    ],
)
def test_digits(recipe, digits: Path, tmp_path: Path, name: str, more: dict[str, Any], model: str) -> None:  # type: ignore[no-untyped-def]
    module = recipe(name)
    module.main(module.Settings(dataset=digits, output=tmp_path / "run", **FEW, **more))
    result = result_of(tmp_path / "run")
    assert (result["model"], result["data"]["train"]) == (model, 28)
    assert result["epochs"][0]["accuracy"] is not None
    assert (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize("more", [{}, {"relu": True, "augment": True}])
def test_cifar10_quick(recipe, colours: Path, tmp_path: Path, more: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    module = recipe("cifar10_quick")
    module.main(module.Settings(dataset=colours, output=tmp_path / "run", **FEW, **more))
    assert result_of(tmp_path / "run")["model"].startswith("quick, ReLU, crop" if more else "quick, no ReLU")


def test_without_relu_the_quick_network_is_the_notes(recipe) -> None:  # type: ignore[no-untyped-def]
    module = recipe("cifar10_quick")
    kinds = [type(layer).__name__ for layer in module.make_network(3, 10, relu=False).modules()]
    assert "ReLU" not in kinds
    assert sum(kind == "Conv2d" for kind in kinds) == 3
    assert sum(p.numel() for p in module.make_network(3, 10, relu=False).parameters()) == 145_578


def test_cifar10_speed_compiles_once_and_every_run_begins_anew(  # type: ignore[no-untyped-def]
    recipe, colours: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []  # really compiled, it takes ten seconds; see the next test
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    earlier = earlier_run(tmp_path / "run")
    module = recipe("cifar10_speed")
    train_once, done = module.train_once, []

    def seen(s: Any, *given: Any) -> Any:
        result = train_once(s, *given)
        done.append((s, given, result.epochs[-1].train_loss))
        return result

    monkeypatch.setattr(module, "train_once", seen)
    more = {"mixed_precision": "no", "width": 4, "runs": 2, "cutout": 8, "compile": True}
    module.main(module.Settings(dataset=colours, output=tmp_path / "run", **{**FEW, **more}))
    seen(done[1][0], *done[1][1])
    network = done[0][1][0]
    assert compiled == [network.layers]
    assert all(given[0] is network for _, given, _ in done), "another network would be compiled anew"
    first, second, again = (loss for *_, loss in done[1:])
    assert first == again != second
    out = capsys.readouterr().out
    assert "(mean of 2 runs of" in out
    assert " s before them" in out
    of_run, whole = result_of(tmp_path / "run-2" / "run-1"), result_of(tmp_path / "run-2")
    assert earlier.read_text() == "earlier"
    assert of_run["epochs"][0]["accuracy"] is None, "no evaluation within an epoch"
    assert len(whole["accuracies"]) == 2
    with pytest.raises(ConfigError, match="Lookahead"):
        module.main(module.Settings(dataset=colours, resume=True))


def test_the_speed_networks_layers_are_compiled_as_a_whole_and_stay_so(recipe) -> None:  # type: ignore[no-untyped-def]
    from torch._dynamo.testing import CompileCounter  # takes a second

    counter, classic = CompileCounter(), recipe("models")
    layers = recipe("speed_network").Layers(torch.nn.Linear(3, 2), classic.Affine(torch.ones(()), torch.ones(())))
    layers.compile(backend=counter)
    for _ in range(2):
        layers(torch.ones(2, 3))
        layers.load_state_dict({name: weight + 1 for name, weight in layers.state_dict().items()})
    assert (counter.frame_count, counter.op_count) == (1, 3)


def test_evaluation_looks_at_moved_views_too(recipe) -> None:  # type: ignore[no-untyped-def]
    speed = recipe("speed_network")
    x = torch.randn(2, 3, 6, 6)
    views = speed.Views(torch.nn.Flatten(), moved=True)
    assert torch.equal(views(x), x.flatten(1)), "in training the image alone"
    views.eval()
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    expected = x.numpy() / 2 + (wide[:, :, :6, :6] + wide[:, :, 2:, 2:]) / 4
    np.testing.assert_allclose(views(x).numpy(), expected.reshape(2, -1), rtol=1e-6)
    assert torch.equal(speed.Views(torch.nn.Flatten(), moved=False).eval()(x), x.flatten(1))


def test_lookahead_goes_back_to_slow_weights_after_five_steps_and_the_last(recipe) -> None:  # type: ignore[no-untyped-def]
    network = torch.nn.Linear(1, 1, bias=False)
    network.register_buffer("count", torch.tensor(0))
    torch.nn.init.zeros_(network.weight)
    optimizer, seen = torch.optim.SGD(network.parameters(), lr=1.0), []

    def step() -> None:
        network.weight.grad = -torch.ones_like(network.weight)  # one more at every step
        optimizer.step()

    with recipe("lookahead").Lookahead(network, 12):
        for _ in range(12):
            step()
            seen.append(network.weight.item())
    step()
    assert seen[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 9], "nothing to go back to before the fifth"
    tenth = 5 + (1 - 0.95**5 * (10 / 12) ** 3) * 5
    last = tenth + (1 - 0.95**5) * 2
    assert seen[9:] == pytest.approx([tenth, tenth + 1, last], rel=1e-6)
    assert network.weight.item() == pytest.approx(last + 1), "after `with` it follows no more"


def test_whitened_patches_are_uncorrelated_and_of_one_size(recipe, colours: Path) -> None:  # type: ignore[no-untyped-def]
    speed = recipe("cifar10_speed")
    train, plain = open_dataset(colours), Augment()
    filters = speed.whitening(train, plain)
    images = plain(torch.stack([train[i][0] for i in range(len(train))]))
    seen = torch.nn.functional.conv2d(images, filters).permute(1, 0, 2, 3).flatten(1)
    assert torch.equal(seen[12:], -seen[:12])
    moments = seen[:12] @ seen[:12].T / seen.shape[1]
    assert (moments - moments.diag().diag()).abs().max() < 1e-3
    # Smooth images leave little in some directions, and what is below 5e-4 is not blown up.
    assert 0.99 < moments.diag().max() <= 1.001
    network = speed.make_network(4, 2, filters)
    assert network(images[:3]).shape == (3, 2)
    assert "0.filters" not in dict(network.named_parameters())


def test_under_autocast_a_shift_stays_in_half_precision(recipe) -> None:  # type: ignore[no-untyped-def]
    network = recipe("speed_network").make_network(4, 2, torch.randn(24, 3, 2, 2))
    seen: list[torch.dtype] = []
    for layer in network:
        layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(3, 3, 32, 32))
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("channels", [1, 3])
def test_every_classic_takes_its_size(recipe, channels: int) -> None:  # type: ignore[no-untyped-def]
    models, classics = recipe("models"), recipe("classics")
    for name, size in classics.SIZES.items():
        with torch.device("meta"):  # shapes only: VGG11 has 129 million weights
            network = getattr(models, name)(channels, 10)
            assert network(torch.empty(2, channels, size, size)).shape == (2, 10), name


def test_init_draws_weights_as_it_says(recipe) -> None:  # type: ignore[no-untyped-def]
    begin = recipe("classics").begin
    deviations = {"normal": 0.01, "xavier": (2 / (300 + 200)) ** 0.5, "kaiming": (2 / 300) ** 0.5}
    for init, deviation in deviations.items():
        layer = torch.nn.Linear(300, 200)
        begin(torch.nn.Sequential(layer), init)
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.02), init
        assert not layer.bias.any()
    layer = torch.nn.Linear(300, 200)
    before = layer.weight.clone()
    begin(torch.nn.Sequential(layer), "own")
    assert torch.equal(layer.weight, before)


def test_mlp_temps_beside_its_baselines(recipe, temps: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    module = recipe("mlp_temps")
    module.main(module.Settings(dataset=temps, output=tmp_path / "run", **FEW))
    result = result_of(tmp_path / "run")
    assert result["baselines"]["temp_1"] == pytest.approx(2.0, abs=1e-4), "the target is yesterday's plus two"
    said = capsys.readouterr().out
    error = result["epochs"][-1]["mean_absolute_error"]
    assert f"mean absolute error of the network's last state: {error:.2f}" in said
    assert (tmp_path / "run" / "predicted.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ConfigError, match="--baselines week: no such column of numbers"):
        module.main(module.Settings(dataset=temps, baselines=("week",), output=tmp_path / "b", **FEW))


def test_a_column_is_as_it_stood_in_the_table(recipe, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = write_table(tmp_path / "t.csv")
    dataset = open_dataset(convert(tmp_path / "t.csv", target="actual"))
    found = recipe("mlp_temps").column(dataset, "average")
    assert sorted(found.tolist()) == pytest.approx(sorted(float(row[5]) for row in rows), abs=1e-3)


def test_mlp_diabetes_validates_every_row_once(recipe, patients: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    earlier = earlier_run(tmp_path / "run")
    module = recipe("mlp_diabetes")
    module.main(module.Settings(dataset=patients, folds=4, output=tmp_path / "run", **FEW))
    counts = []
    for fold in range(1, 5):
        with (tmp_path / "run-2" / f"fold-{fold}" / "per_class.csv").open() as file:
            counts.append([int(row["samples"]) for row in csv.DictReader(file)])
    assert np.sum(counts, 0).tolist() == [8, 15]
    assert (np.ptp(counts, 0) <= 1).all(), "each fold has its share of both classes"
    assert earlier.read_text() == "earlier"
    summary = result_of(tmp_path / "run-2")
    shares = [result_of(tmp_path / "run-2" / f"fold-{n}")["epochs"][-1]["accuracy"] for n in range(1, 5)]
    assert summary["accuracy"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert "always the more frequent class 65.2%" in capsys.readouterr().out  # 15 of 23


@pytest.mark.parametrize(
    ("name", "data", "more", "said"),
    [
        ("cnn_mnist", "colours", {}, "convert them with --size 28"),
        ("cifar10_quick", "colours", {"dataset": Path("nowhere.fastload")}, "nowhere.fastload: no such dataset"),
        *((name, "colours", {"dataset": Path("x.beton")}, "want a NAME.fastload") for name in OPEN_RESIDENT),
        ("cifar10_speed", "digits", {}, "convert colour images with --size 32"),
        ("classics", "digits", {"size": 32}, "LeNet's layers fit 28 pixels only"),
        ("mlp_temps", "patients", {}, "this recipe predicts an amount"),
        ("mlp_diabetes", "digits", {}, "a table with two classes"),
        ("mlp_diabetes", "patients", {"folds": 1}, "2 folds or more"),
    ],
)
def test_a_mistake_is_one_sentence(recipe, request, tmp_path: Path, name, data, more, said) -> None:  # type: ignore[no-untyped-def]
    module, output = recipe(name), tmp_path / "run"
    dataset = (
        colours_with_valid(tmp_path) if (name, data) == ("cnn_mnist", "colours") else request.getfixturevalue(data)
    )
    with pytest.raises((ConfigError, DatasetError), match=said):
        module.main(module.Settings(**{**FEW, "dataset": dataset, "output": output, **more}))
    assert not output.exists(), "nothing was trained"


def colours_with_valid(root: Path) -> Path:
    for seed in range(10):
        write_image(root / "c" / "ab"[seed % 2] / f"{seed}.jpg", seed)
    return convert(root / "c", size=32, split={"valid": 0.4}, workers=1)


@pytest.mark.parametrize(
    ("name", "more"),
    [("resnet_flowers", {"crop": 32}), ("resnet_flowers", {"crop": 64, "small_epochs": 1}),
     ("transfer_ants_bees", {"crop": 32}), ("cnn_food11", {"size": 32})],
)  # fmt: skip
def test_too_small_an_image_is_said_before_anything_is_trained(  # type: ignore[no-untyped-def]
    recipe, name: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = recipe(name)
    small = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 40), torch.nn.Flatten())  # as AlexNet's or Inception's
    monkeypatch.setattr(module, "build", lambda *_: (small, "none"))
    with pytest.raises(ConfigError, match=r"cannot take images of 32x32 pixels \(Calculated.*--crop\.$"):
        module.main(
            module.Settings(dataset=colours_with_valid(tmp_path), model="any", output=tmp_path / "run", **FEW, **more)
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_mlp_temps_on_two_processes(temps: Path, tmp_path: Path) -> None:
    done = launch(
        "tests.forked_recipe", "recipes/mlp_temps.py", temps,
        "--epochs", 1, "--max-steps", 2, "--batch-size", 4, "--device", "cpu", "--output", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "run")
    assert result["num_processes"] == 2
    # What `predict` gathered from both gives the error that `fit` summed over both; nine rows, of which one is padded.
    error = result["epochs"][-1]["mean_absolute_error"]
    assert done.stdout.count(f"mean absolute error of the network's last state: {error:.2f}") == 1


def commands() -> list[tuple[str, str]]:
    """Return (file, command) of every command that a header or recipes/README.md names of these recipes."""
    found = []
    for file in [*(RECIPES / f"{name}.py" for name in SMALL), RECIPES / "README.md"]:
        for line in re.findall(rf"recipes/(?:{'|'.join(SMALL)})\.py[^`#\n]*", file.read_text()):
            if "--help" not in line:
                found.append((file.name, line.strip()))
    return found


def test_every_command_that_is_named_is_one(recipe) -> None:  # type: ignore[no-untyped-def]
    named = commands()
    assert {file for file, _ in named} == {*(f"{name}.py" for name in SMALL), "README.md"}
    for _, command in named:
        script, *words = shlex.split(command)
        if "--config" in words:  # a file that an earlier run wrote; other tests read some
            words = words[: words.index("--config")] + words[words.index("--config") + 2 :]
        settings.parse(recipe(Path(script).stem).Settings, words)


def test_headers_tell_what_was_measured() -> None:
    files = sorted((ROOT / "bench" / "results").glob("recipes_*.json"))
    measured = set()
    for file in files:
        result = json.loads(file.read_text())
        script = RECIPES / Path(shlex.split(result["command"])[0]).name
        measured.add(script.stem)
        header = " ".join(script.read_text().split('"""')[1].split())
        assert outcome(result) in header, f"{script.name} does not say what {file.name} does: {outcome(result)}"
        assert result["versions"]["torch"] in header
    assert {"mlp_mnist", "cnn_mnist", "classics", "mlp_temps", "mlp_diabetes"} <= measured
