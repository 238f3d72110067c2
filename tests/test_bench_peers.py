"""What `bench loader` gives the peers: as many cores as fastload has, and a machine of its own."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bench import gpu_util, loader, one_loader, peers, training
from bench.cli import app
from fastload.errors import ConfigError

TWO, SIXTEEN = {0, 1}, set(range(16))


def recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, cores: set[int]) -> dict[str, dict[str, Any]]:
    """Return what `bench loader` runs on so many cores where nothing is said; nothing is converted."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    monkeypatch.setattr(loader, "_all_are", lambda *_: True)
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(loader.fastload, "convert", lambda _, out, **options: out)
    monkeypatch.setattr(loader, "convert_to_ffcv", lambda _, out, **options: out)
    given: list[loader.Options] = []
    monkeypatch.setattr(loader, "measure", lambda _, options: given.append(options))
    monkeypatch.setattr(loader, "say", lambda *_: None)
    assert CliRunner().invoke(app, ["loader", str(tmp_path)]).exit_code == 0
    assert (given[0].workers, given[0].threads) == (loader.Options().workers, loader.Options().threads)
    return loader._recipes(tmp_path, tmp_path, given[0])


def test_peers_get_the_cores_that_fastload_gets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = recipes(monkeypatch, tmp_path, cores=SIXTEEN)
    assert [found[name]["workers"] for name in found if name.startswith(loader.BASELINE)] == [1, 2, 4, 8, 16]
    for name in ("timm create_loader(16)", "ffcv Loader(16), raw", "ffcv Loader(16), jpg", "fastload, ffcv(16), jpg"):
        assert found[name]["workers"] == 16
    assert {found[name]["threads"] for name in found if name.startswith("fastload")} == {16}


def test_on_two_cores_the_defaults_are_what_results_were_measured_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = recipes(monkeypatch, tmp_path, cores=TWO)
    assert [found[name]["workers"] for name in found if name.startswith(loader.BASELINE)] == [1, 2, 4]
    assert "timm create_loader(2)" in found
    assert found["fastload, host"]["threads"] == 2


@pytest.mark.parametrize(("cores", "workers"), [({3}, 2), (TWO, 2), (SIXTEEN, 15)])
def test_workers_leave_a_core_to_the_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: set[int], workers: int
) -> None:
    given: list[int] = []

    def stop(_: object, options: Any) -> None:
        given.append(options.workers)
        raise ConfigError("enough is known")

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    for module, command in ((gpu_util, "gpu-util"), (training, "training")):
        monkeypatch.setattr(module, "measure", stop)
        CliRunner().invoke(app, [command, str(tmp_path)])
        CliRunner().invoke(app, [command, str(tmp_path), "--workers", "3"])
    assert given == [workers, 3, workers, 3]


def test_a_child_answers_when_its_loader_is_at_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loader:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
            for number in range(3):
                print(f"batch {number}")
                yield torch.zeros(2), number

    def noting_loader(**arguments: object) -> Loader:
        print(f"threads {torch.get_num_threads()}")
        return Loader()

    monkeypatch.setattr(peers, "noting_loader", noting_loader, raising=False)
    before = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["one_loader", json.dumps({"maker": "noting_loader", "threads": before + 1})])
    monkeypatch.setattr(sys, "stdin", io.StringIO("begin\nepoch\n"))
    try:
        one_loader.main()
    finally:
        torch.set_num_threads(before)
    said = capsys.readouterr().out.splitlines()
    kinds = ["told" if "first_batch" in line else "epoch" if "images" in line else line for line in said]
    epoch = ["batch 0", "batch 1", "batch 2"]
    assert kinds == ['{"ready": 1}', f"threads {before + 1}", *epoch, "told", *epoch, "epoch"]
    assert json.loads(said[5])["threads"] == before + 1
