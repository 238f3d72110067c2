"""What to do next: the command for what a loop really reads, and none for what is done already."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as T
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.datasets import CIFAR10, MNIST, ImageFolder

import fastload
from fastload import profiler
from fastload.profiling.actions import Advice, advise
from fastload.profiling.causes import Evidence, find_cause
from fastload.profiling.hook import records
from fastload.profiling.hook.describing import describe, origin
from fastload.profiling.loops import image_side
from fastload.profiling.report import Cause, Loop
from fastload.profiling.verdict import Verdict, judge
from tests.conftest import write_folder
from tests.reports_help import make_loop
from tests.test_cli import fastload as command_line
from tests.test_libraries import write_mnist


class Own(CIFAR10):
    """A subclass without files: only what it says of itself is looked at."""

    def __init__(self) -> None:
        self.root, self.data = "./my data", torch.zeros(60, 3, 8, 8)

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(0.001)
        return self.data[index], 0


class Folder(ImageFolder):
    def __init__(self, root: Path) -> None:
        self.root, self.samples = root, [("a.jpg", 0)] * 4


def hook_says(dataset: Dataset[Any], side: int = 8) -> str:
    """Return the command that a watched script is told for a loop over this dataset."""
    about = {**describe(DataLoader(dataset, 2), dataset, "train.py:1"), "batch_shape": [2, 3, side, side]}
    command = records._actions(make_loop(), about, None)[0].command
    assert command is not None
    return command


def profile_says(dataset: Dataset[Any]) -> str:
    """Return the same of a loop in a Profile."""
    with fastload.Profile(DataLoader(dataset, 2), device="cpu", quiet=True) as watched:
        for _ in range(1 + 40 // len(dataset)):  # type: ignore[arg-type]
            for _ in watched:
                pass
    assert watched.report is not None
    command = watched.report["actions"][0]["command"]
    assert isinstance(command, str), watched.report["actions"]
    return command


def test_what_is_advised_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastload.gain.estimate", lambda *_, **__: None)  # which converts to measure: seconds
    write_mnist(tmp_path / "my data", "MNIST", {"train": 20, "t10k": 3})
    write_folder(tmp_path / "my photos")
    wait = T.Lambda(lambda image: time.sleep(0.002) or image)
    steps = T.Compose([wait, T.Grayscale(3), T.ToImage(), T.Resize((28, 28)), T.ToDtype(torch.float32)])
    for dataset, out, counts in [
        (MNIST("./my data", transform=steps), "mnist.fastload", "20 train, 3 test"),
        (ImageFolder("./my photos/train", steps), "my photos.fastload", "13 train, 7 valid"),
    ]:
        command = profile_says(dataset)
        assert command == hook_says(dataset, 28)
        done = command_line(*shlex.split(command)[1:], "--dry-run")
        assert done.returncode == 0, done.stderr
        assert counts in done.stdout
        assert f"would write: {out}" in done.stdout


def test_what_torchvision_itself_reads_is_converted_by_its_name(tmp_path: Path) -> None:
    command = "fastload convert torchvision:CIFAR10 --root './my data' --size "
    part = Subset(Subset(Own(), range(55)), range(50))
    assert hook_says(part) == profile_says(part) == f"{command}9"
    # Class folders of images are converted as they are, with the splits beside.
    assert hook_says(Folder(tmp_path / "train")) == f"fastload convert {tmp_path} --size 9"
    assert origin(Subset(Folder(tmp_path), [0])) == (str(tmp_path), None)
    assert origin([1, 2]) == (None, None)


def loop_of(word: str, cause: str = "decode-bound", *, wait: float = 0.4) -> Loop:
    made = make_loop(wait=wait)
    return replace(made, verdict=Verdict(word=word, why=""), cause=Cause(word=cause, why="", evidence=()))


def commands(loop: Loop, **known: Any) -> list[str | None]:
    return [action.command for action in advise(Advice(loop=loop, **known))]


def test_workers_that_are_kept_already_are_not_to_be_kept() -> None:
    starts = loop_of("INPUT-BOUND", "epoch-starts")
    assert "persistent_workers=True" in str(commands(starts, num_workers=2)[0])
    assert commands(starts, num_workers=2, persistent_workers=True) == ["fastload convert FOLDER"]


@pytest.mark.parametrize(
    ("known", "command", "says_pinned"),
    [
        ({"pinned": False}, "DataLoader(..., pin_memory=True)", True),
        ({"pinned": True}, None, False),
        ({}, None, True),
        ({"converted": True}, 'fastload.Loader(..., placement="gpu")', False),
    ],
)
def test_pinned_memory_is_advised_where_it_is_not_there(
    known: dict[str, Any], command: str | None, says_pinned: bool
) -> None:
    (action,) = advise(Advice(loop=loop_of("COPY-BOUND", "copy-bound", wait=0.02), **known))
    assert (action.command, "pinned memory" in action.text) == (command, says_pinned)


@pytest.mark.parametrize(("pinned", "memory"), [(True, "pinned"), (False, "pageable"), (None, None)])
def test_a_copy_names_its_memory_only_where_it_is_known(pinned: bool | None, memory: str | None) -> None:
    seen = Evidence(wait_share=0.01, num_steps=60, copy_share=0.4, pinned=pinned)
    cause = find_cause(seen)
    assert cause is not None
    said = [judge(0.01, 60, "cuda", copy_share=0.4, pinned=pinned).why, cause.why, *cause.evidence]
    assert {word for word in ("pinned", "pageable") for text in said[1:] if word in text} == {memory} - {None}
    assert ("pinned" in said[0]) == (pinned is False)


class Placed:
    """What a fastload Loader says of itself."""

    def __init__(self, kind: str) -> None:
        self.placement = SimpleNamespace(kind=kind)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(30):
            time.sleep(0.001)
            yield torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(("kind", "is_converted"), [("folder", False), ("ffcv", False), ("host", True),
                                                    ("gpu_sharded", True)])  # fmt: skip
def test_what_is_decoded_anew_each_epoch_is_not_converted(kind: str, is_converted: bool) -> None:
    with fastload.Profile(Placed(kind), device="cpu", quiet=True) as watched:
        for _ in watched:
            pass
    assert watched.report is not None
    about = {**describe(Placed(kind), [], "train.py:1"), "batch_shape": [2, 3, 8, 8]}
    for said in (watched.report["actions"], [vars(action) for action in records._actions(make_loop(), about, None)]):
        assert any("in memory already" in action["text"] for action in said) == is_converted
        assert any("fastload convert" in (action["command"] or "") for action in said) != is_converted


@pytest.mark.parametrize(
    ("shape", "side"),
    [((8, 3, 32, 48), 48), ((8, 32, 48, 3), 48), ((8, 1, 28, 28), 28), ((8, 512), None), ((8, 16, 9, 9), None),
     ((3, 8, 8), None), (None, None)],
)  # fmt: skip
def test_images_are_told_by_their_shape(shape: tuple[int, ...] | None, side: int | None) -> None:
    assert image_side(shape) == side


def test_tokens_and_tables_are_not_converted_and_get_more_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    tokens = TensorDataset(torch.zeros(60, 512))
    about = {**describe(DataLoader(tokens, 8, num_workers=2), tokens, "train.py:1"), "batch_shape": [8, 512]}
    first, *others = records._actions(make_loop(), about, None)
    assert first.command == "DataLoader(..., num_workers=15, persistent_workers=True)"
    assert [action.command for action in others] == [None]
    assert "fastload convert" not in str(commands(loop_of("INTERFERENCE"), are_images=False))
    (nothing,) = advise(Advice(loop=loop_of("NOT INPUT-BOUND", wait=0.01), are_images=False))
    assert "onver" not in nothing.text
    # Every worker that has a core is there: nothing but the work itself is left.
    assert commands(loop_of("INPUT-BOUND"), are_images=False, num_cores=16, num_workers=15) == [None]
    assert commands(loop_of("INPUT-BOUND", "starved-cores"), num_cores=16, num_workers=2)[1:] == [None]


def test_every_rank_gets_its_share_of_the_nodes_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    more = "DataLoader(..., num_workers={}, persistent_workers=True)"
    about = {**describe(Own(), Own(), "train.py:1"), "batch_shape": [2, 3, 8, 8], "num_workers": 0}
    given: list[Advice] = []
    monkeypatch.setattr(profiler, "advise", lambda advice: given.append(advice) or ())
    for num_ranks, workers in ((8, 1), (1, 15)):
        actions = records._actions(make_loop(), about, None, num_ranks)
        assert more.format(workers) in [action.command for action in actions]
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_ranks))
        fastload.Profile(DataLoader(Own(), 2), device="cpu", quiet=True).close()
        actions = advise(replace(given[-1], loop=make_loop()))
        assert more.format(workers) in [action.command for action in actions]


@pytest.mark.parametrize(
    ("wait", "seen", "word", "cause"),
    [
        (0.07, {"busy_share": 0.40, "copy_share": 0.02}, "LAUNCH-BOUND", "launch-bound"),
        (0.07, {"busy_share": 0.60, "copy_share": 0.25}, "COPY-BOUND", "copy-bound"),
        (0.18, {"busy_share": 0.69, "copy_share": 0.02}, "PARTLY INPUT-BOUND", "workers-bound"),
        (0.07, {"busy_share": 0.80, "copy_share": 0.02}, "PARTLY INPUT-BOUND", "workers-bound"),
        (0.25, {"busy_share": 0.30, "copy_share": 0.02}, "INPUT-BOUND", "workers-bound"),
        (0.01, {"busy_share": 0.40, "copy_share": 0.02, "start_share": 0.1}, "LAUNCH-BOUND", "launch-bound"),
        (0.01, {"busy_share": 0.40, "copy_share": 0.02, "start_share": 0.3}, "INPUT-BOUND", "epoch-starts"),
    ],
)
def test_a_little_waiting_does_not_hide_what_holds_up_the_gpu(
    wait: float, seen: dict[str, float], word: str, cause: str
) -> None:
    evidence = Evidence(wait_share=wait, num_steps=60, num_workers=2, worker_cpu=(0.9, 0.9), **seen)  # type: ignore[arg-type]
    found, verdict = find_cause(evidence), judge(wait, 60, "cuda", **seen)  # type: ignore[arg-type]
    assert found is not None
    assert (verdict.word, found.word) == (word, cause)
    actions = advise(Advice(loop=loop_of(word, cause, wait=wait), pinned=False))
    first = {"LAUNCH-BOUND": ".item()", "COPY-BOUND": "pin_memory=True"}.get(word, "onvert")
    assert first in actions[0].text
    # What the data takes is said behind it.
    assert any(action.command == "fastload convert FOLDER" for action in actions) == (wait >= 0.05 or "INPUT" in word)
