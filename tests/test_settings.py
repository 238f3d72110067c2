"""Settings of recipes: flags, help, YAML files, and mistakes in them."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest
import torch
import tyro
import yaml

from fastload import Loader, TrainConfig, Trainer, open_dataset
from fastload.config import TrainConfig as Config
from fastload.errors import ConfigError
from fastload.settings import load, parse, plain, run, save


@dataclass(frozen=True, kw_only=True)
class Settings(TrainConfig):
    dataset: tyro.conf.Positional[Path]
    """What fastload convert wrote."""
    epochs: int = 3
    size: int = 64
    """Side of the crops, in pixels."""
    widths: tuple[int, ...] = (8, 16)
    """Of the layers."""
    weights: Literal["auto", "none"] | Path = "auto"
    """Where to start from."""


def test_every_field_is_a_flag_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Settings, ["--help"], about="Train a thing.")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "Train a thing." in said
    assert "--config FILE.yaml" in said
    for field in fields(Settings):
        assert (
            f"--{field.name.replace('_', '-')} " in said
            or field.name in ("dataset", "tf32", "channels_last")
            or (f"--{field.name.replace('_', '-')}," in said)
        ), field.name
    assert "Passes over the training split. (default: 3)" in " ".join(said.split())


def test_every_field_of_the_config_says_what_it_is() -> None:
    from tyro._docstrings import get_field_docstring

    for field in fields(Config):
        assert get_field_docstring(Config, field.name, ()), field.name


def test_flags_overrule_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lr: 1e-2\nmixed-precision: no\nsize: 96\nwidths: [4, 4, 4]\nepochs: 7\ndataset: a.fastload\n")
    settings = parse(Settings, ["--config", str(file), "--size", "128", "--ema", "0.9"])
    assert (settings.lr, settings.mixed_precision, settings.size, settings.epochs) == (0.01, "no", 128, 7)
    assert (settings.widths, settings.dataset, settings.ema) == ((4, 4, 4), Path("a.fastload"), 0.9)
    assert parse(Settings, [f"--config={file}", "b.fastload"]).dataset == Path("b.fastload")
    file.write_text("size: 96\n")
    assert parse(Settings, ["x", "--config", str(file)]).size == 96
    with pytest.raises(SystemExit) as ended:
        parse(Settings, ["--config", str(file)])  # the dataset is still asked for
    assert ended.value.code == 2
    file.write_text("")
    assert parse(Settings, ["x", "--config", str(file)]).size == 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sise: 3", "sise is no setting; did you mean size"),
        ("zzz: 3", "see --help"),
        ("size: big", "size is 'big', and a whole number is needed"),
        ("size: 1.5", "a whole number"),
        ("size: true", "a whole number"),
        ("lr: fast", "lr is 'fast', and a number is needed"),
        ("tta: 1", "true or false"),
        ("schedule: x", "cosine or step or one_cycle or constant"),
        ("patience: [1]", "a whole number or null"),
        ("widths: 3", "a list of a whole number"),
        ("output: 3", "a path"),
        ("- 1", "holds no names"),
        ("a: [", "is no YAML"),
        ("!!python/object/apply:os.system [ls]", "is no YAML"),
        ("lr: -1", "a number above 0"),
        ("\x1b[31m: 1", "is no YAML"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")) as error:
        parse(Settings, ["x", "--config", str(tmp_path / "c.yaml")])
    assert "\x1b" not in str(error.value)


def test_mistakes_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config needs"):
        parse(Settings, ["x", "--config"])
    with pytest.raises(ConfigError, match="cannot be read"):
        parse(Settings, ["x", "--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="epochs=0"):
        parse(Settings, ["x", "--epochs", "0"])
    with pytest.raises(SystemExit):
        parse(Settings, ["x", "--nonsense", "0"])
    assert "nonsense" in capsys.readouterr().err


def test_run_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(settings: Settings) -> None:
        """Do it."""
        raise ConfigError(f"{settings.dataset} is wrong.")

    monkeypatch.setattr("sys.argv", ["recipe.py", "x"])
    with pytest.raises(SystemExit) as ended:
        run(main, Settings)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "ConfigError: x is wrong.\n"


def test_saved_settings_are_read_again(tmp_path: Path) -> None:
    settings = Settings(
        dataset=Path("ä b.fastload"), lr=3e-7, widths=(1,), weights=Path("w.pth"), mixed_precision="no", ema=0.9,
    )  # fmt: skip
    save(settings, tmp_path / "s.yaml")
    assert Settings(**load(Settings, tmp_path / "s.yaml")) == settings
    assert json.loads(json.dumps(plain(settings)))["widths"] == [1]


@pytest.mark.usefixtures("no_accelerate_left")
def test_a_run_leaves_its_settings(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other").touch()
    settings = Settings(
        dataset=dataset, output=tmp_path / "run", device="cpu", epochs=1, size=7, log_with=None, max_steps=2
    )
    trainer = Trainer(settings)
    loader = Loader(open_dataset(dataset), 4)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20 * 20 * 3, 3))
    result = trainer.fit(model, loader)
    assert result.output == tmp_path / "run-2"
    found = parse(Settings, ["--config", str(result.output / "settings.yaml"), "--resume"])
    assert found == Settings(**{**vars(settings), "output": result.output, "resume": True})
    beside = json.loads((result.output / "last.json").read_text())
    assert (beside["config"]["size"], beside["config"]["dataset"]) == (7, dataset.name)
    assert yaml.safe_load((result.output / "settings.yaml").read_text())["size"] == 7
