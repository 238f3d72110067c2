import io
import json
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import typer.main
from PIL import Image

from fastload import converting, doctor
from fastload.cli import app, main
from tests.conftest import ROOT, launch, write_folder


def fastload(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: what it prints and how it ends, without loading torch each time."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["fastload", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.mark.processes
def test_as_a_program(tmp_path: Path) -> None:
    done = launch("fastload", "convert", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("SourceError: ")
    assert len(done.stderr.splitlines()) == 1


def test_convert_info_verify_show(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "insects")
    out = tmp_path / "insects.fastload"
    done = fastload("convert", folder, "--size", 24, "--fit", "crop", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "13 train, 7 valid; 3 classes, 24x24" in done.stdout
    info = fastload("info", out).stdout
    for said in ("13 images", "24x24x3", "ant, bee, wasp", "fit crop", "class-folders"):
        assert said in info
    assert "all as written" in fastload("verify", out).stdout
    for words in ((), ("--augment", "RandomResizedCrop(20), ColorJitter(0.4, hue=0.1)", "--split", "valid")):
        assert fastload("show", out, "--out", tmp_path / "sheet.png", *words).returncode == 0
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.width > 500
            assert len(sheet.convert("RGB").getcolors(1 << 24) or []) > 100
    shard = out / "valid-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    damaged = fastload("verify", out)
    assert damaged.returncode == 1
    assert "valid-00000.safetensors" in damaged.stderr


def test_every_command_in_the_documents_is_one() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    name = f"fastload ({'|'.join(commands)})"
    found = set()
    for file in (ROOT / "README.md", *(ROOT / "recipes").glob("*.py"), ROOT / "recipes" / "README.md"):
        text = file.read_text()
        lines = re.findall(rf"^{name} ([^#\n]+)", text, re.MULTILINE)
        for command, words in lines + re.findall(rf"`{name}\s+([^-`][^`]*)`", text):
            given = commands[command].make_context(command, shlex.split(words)).params  # parsed, and not run
            if command == "convert":
                converting.parse_shares(given["split"] or [])
            found.add((file.relative_to(ROOT).as_posix(), command))
    named = {("README.md", "weights"), ("recipes/README.md", "weights"), ("recipes/mlp_mnist.py", "convert")}
    assert named <= found
    done = fastload("convert", "flowers", "--sizes", 9)
    assert done.returncode == 2
    assert "--sizes" in done.stderr


def test_a_cut_by_the_command(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "insects", splits=False)
    done = fastload("convert", folder, tmp_path / "out", "--size", 8, "--split", "valid=0.25", "--split", "test=0.25")
    assert "7 train, 3 valid, 3 test" in done.stdout
    assert list(json.loads((tmp_path / "out" / "manifest.json").read_text())["splits"]) == ["train", "valid", "test"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert", "EMPTY"), "holds no images"),
        (("convert", "nowhere"), "no such folder"),
        (("convert", "FILE"), "is a file"),
        (("convert", "BAD"), "bee/000.jpg"),
        (("convert", "GOOD", "EMPTY"), "exists"),
        (("convert", "GOOD", "--size", "0"), "size=0"),
        (("convert", "GOOD", "--size", "big"), "size"),
        (("convert", "GOOD", "--split", "valid"), "NAME=SHARE"),
        (("convert", "GOOD", "--split", "test=2"), "between 0 and 1"),
        (("convert", "GOOD", "--split", "valid=0.1"), "already has"),
        (("convert",), "SRC"),
        (("info", "nowhere.fastload"), "no such dataset"),
        (("info", "GOOD"), "no dataset"),
        (("verify", "FILE"), "is a file"),
        (("show", "EMPTY"), "no dataset"),
        (("show", "GOOD", "--seed", "99999999999999999999"), "seeds lie between"),
        (("show", "GOOD", "--seed", "-1"), "seeds lie between"),
        (("explode",), "explode"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    made = {name: str(tmp_path / name.lower()) for name in ("EMPTY", "FILE", "BAD", "GOOD")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    write_folder(tmp_path / "good")
    write_folder(tmp_path / "bad")
    (tmp_path / "bad" / "train" / "bee" / "000.jpg").write_bytes(b"\xff\xd8 cut")
    before = {p.name for p in tmp_path.iterdir()}
    done = fastload(*(made.get(w, w) for w in words))
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == before, "something half-written was left"
    if "Usage" not in done.stderr:
        assert len([line for line in done.stderr.splitlines() if ": " in line and "Error" in line]) == 1


def test_only_what_fastload_wrote_is_to_be_deleted(tmp_path: Path) -> None:
    one, two = (write_folder(tmp_path / name, splits=False) for name in ("photos1", "photos2"))
    (tmp_path / "train.tar").write_bytes(b"x")
    (tmp_path / "val.tar").write_bytes(b"x")
    # Two sources, and a pattern that bash has made two words of: the second is OUT.
    for words in ((one, two), (tmp_path / "train.tar", tmp_path / "val.tar"), (one, two, "--format", "ffcv")):
        (tmp_path / "photos2" / "train.json").write_text("{}")
        done = fastload("convert", *words)
        assert done.returncode == 2, words
        assert "exists" in done.stderr
        assert "fastload" in done.stderr
        assert "delete" not in done.stderr
        assert ("quote" in done.stderr) == (words[0].suffix == ".tar")
    out = tmp_path / "bees.fastload"
    assert fastload("convert", one, out, "--size", 8, "--task", "1/1").returncode == 0
    done = fastload("merge", f"{out}.partial/")  # as the shell completes it
    assert done.returncode == 0, done.stderr
    assert "delete it first" in fastload("convert", one, out, "--size", 8).stderr
    assert "delete" not in fastload("merge", out).stderr


def test_names_from_data_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07[red]"
    write_folder(tmp_path / "insects")
    (tmp_path / "insects" / "train" / "bee").rename(tmp_path / "insects" / "train" / evil)
    for folder in ("train", "valid"):
        (tmp_path / "insects" / folder / "wasp").rename(tmp_path / "insects" / folder / "w\nasp")
    done = fastload("convert", tmp_path / "insects", "--size", 8)
    info = fastload("info", tmp_path / "insects.fastload")
    assert info.returncode == 0
    assert "[red]" in info.stdout
    assert "\x1b[2J" not in done.stdout + done.stderr + info.stdout
    (tmp_path / "insects" / "train" / evil / "000.jpg").write_bytes(b"")
    done = fastload("convert", tmp_path / "insects", tmp_path / "again", "--size", 8)
    assert done.returncode == 2
    assert "\x1b[2J" not in done.stderr


def test_doctor_names_versions_and_commands() -> None:
    done = fastload("doctor")
    assert done.returncode == 0, done.stdout
    for said in ("python", "torch", "CUDA", "FFCV"):
        assert said in done.stdout
    if "not installed" in done.stdout:
        assert 'pip install "fastload[ffcv]"' in done.stdout


@pytest.mark.parametrize(
    ("visible", "state", "said"),
    [("", "absent", "hidden by CUDA_VISIBLE_DEVICES"), ("-1", "absent", "hidden by CUDA_VISIBLE_DEVICES"),
     ("0", "broken", "a driver is here"), (None, "broken", "a driver is here")],
)  # fmt: skip
def test_doctor_finds_hidden_gpus_no_fault(
    visible: str | None, state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = doctor._cuda()
    assert found.state == state
    assert found.found.startswith(said)


def test_help_does_not_load_torch() -> None:
    probe = (
        "import sys; sys.argv = ['fastload', '--help']; from fastload.cli import main\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "False"


def test_version() -> None:
    assert fastload("--version").stdout.startswith("fastload 0.")
