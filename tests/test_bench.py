import io
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from bench import gpu_util, training
from bench.cli import main
from bench.feeds import Feed
from bench.figures import outcome, update
from bench.gpu_util import Options as Feeding
from bench.gpu_util import _feed, _report, _with_dataset
from bench.outputs import Outputs
from bench.peers import find_pair, folder_loader, training_folder
from bench.training import Options, measure
from fastload.errors import ConfigError, FastloadError
from fastload.profiling.loops import Feeding as FeedingOf
from fastload.profiling.report import Action
from tests.conftest import ROOT, launch, write_folder
from tests.reports_help import check_report, make_loop


@pytest.mark.processes
def test_gpu_util_measures_both_ways(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "insects")
    done = launch(
        "bench", "gpu-util", folder, "--size", 32, "--batch-size", 3, "--steps", 21, "--workers", 1, "--device", "cpu",
        "--assume-gpu-rate", 3, "--model", "test_resnet", "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    check_report(result)
    assert result["verdict"]["word"] in done.stdout
    assert result["run"]["device"] == "cpu"
    assert [loop["name"] for loop in result["loops"]] == ["ImageFolder + DataLoader(1)", "fastload, host"]
    for loop in result["loops"]:
        assert loop["gpu"] == {"busy_share": None, "nvml": None, "memory_bytes": None}
        assert loop["steps"]["count"] >= 21
        assert 0 <= loop["wait"]["share"] < 1
        real, load, replay = (rate["value"] for rate in loop["throughput"].values())
        assert loop["headspace"] == pytest.approx(1 - real / replay, abs=1e-3)
        assert loop["efficiency"] == pytest.approx(real / min(load, replay), abs=1e-3)
    folder_loop, host_loop = result["loops"]
    assert folder_loop["sample"]["count"] == 13
    assert (folder_loop["memory_bytes"], host_loop["memory_bytes"]) == (None, 13 * 37 * 37 * 3)
    real, replay = (folder_loop["throughput"][name]["value"] for name in ("x_real", "x_replay"))
    load = host_loop["throughput"]["x_load"]["value"]
    assert result["resident_gain"]["speedup"] == pytest.approx(1 / (1 / replay + 1 / load) / real, rel=1e-3)
    assert all(word in action["text"] for word, action in [("3 images/s would wait", result["actions"][-1])])
    assert str(tmp_path) not in json.dumps(result)


@pytest.mark.parametrize(("name", "said"), [("", "fastload convert"), (".fastload", "accelerate launch recipes/")])
def test_a_command_works_from_here_and_is_cut_where_it_is_written(tmp_path: Path, name: str, said: str) -> None:
    folder, data = tmp_path / "my insects", tmp_path / f"my insects{name}"
    options = Feeding(model="resnet18", size=16, batch_size=3, workers=2, steps=1, precision="no", device=None,
                      max_images=9)  # fmt: skip
    feed = SimpleNamespace(feeding=FeedingOf(num_workers=2), num_warmup=3)
    report = _report(folder, data, 13, 18, (make_loop(),), [feed], options, torch.device("cpu")).as_dict()
    commands = [action["command"] for action in report["actions"]]
    (command,) = {c for c in commands if c and c.startswith(said)}
    assert f" '{data}'" in command
    Outputs(json=tmp_path / "out.json").write(report, Console(file=io.StringIO()))
    written = (tmp_path / "out.json").read_text()
    assert str(tmp_path) not in written
    assert f" 'my insects{name}'" in written
    # A report of somebody's own script stays with him.
    Outputs(json=tmp_path / "out.json").write(
        {**report, "run": {**report["run"], "entry": "hook"}}, Console(file=io.StringIO())
    )
    assert f" '{data}'" in (tmp_path / "out.json").read_text()


def test_the_recipe_that_is_advised_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advised = Action(text="Convert.", command="fastload convert photos")
    for folder in (tmp_path, ROOT, ROOT / "bench"):
        monkeypatch.chdir(folder)
        command = _with_dataset(advised, Path("my photos.fastload")).command
        assert command is not None
        *_, recipe, data = shlex.split(command)
        assert Path(recipe).is_file()
        assert data == "my photos.fastload"
    monkeypatch.setattr(gpu_util, "RECIPE", tmp_path / "recipes" / "resnet_flowers.py")
    assert _with_dataset(advised, Path("my photos.fastload")).command is None


@pytest.mark.processes
def test_loader_compares_the_same_work(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "insects")
    done = launch(
        "bench", "loader", folder, "--store", 24, "--size", 20, "--batch-size", 3, "--workers", 0, "--threads", 1,
        "--rounds", 2, "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    # These pictures are of their own sizes: no peer of ffcv.
    assert list(result["images_per_second"]) == [
        "ImageFolder + DataLoader(0)", "timm create_loader(1)", "fastload, host", "fastload, mapped",
        "fastload, folder(1) of stored pixels",
    ]  # fmt: skip
    assert result["baseline"] == "ImageFolder + DataLoader(0)"
    assert list(result["first_batch_seconds"]) == list(result["images_per_second"])
    assert all(len(rounds) == 2 for rounds in result["all_rounds"].values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere",), "no such folder or dataset"),
        (("GOOD", "--model", "resnet17"), "resnet17"),
        (("GOOD", "--batch-size", "900"), "smaller --batch-size"),
        (("GOOD", "--batch-size", "7"), "less than two batches of 7"),  # of 13: all epochs are of one batch
        (("GOOD", "--loader", "folder,tape"), "tape"),
        (("GOOD", "--batch-size", "3", "--model", "test_vit3", "--size", "64"), "test_vit3 does not run on images"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    folder: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In this process: another one would import torch anew for each mistake.
    monkeypatch.setattr(sys, "argv", ["bench", "gpu-util", *(str(folder) if w == "GOOD" else w for w in words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_a_dataset_is_measured_with_the_folder_beside_it(tmp_path: Path, dataset: Path) -> None:
    assert find_pair(dataset) == (dataset.with_suffix(""), dataset)
    assert find_pair(dataset.with_suffix("")) == (dataset.with_suffix(""), None)
    shutil.copytree(dataset, tmp_path / "alone.fastload")
    with pytest.raises(FastloadError, match="not beside it"):
        find_pair(tmp_path / "alone.fastload")


def test_batches_are_pinned_only_for_a_gpu_that_takes_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine with a GPU, where batches are wanted on the CPU.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sizes = {"size": 16, "batch_size": 3, "workers": 0}
    assert not folder_loader(folder / "train", store=20, **sizes).pin_memory
    options = Feeding(model="resnet18", steps=1, precision="no", device=None, max_images=9, **sizes)  # type: ignore[arg-type]
    feed = _feed("folder", folder / "train", None, folder, 20, options, torch.device("cpu"))
    assert not feed.loader.pin_memory


@pytest.mark.gpu
def test_a_folder_that_feeds_a_gpu_is_pinned(folder: Path) -> None:
    options = Feeding(model="resnet18", size=16, batch_size=3, workers=0, steps=1, precision="no", device=None,
                      max_images=9)  # fmt: skip
    feed = _feed("folder", folder / "train", None, folder, 20, options, torch.device("cuda", 0))
    assert feed.loader.pin_memory


def test_a_part_of_a_folder_keeps_its_classes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "insects")
    with training_folder(folder, 6) as (root, count):
        assert count == 5
        assert len(list(root.iterdir())) == 3
        linked = list(root.rglob("*.jpg"))
        assert len(linked) == 5
        assert all(f.read_bytes() for f in linked)
    assert not root.exists()


def test_the_readme_has_the_figures_of_the_results() -> None:
    assert update(ROOT, check=True)


def test_a_changed_figure_is_found_and_mended(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    shutil.copytree(ROOT / "bench" / "results", tmp_path / "bench" / "results")
    readme = tmp_path / "README.md"
    original = (ROOT / "README.md").read_text()
    readme.write_text(original.replace("validation accuracy", "validation accuracy of 99%", 1))
    assert not update(tmp_path, check=True)
    assert update(tmp_path, check=False)
    assert readme.read_text() == original


def test_a_table_of_training_runs_has_a_row_each(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    shutil.copytree(ROOT / "bench" / "results", tmp_path / "bench" / "results")
    table = tmp_path / "recipes" / "README.md"
    table.write_text(
        "before\n<!-- rows: recipes_mlp_temps recipes_mlp_diabetes -->\nan outdated row\n<!-- end -->\nafter\n"
    )
    assert not update(tmp_path, check=True)
    assert update(tmp_path, check=False)
    assert update(tmp_path, check=True)
    text = table.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "outdated" not in text
    for name in ("recipes_mlp_temps", "recipes_mlp_diabetes"):
        result = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
        (row,) = (line for line in text.splitlines() if f"`{result['command']}`" in line)
        assert outcome(result) in row
        assert f"{result['data']['train']:,}" in row


def test_results_name_machine_versions_data_command_and_date() -> None:
    files = sorted((ROOT / "bench" / "results").glob("*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text())
        if "environment" in result:
            result = {**result, **result["environment"], "data": result["run"]["data"]}
        assert {"machine", "versions", "data", "command", "date", "schema"} <= result.keys(), file.name
        for word in result["command"].split():
            assert not word.startswith("/"), f"{file.name} names a path of one machine"


@pytest.mark.processes
def test_augment_compares_the_same_work(tmp_path: Path) -> None:
    file = tmp_path / "augment.json"
    sizes = ("--store", 24, "--size", 16, "--batch-size", 3, "--rounds", 1)
    done = launch("bench", "augment", "--device", "cpu", *sizes, "--json", file)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["settings"]["batch_size"] == 3
    for peers in result["results"].values():
        assert {"fastload", "torchvision, per batch", "torchvision, per image"} <= peers.keys()
        assert all(row["ms"] > 0 and row["core_ms"] > 0 for row in peers.values())
    assert "floor" not in result, "without a GPU there is none"


@pytest.mark.usefixtures("no_accelerate_left")
def test_training_trains_both_ways_on_the_same_images(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "insects")
    options = Options(model="quick", size=32, batch_size=3, epochs=1, seeds=1, workers=0, lr=1e-3, crop="padded",
                      precision="no")  # fmt: skip
    result = measure(folder, options)
    assert (result["data"]["train"], result["data"]["valid"]) == (13, 7)
    for runs in result["runs"].values():
        assert [set(run) for run in runs] == [{"accuracy", "seconds"}]
        assert all(run["accuracy"] * 7 == pytest.approx(round(run["accuracy"] * 7), abs=1e-3) for run in runs)
    for name, spread in result["accuracy"].items():
        assert spread["mean"] == result["runs"][name][0]["accuracy"]
    with pytest.raises(FastloadError, match="too few images"):
        measure(write_folder(tmp_path / "few", splits=False), options)
    with pytest.raises(FastloadError, match="not known to timm"):
        replace(options, model="no_such")


def test_a_feeds_pass_goes_on_where_it_was_left() -> None:
    class Counted:
        """Its pass is a generator, as that of fastload's Loader is."""

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for number in range(30):
                yield torch.full((2, 3), number), torch.zeros(2)

    feed, seen = Feed("counted", Counted(), torch.device("cpu")), []
    feed.load_block()  # 15 batches
    for _ in range(2):
        seen += [int(images[0, 0]) for images, _ in islice(feed.forever(), 3)]
    feed.run_block(lambda images, _: seen.append(int(images[0, 0])), 2)
    assert seen[:8] == [15, 16, 17, 18, 19, 20, 21, 22]
    assert seen == [*range(15, 15 + len(seen))]


def test_both_ways_train_under_the_same_switches_and_neither_starts_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    network = training._network

    def first_run(*_: object) -> float:
        raise ConfigError(f"{done}")

    monkeypatch.setattr(training, "set_switches", lambda device, **switches: done.append(switches))
    monkeypatch.setattr(training, "_network", lambda *arguments: done.append("warmed up") or network(*arguments))
    monkeypatch.setattr(training, "_usual_loop", first_run)
    options = Options(model="quick", size=16, batch_size=3, epochs=1, seeds=1, workers=0, lr=1e-3, crop="padded",
                      precision="bf16")  # fmt: skip
    with pytest.raises(ConfigError) as began:
        measure(write_folder(tmp_path / "insects"), options)
    assert str(began.value) == str([{"tf32": True, "deterministic": False}, "warmed up"])
