"""What is left of a split, and what is said, where images or the machine are bad."""

import errno
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from fastload import Loader, convert, open_dataset
from fastload.checkpoint import write_tensors
from fastload.errors import CheckpointError, ConfigError
from fastload.records import Record, Source
from tests.conftest import write_folder
from tests.test_cli import fastload


def test_a_split_of_bad_images_is_empty_and_everybody_says_so(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "valid").rglob("*.jpg"):
        file.write_bytes(b"")
    out = tmp_path / "out"
    done = fastload("convert", folder, out, "--size", 8, "--on-bad", "skip")
    assert done.returncode == 0
    assert "13 train, 0 valid" in done.stdout
    assert "splits of which every image is bad, so they are empty: valid" in done.stderr
    shown = fastload("show", out, "--split", "val", "--out", tmp_path / "sheet.png")
    assert shown.returncode == 2
    assert "valid is empty" in shown.stderr
    assert not (tmp_path / "sheet.png").exists()
    for options in ({"shuffle": False}, {"shuffle": True}, {"drop_last": False}):
        with pytest.raises(ConfigError, match="valid is empty") as caught:
            Loader(open_dataset(out, "valid"), 4, **options)  # type: ignore[arg-type]
        assert "drop_last" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"train has 13 samples, less than one step of 14 .* drop_last=False"):
        Loader(open_dataset(out), 14)


def test_a_split_without_labels_is_for_prediction(tmp_path: Path) -> None:
    files = sorted(write_folder(tmp_path / "in", splits=False).rglob("*.jpg"))
    records = tuple(Record(path=str(f.relative_to(tmp_path)), label=-1, split="train") for f in files)
    source = Source(root=tmp_path, layout="list", classes=("a", "b"), records=records)
    opened = open_dataset(convert(source, tmp_path / "out", size=8))
    assert len(Loader(opened, 4, shuffle=False)) == 4
    with pytest.raises(ConfigError, match=r"none of the 13 samples of train has a label; .* shuffle=False"):
        Loader(opened, 4)


def killed(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("what", "does", "said"),
    [
        ("fastload.records.read_bytes", OSError(errno.EIO, "Input/output error"), "Input/output error"),
        ("fastload.filling.decode", MemoryError(), "MemoryError"),
        ("fastload.filling.decode", killed, "SIGKILL"),
    ],
)
def test_what_skipping_would_not_help_is_not_advised(folder: Path, what: str, does: Any, said: str) -> None:
    for on_bad in ("stop", "skip"):
        with mock.patch(what, side_effect=does):
            done = fastload("convert", folder, "--size", 8, "--workers", 1, "--on-bad", on_bad)
        assert done.returncode == 2
        assert said in done.stderr
        assert "--on-bad" not in done.stderr
        assert "mend it" not in done.stderr


def test_what_cannot_be_written_names_no_flag_of_another_command(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"pass another path\.$"):
        write_tensors(tmp_path / "file" / "x.safetensors", {"a": torch.zeros(1)}, {})
