"""`make demo`: each command that it types is one, with flags that it has; what it prints at its end."""

import importlib
import json
import shlex
import sys
from pathlib import Path

import pytest
import typer
from accelerate.commands.launch import launch_command_parser

from bench.cli import app as bench_app
from fastload import settings
from fastload.cli import app
from tests.conftest import ROOT


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Give the demo's module: its results go to a scratch folder, and its commands are parsed instead of run."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / "recipes")
    monkeypatch.chdir(ROOT)
    module = importlib.import_module("recipes.demo")
    for name in ("FOLDER", "DATASET", "RUN", "REPORT"):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).name)
    monkeypatch.setattr(module, "DEMO", tmp_path)
    monkeypatch.setattr(module, "no_gpu", lambda: True)
    monkeypatch.setattr(module, "typed", [], raising=False)

    def step(*words: object) -> None:
        program, *rest = (str(w) for w in words)
        module.typed.append(shlex.join([program, *rest]))
        {
            "recipes/demo_images.py": draw, "fastload": convert, "accelerate": train, "bench": watch,
        }[program](rest)  # fmt: skip

    def draw(words: list[str]) -> None:
        one = typer.Typer()
        one.command()(importlib.import_module("recipes.demo_images").main)
        Path(typer.main.get_command(one).make_context("demo_images", words).params["out"]).mkdir()

    def convert(words: list[str]) -> None:
        given = parsed(app, words)
        assert Path(given["source"]).is_dir()
        Path(given["out"]).mkdir()

    def train(words: list[str]) -> None:
        assert words[0] == "launch"
        given = launch_command_parser().parse_args(words[1:])
        assert Path(given.config_file).is_file()
        recipe = importlib.import_module(Path(given.training_script).stem)
        chosen = settings.parse(recipe.Settings, given.training_script_args)
        assert (chosen.weights, chosen.dataset.is_dir()) == ("none", True)
        output = chosen.output if not chosen.output.exists() else chosen.output.with_name("run-2")
        output.mkdir()
        said = {"best": {"accuracy": 0.5 if output == chosen.output else 0.625}, "verdict": "compute-bound"}
        (output / "result.json").write_text(json.dumps(said))

    def watch(words: list[str]) -> None:
        given = parsed(bench_app, words)
        assert given["data"].is_dir()
        given["json"].write_text(json.dumps({"verdict": {"word": "data-bound", "why": "it waits"}}))

    monkeypatch.setattr(module, "step", step)
    yield module
    for name in ("recipes.demo", "recipes.demo_images", "resnet_flowers", "inputs", "sweep_flowers", "transfer"):
        sys.modules.pop(name, None)


def parsed(commands: typer.Typer, words: list[str]) -> dict[str, object]:
    group = typer.main.get_command(commands)
    found = group.commands[words[0]].make_context(words[0], list(words[1:])).params  # type: ignore[attr-defined]
    return dict(found)


def test_the_demo_types_what_the_commands_take(demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    demo.main()
    programs = ["recipes/demo_images.py", "fastload", "accelerate", "bench"]
    assert [line.split()[0] for line in demo.typed] == programs
    printed = capsys.readouterr().out
    for said in ("accuracy 50.0%", "compute-bound", "data-bound: it waits", f"{tmp_path}/run/"):
        assert said in printed
    # Once more: what is there is used again, and the newest run is told of.
    demo.typed.clear()
    demo.main()
    assert [line.split()[0] for line in demo.typed] == programs[2:]
    printed = capsys.readouterr().out
    assert "accuracy 62.5%" in printed
    assert f"{tmp_path}/run-2/" in printed
