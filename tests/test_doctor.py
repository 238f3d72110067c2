"""The doctor speaks where something is broken: that is when it is called."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastload import doctor
from tests.conftest import ROOT

BROKEN = 'raise RuntimeError("operator torchvision::nms does not exist")'
# For those who work on fastload itself: its benchmarks' peers, its demo and its checks.
NOT_FOR_USERS = {"bench", "demo", "dev"}


def examined(folder: Path, **packages: str) -> subprocess.CompletedProcess[str]:
    """Run the doctor where `packages` are these lines of code, and FFCV, which takes seconds to load, is empty."""
    for name, code in {"ffcv": "", "ffcv/writer": "", "ffcv/loader": "", **packages}.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)
    program = "from fastload.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "doctor"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
    )  # fmt: skip


@pytest.mark.processes
def test_a_torchvision_that_does_not_fit_is_a_line(tmp_path: Path) -> None:
    done = examined(tmp_path, torchvision=BROKEN)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stdout.split())
    assert "broken torchvision loads no: it does not fit torch" in said
    assert "torchvision::nms does not exist" in said
    assert "torchvision loads: pip install --force-reinstall torch torchvision" in done.stdout


@pytest.mark.processes
def test_a_torch_that_does_not_load_is_a_line(tmp_path: Path) -> None:
    done = examined(tmp_path, torch='raise OSError("libcudart.so.13: cannot open shared object file")')
    assert "Traceback" not in done.stderr
    assert done.returncode == 1, done.stderr
    assert "libcudart.so.13" in done.stdout
    assert "torch loads: pip install --force-reinstall torch" in done.stdout


def test_everything_a_user_may_need_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(doctor.CORE) == {text.partition(">=")[0] for text in project["dependencies"]}
    monkeypatch.setattr(doctor, "installed", lambda names: dict.fromkeys(names))
    found = {finding.command: finding for finding in (*doctor.packages(), doctor._ffcv(doctor._imported("")))}
    for name in doctor.CORE:
        assert found[f"pip install {name}"].state == "broken"
    extras = project["optional-dependencies"].keys() - NOT_FOR_USERS
    for extra in extras:
        (finding,) = [f for command, f in found.items() if f'pip install "fastload[{extra}]"' in command]
        assert finding.state == "absent"
        assert finding.name.lower() in str(project["optional-dependencies"][extra])


def test_the_command_that_brings_ffcv_stands_in_one_place() -> None:
    files = [file.name for file in (ROOT / "fastload").rglob("*.py") if "libturbojpeg0-dev" in file.read_text()]
    assert files == ["machine.py"]
