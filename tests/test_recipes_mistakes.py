"""Settings and data that recipes are not for: one sentence and exit code 2, before anything is trained."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision.transforms.v2 as T

from fastload import Augment, convert, settings
from fastload.errors import TransformError
from tests.test_recipes_small import colours, digits, patients, recipe, temps, write_table

__all__ = ["colours", "digits", "patients", "recipe", "temps"]  # fixtures
FEW = {"--epochs": "1", "--max-steps": "2", "--batch-size": "5", "--device": "cpu", "--log-with": "None"}

pytestmark = pytest.mark.usefixtures("no_accelerate_left")


@pytest.fixture
def two_targets(tmp_path: Path) -> Path:
    write_table(tmp_path / "two.csv")
    return convert(tmp_path / "two.csv", target=["actual", "day"], split={"valid": 0.3})


@pytest.mark.parametrize(
    ("name", "data", "words", "said"),
    [
        ("mlp_mnist", "digits", "--loss mse", "loss=mse is for amounts, and mnist has classes"),
        ("mlp_mnist", "digits", "--loss bce", "loss=bce is for two classes, and mnist has 4"),
        ("mlp_diabetes", "patients", "--loss cross_entropy", "wants a logit for each class, 2 or more"),
        ("mlp_temps", "temps", "--loss cross_entropy", "the labels of temps.csv are amounts; use loss=mse"),
        ("mlp_temps", "two_targets", "", "loss=mse wants one output for each amount"),
        ("mlp_mnist", "digits", "--seed -1", "seed=-1: a whole number from 0 to 4,294,967,295"),
        ("mlp_mnist", "digits", "--seed 5000000000", "seed=5000000000: a whole number"),
        ("mlp_mnist", "digits", "--device xpu", "device xpu is not supported; use cpu, cuda, cuda:1 or mps"),
        ("mlp_mnist", "digits", "--device meta", "device meta is not supported"),
        ("mlp_mnist", "digits", "--dropout 2", "dropout=2: a number from 0 to below 1"),
        ("mlp_mnist", "digits", "--hidden 9 0", "hidden=0: 1 or more"),
        ("mlp_mnist", "temps", "", "and this recipe wants images; convert some"),
        ("classics", "temps", "", "and this recipe wants images; convert some"),
        ("vit_flowers", "temps", "", "wants images of 3 channels"),
        ("vit_flowers", "digits", "", "holds 28x28x1 uint8, and this recipe wants images of 3 channels"),
        ("cnn_food11", "digits", "--size 32", "wants images of 3 channels"),
        ("vit_flowers", "dataset", "--model resnet18", "model resnet18 cannot be made with img_size=64, patch_size=8"),
        ("vit_flowers", "dataset", "--patch-size 0", "patch_size=0: 1 or more"),
        ("mlp_temps", "temps", "--hidden -1", "hidden=-1: 1 or more"),
        ("cifar10_speed", "colours", "--runs 0", "runs=0: 1 or more"),
    ],
)
def test_a_mistake_ends_with_one_sentence_before_anything_is_trained(
    name: str, data: str, words: str, said: str, recipe: Callable[[str], ModuleType], request: pytest.FixtureRequest,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    module, own = recipe(name), words.split()
    few = [word for flag, value in FEW.items() if flag not in own for word in (flag, value)]
    output = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", [name, str(request.getfixturevalue(data)), *few, *own, "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        settings.run(module.main, module.Settings)
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in err
    assert "Traceback" not in err
    assert not list(output.rglob("*.safetensors")), "something was trained"


def test_a_normalization_of_no_channel_is_told() -> None:
    with pytest.raises(TransformError, match="has a value that is not above 0"):
        Augment([T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize((), ())])
