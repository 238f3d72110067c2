"""What to do next: the command for what a loop really reads, and none for what is done already."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as T
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import CIFAR10, MNIST, ImageFolder

import fastload
from fastload.profiling.hook import records
from fastload.profiling.hook.describing import describe, origin
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
    assert hook_says(part) == f"{command}10"
    assert profile_says(part) == f"{command}9"
    # Class folders of images are converted as they are, with the splits beside.
    assert hook_says(Folder(tmp_path / "train")) == f"fastload convert {tmp_path} --size 10"
    assert origin(Subset(Folder(tmp_path), [0])) == (str(tmp_path), None)
    assert origin([1, 2]) == (None, None)
