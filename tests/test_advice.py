"""What to do next: the command for what a loop really reads, and none for what is done already."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import CIFAR10, ImageFolder

import fastload
from fastload.profiling.hook import records
from fastload.profiling.hook.describing import describe, origin
from tests.reports_help import make_loop


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


def hook_says(dataset: Dataset[Any]) -> str:
    """Return the command that a watched script is told for a loop over this dataset."""
    about = {**describe(DataLoader(dataset, 2), dataset, "train.py:1"), "batch_shape": [2, 3, 8, 8]}
    command = records._actions(make_loop(), about, None)[0].command
    assert command is not None
    return command


def test_what_torchvision_itself_reads_is_converted_by_its_name(tmp_path: Path) -> None:
    command = "fastload convert torchvision:CIFAR10 --root './my data' --size "
    part = Subset(Subset(Own(), range(55)), range(50))
    assert hook_says(part) == f"{command}9"
    with fastload.Profile(DataLoader(part, 2), device="cpu", quiet=True) as watched:
        for _ in watched:
            pass
    assert watched.report is not None
    assert watched.report["actions"][0]["command"] == f"{command}9"
    # Class folders of images are converted as they are, with the splits beside.
    assert hook_says(Folder(tmp_path / "train")) == f"fastload convert {tmp_path} --size 9"
    assert origin(Subset(Folder(tmp_path), [0])) == (str(tmp_path), None)
    assert origin([1, 2]) == (None, None)
