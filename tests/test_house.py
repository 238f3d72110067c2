"""The house's own rules: floors, the frozen surface, and what must not stand in the tree."""

import ast
import os
import re
import shlex
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer.main

import fastload
from tests.conftest import ROOT
from tests.gpu_help import asks_for_gpus

FLOORS = {
    0: [
        "records",
        "errors",
        "files",
        "places",
        "urls",
        "shares",
        "resharding",
        "devices",
        "memory",
        "recycling",
        "together",
        "machine",
        "toolchain",
    ],
    1: ["decode", "placement", "output", "pool", "stores", "sheet", "sources", "formats", "augment", "profiling"],
    2: [
        "conversion",
        "conversion_dask",
        "conversion_ffcv",
        "conversion_tables",
        "filling",
        "plan",
        "loader",
        "storing",
        "chosen",
        "cut",
    ],
    3: [
        "train",
        "agreement",
        "checkpoint",
        "config",
        "settings",
        "weights",
        "optim",
        "evaluation",
        "results",
        "resuming",
        "tracking",
        "phases",
        "gain",
        "profiler",
    ],
    4: ["cli", "converting", "options", "doctor"],
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# One room in several files.
SAME_FLOOR = {
    *(("train", room) for room in ("agreement", "checkpoint", "config", "evaluation", "optim", "phases", "results",
                                   "resuming", "settings", "tracking")),
    *(("phases", room) for room in ("config", "optim", "resuming", "tracking")),
    *((room, "config") for room in ("agreement", "evaluation", "optim", "results", "resuming", "settings", "tracking")),
    ("resuming", "checkpoint"), ("resuming", "results"), ("resuming", "settings"), ("tracking", "results"),
    ("weights", "checkpoint"), ("profiler", "gain"), ("cli", "doctor"), ("cli", "options"), ("cli", "converting"),
    ("conversion", "filling"), ("conversion", "plan"), ("filling", "plan"),
    ("conversion_ffcv", "conversion"), ("conversion_ffcv", "filling"),
    ("conversion_tables", "conversion"), ("conversion_tables", "plan"),
    ("conversion", "conversion_tables"), ("conversion", "conversion_dask"), ("conversion_dask", "filling"),
    ("conversion_dask", "plan"), ("files", "places"), ("files", "urls"), ("records", "places"), ("places", "urls"),
    ("resharding", "shares"), ("loader", "storing"), ("loader", "chosen"), ("loader", "cut"), ("storing", "cut"),
}  # fmt: skip


# Every command with its flags and arguments: the frozen surface, as `fastload.__all__` is.
FLAGS = {
    "convert": [
        "--allow-outside", "--class-names", "--dask", "--download", "--dry-run", "--fit", "--format",
        "--label-column", "--layout", "--max-pixels", "--max-resolution", "--mode", "--on-bad", "--path-column",
        "--quality", "--regression", "--root", "--seed", "--size", "--split", "--target", "--task", "--workers",
        "out", "source",
    ],
    "merge": ["dataset"],
    "info": ["dataset"],
    "verify": ["dataset"],
    "show": ["--augment", "--out", "--seed", "--split", "dataset"],
    "weights": ["--out", "-o", "name"],
    "doctor": [],
}  # fmt: skip
BENCH_FLAGS = {
    "gpu-util": [
        "--assume-gpu-rate", "--batch-size", "--device", "--html", "--images", "--json", "--loader", "--model",
        "--png", "--precision", "--size", "--steps", "--workers", "data",
    ],
    "training": [
        "--batch-size", "--crop", "--epochs", "--json", "--lr", "--model", "--precision", "--seeds", "--size",
        "--workers", "folder",
    ],
    "compare": ["--html", "after", "before"],
    "loader": [
        "--batch-size", "--crop", "--images", "--json", "--rounds", "--size", "--store", "--threads",
        "--workers", "folder",
    ],
    "memory": ["--batch-size", "--epochs", "--json", "--size", "--store", "folder"],
    "growth": ["--batch-size", "--json", "--rounds", "--thousands"],
    "convert": [
        "--count", "--json", "--made", "--repeat", "--rounds", "--size", "--slow-images", "--workers", "folder",
    ],
    "augment": ["--batch-size", "--device", "--json", "--rounds", "--size", "--store"],
    "truth": ["--json", "--only", "--step-ms", "--steps"],
    "figures": ["--check"],
}  # fmt: skip

# What a reader can hold at once: (lines of a file, lines of a function without its docstring), by folder or file.
MOST_LINES = {
    "fastload": (400, 50), "bench": (400, 50), "tests": (400, 50), "recipes": (120, 40), "fastload/train.py": (250, 50),
}  # fmt: skip


def room_of(file: Path) -> str:
    part = file.relative_to(ROOT / "fastload").parts[0]
    return part.removesuffix(".py")


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module != "fastload" else [f"fastload.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        rooms |= {n.split(".")[1] for n in names if n.startswith("fastload.")}
    return rooms - {"__version__"}


def test_imports_go_down_the_floors_only() -> None:
    wrong = []
    for file in (ROOT / "fastload").rglob("*.py"):
        room = room_of(file)
        if room == "__init__":
            continue
        for other in imported_rooms(file) - {room}:
            down = FLOOR_OF[other] < FLOOR_OF[room]
            if not down and other != "errors" and (room, other) not in SAME_FLOOR:
                wrong.append(f"{file.relative_to(ROOT)} imports {other}")
    assert not wrong


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(f) for f in (ROOT / "fastload").rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOOR_OF)


def test_bench_and_recipes_are_not_imported_by_the_package() -> None:
    for file in (ROOT / "fastload").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (bench|recipes|tests)\b", file.read_text(), re.MULTILINE), file


def test_the_public_surface_is_this() -> None:
    assert fastload.__all__ == [
        "convert", "open_dataset", "Loader", "Augment", "profile", "Profile", "Trainer", "TrainConfig", "Phase",
        "FastloadError", "__version__",
    ]  # fmt: skip
    for name in fastload.__all__:
        assert getattr(fastload, name) is not None
    # Still themselves after the modules of that name were imported.
    assert callable(fastload.convert)
    assert callable(fastload.profile)


def flags(app: typer.Typer) -> dict[str, list[str]]:
    group = typer.main.get_command(app)
    return {
        name: sorted(opt for p in command.params for opt in (p.opts if p.param_type_name == "option" else [p.name]))
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


def test_the_commands_and_their_flags_are_these() -> None:
    from bench.cli import app as bench_app
    from fastload.cli import app

    assert flags(app) == FLAGS
    assert flags(bench_app) == BENCH_FLAGS


def tracked() -> list[Path]:
    """Return the files of the tree that git does not ignore; without git, or where it refuses, all that it would not.

    A checkout that another user owns (a container's) is read like any other.
    """
    words = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return walked()
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def walked() -> list[Path]:
    """Return the files of the tree but for what .gitignore and hidden folders hold."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split("\n") if line and line[0] != "#"]
    found = []
    for folder, folders, files in os.walk(ROOT):
        left_out = {n for n in (*folders, *files) if n == ".git" or any(fnmatch(n, pattern) for pattern in ignored)}
        folders[:] = [name for name in folders if name not in left_out]
        found += [Path(folder, name) for name in files if name not in left_out]
    return found


def test_without_git_the_same_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with_git = set(tracked())
    assert {ROOT / "README.md", ROOT / "fastload" / "cli.py", ROOT / "tests" / "test_house.py"} <= with_git

    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    found = set(tracked())
    assert with_git <= found  # what a person's own git ignores besides is found, too
    assert not {"__pycache__", ".git", "runs"} & {part for file in found for part in file.relative_to(ROOT).parts}


def test_the_tree_names_no_machine_and_no_package_host() -> None:
    # Put together here, so that this file does not name them either.
    forbidden = re.compile(
        "|".join(["/wo" + "rk/", r"(?<![\w}])/ro" + "ot/", "py" + r"pi\.org", "file" + "s.pythonhosted"])
    )
    for file in tracked():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        found = forbidden.search(text)
        assert not found, f"{file.relative_to(ROOT)}: {found and found[0]}"


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function without those of its docstring."""
    first = function.body[0] if ast.get_docstring(function) else None
    documented = first.end_lineno - first.lineno + 1 if first else 0
    return function.end_lineno - function.lineno + 1 - documented


def test_no_file_and_no_function_is_too_long() -> None:
    wrong = []
    for file in tracked():
        name = file.relative_to(ROOT).as_posix()
        most = MOST_LINES.get(name) or MOST_LINES.get(name.partition("/")[0])
        if file.suffix != ".py" or most is None:
            continue
        text = file.read_text()
        if text.count("\n") > most[0]:
            wrong.append(f"{name}: {text.count(chr(10))} lines")
        functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        wrong += [f"{name}: {f.name}, {num_lines(f)} lines" for f in functions if num_lines(f) > most[1]]
    assert not wrong


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("-m gpu", True),
        ("-mgpu", True),
        ("-m=gpu", True),
        ("-qm gpu -n 2", True),
        ("tests -m 'gpu and not processes'", True),
        ("-m 'not slow and gpu'", True),
        ("-m 'processes or gpu'", True),
        ("", False),
        ("-m 'not gpu'", False),
        ("-m 'not  gpu and processes'", False),
        ("-m gpu -m 'not gpu'", False),  # the last one counts
        ("-k gpu", False),
        ("-m kernels -k gpu", False),
        ("-m gpus", False),
        ("/data/gpu01/fastload/tests/test_profiling_gpus.py --basetemp=/data/gpu", False),
        ("--maxfail=1 --markers gpu -m", False),
    ],
)
def test_gpus_are_seen_by_m_gpu_only(line: str, asked: bool) -> None:
    assert asks_for_gpus(shlex.split(line)) == asked


def test_nothing_is_pickled() -> None:
    for file in (ROOT / "fastload").rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"^\s*(from|import) (pickle|dill|joblib)\b", text, re.MULTILINE), file
        for call in re.finditer(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call[0], file


def test_no_dead_links_in_the_documents() -> None:
    for document in [
        ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md", "recipes/README.md")
    ]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
