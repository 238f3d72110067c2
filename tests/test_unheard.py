"""Nobody reads what is said: a pipe whose reader ended, a terminal that was closed. What was measured is not lost."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import pytest

from bench import cli
from bench.script import watch_and_say
from tests.conftest import ROOT
from tests.reports_help import make_report

LOOPS = """
import os, sys, time, torch, fastload
from fastload.profiling import live
live.SECONDS_BETWEEN = 0.0

def loop(end):
    for number, _ in enumerate(fastload.profile([torch.zeros(2, 3)] * 60, device="cpu")):
        time.sleep(0.002)
        if number == 40:
            end()

loop(lambda: None)  # a pipe that nobody reads
print("behind a pipe", flush=True)
terminal, own = os.openpty()
os.dup2(own, 2)
os.close(own)
loop(lambda: os.close(terminal))
print("behind a terminal", flush=True)
sys.stderr = None  # as of a process that was started without one
loop(lambda: None)
print("behind nothing", flush=True)
"""


@contextmanager
def unread() -> Iterator[TextIO]:
    """Yield a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with suppress(BrokenPipeError), os.fdopen(writer, "w", buffering=1) as pipe:  # raises once more as it is closed
        yield pipe


@pytest.mark.processes
def test_what_stands_behind_a_profiled_loop_runs_though_nobody_reads_the_report() -> None:
    with unread() as pipe:
        done = subprocess.run(
            [sys.executable, "-c", LOOPS], cwd=ROOT, stdout=subprocess.PIPE, stderr=pipe, text=True, check=False
        )
    assert done.stdout.splitlines() == ["behind a pipe", "behind a terminal", "behind nothing"]
    assert done.returncode == 0


@pytest.mark.processes
def test_a_watched_script_keeps_its_exit_code_and_its_report_though_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unread() as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        words = [sys.executable, "-I", "-c", "raise SystemExit(7)"]
        assert watch_and_say(words, json=tmp_path / "a.json", html=tmp_path / "a.html") == 7
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == "fastload-gpu-util"
    assert (tmp_path / "a.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "said_by"),
    [
        ("gpu-util .", "fastload.profiling.terminal.say"), ("loader .", "bench.loader.say"),
        ("memory .", "bench.memory.say"), ("growth", "bench.growth.say"), ("convert", "bench.convert.say"),
        ("augment", "bench.augment.say"), ("training .", "bench.training.say"), ("truth", "bench.truth.say"),
    ],
)  # fmt: skip
def test_bench_writes_before_it_prints(
    words: str, said_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, found = tmp_path / "result.json", []
    command = words.split()[0]
    result: dict[str, Any] = make_report() if command == "gpu-util" else {"seconds": 60}
    measured = import_module("bench.gpu_util" if command == "gpu-util" else said_by.removesuffix(".say"))
    monkeypatch.setattr(measured, "measure", lambda *_, **__: result)
    monkeypatch.setattr(said_by, lambda *_: found.append(json.loads(file.read_text())))
    monkeypatch.setattr(sys, "argv", ["bench", *words.split(), "--json", str(file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert [content.keys() for content in found] == [result.keys()]


def test_a_result_that_cannot_be_written_is_said_before_minutes_are_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.growth.measure", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setattr(sys, "argv", ["bench", "growth", "--json", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "is a folder" in capsys.readouterr().err
