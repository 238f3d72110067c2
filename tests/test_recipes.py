"""Recipes and launch files, run as a user runs them, for two steps."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fastload import convert
from tests.conftest import ROOT, launch, write_folder

pytestmark = pytest.mark.processes
RECIPE = "recipes/resnet_flowers.py"
FEW = (
    "--model", "test_resnet", "--weights", "none", "--size", 32, "--batch-size", 3, "--epochs", 1, "--max-steps", 2,
    "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def insects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(write_folder(tmp_path_factory.mktemp("recipes") / "insects"), size=32)


def test_two_ranks_see_disjoint_samples(insects: Path, tmp_path: Path) -> None:
    """`accelerate launch` with the two-process file really starts two, and they share the data."""
    done = launch(
        "accelerate", "launch", "--config_file", "launch/cpu_2proc.yaml",
        "tests/record_ids.py", RECIPE, insects, *FEW[:-2], "--output", tmp_path / "run",
        env={"FASTLOAD_TEST_IDS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranks = [json.loads(f.read_text()) for f in sorted(tmp_path.glob("rank-*.json"))]
    assert [(r["rank"], r["world_size"]) for r in ranks] == [(0, 2), (1, 2)]
    mine, theirs = (set(r["train"]) for r in ranks)
    assert len(mine) == len(theirs) == 6  # two steps of three
    assert not mine & theirs
    mine, theirs = (set(r["valid"]) for r in ranks)
    assert mine | theirs == set(range(7))
    assert not mine & theirs
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["num_processes"] == 2
    assert done.stdout.count("accuracy") == 1, "only the main process speaks"


@pytest.fixture
def run_recipe(monkeypatch: pytest.MonkeyPatch, no_accelerate_left: None) -> Callable[..., object]:
    """Run the recipe with words of a command line, in this process."""

    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", [RECIPE, *(str(word) for word in words)])
        runpy.run_path(str(ROOT / RECIPE), run_name="__main__")

    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    return run


def test_one_process(
    insects: Path, tmp_path: Path, run_recipe: Callable[..., object], capfd: pytest.CaptureFixture[str]
) -> None:
    run_recipe(insects, *FEW, "--output", tmp_path / "run")
    assert "accuracy" in capfd.readouterr().out
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_without_a_dataset_it_says_which_command_makes_one(
    tmp_path: Path, run_recipe: Callable[..., object], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_recipe(tmp_path / "nothing.fastload", *FEW)
    assert ended.value.code == 2
    assert "fastload convert" in capfd.readouterr().err


def test_demo_images_come_from_disjoint_regions(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    sys.path.insert(0, str(ROOT))
    from PIL import Image

    from recipes.demo_images import REGIONS

    assert REGIONS["train"][1] < REGIONS["valid"][0]
    done = launch("recipes/demo_images.py", tmp_path / "photographs", "--per-class", 2)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "photographs").rglob("*.jpg"))
    assert len(files) == 7 * (2 + 1)
    with Image.open(files[0]) as image:
        assert (image.size, image.format) == ((500, 375), "JPEG")
    again = launch("recipes/demo_images.py", tmp_path / "photographs")
    assert again.returncode == 2


@pytest.mark.parametrize("file", sorted((ROOT / "launch").glob("*.yaml")), ids=lambda f: f.name)
def test_launch_files_are_accelerates(file: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes == {"cpu": 1, "cpu_2proc": 2, "one_gpu": 1, "eight_gpus": 8, "two_nodes": 16}[file.stem]
    assert file.name in (ROOT / "launch" / "README.md").read_text()
    assert yaml.safe_load(file.read_text())["distributed_type"] == config.distributed_type.value
