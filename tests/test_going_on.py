"""Conversions that go on with what an earlier run left: what they take of it, and what not."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from fastload import conversion, convert, open_dataset
from fastload.errors import DecodeError
from fastload.plan import Plan, Settings
from fastload.sources import detect
from tests.test_conversion import contents


def test_what_killed_runs_left_is_no_part_of_the_dataset(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    for name in (".train-00099.safetensors.tmp", "bad.csv"):
        (tmp_path / "out.partial" / name).write_text("of an earlier try")
    assert contents(convert(folder, tmp_path / "out", size=8)) == contents(convert(folder, tmp_path / "b", size=8))


def grey_png(file: Path, value: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value,) * 3).save(file)


def in_place(root: Path) -> None:
    for file in root.glob("*/*.png"):
        grey_png(file, 200)


def exported_elsewhere(root: Path) -> None:
    root.with_name("anew").rename(root)


def copied_with_old_times(root: Path) -> None:
    in_place(root)
    for file in root.glob("*/*.png"):
        os.utime(file, (10**9, 10**9))


def by_a_link(root: Path) -> None:
    root.symlink_to("anew")


@pytest.mark.parametrize("change", [in_place, exported_elsewhere, copied_with_old_times, by_a_link])
def test_a_run_that_goes_on_takes_no_shard_of_images_that_were_changed(
    tmp_path: Path, change: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    for number in range(6):  # the new ones, too, stand somewhere before the run begins
        grey_png(root / "ab"[number % 2] / f"{number}.png", 100)
        grey_png(tmp_path / "anew" / "ab"[number % 2] / f"{number}.png", 200)
    to = partial(convert, root, tmp_path / "out", size=8, workers=1, progress=True)
    with mock.patch.object(conversion, "SHARD_BYTES", 2 * 8 * 8 * 3):
        last = Plan(source=detect(root), settings=Settings(size=8, shard_bytes=2 * 8 * 8 * 3)).shards[-1]
        (root / (bad := last.records[0].path)).write_bytes(b"")
        with pytest.raises(DecodeError, match=f"{bad}: the file is empty"):
            to()
        assert len(list((tmp_path / "out.partial").glob("*.safetensors"))) == 2
        capfd.readouterr()
        if change in (exported_elsewhere, by_a_link):
            root.rename(tmp_path / "old")
        change(root)
        to()
    assert "note: 0 of 3 shards stand already, and 2 are written anew, since their images" in capfd.readouterr().err
    pixels = np.concatenate([shard.numpy() for shard in open_dataset(tmp_path / "out").shards])
    assert np.unique(pixels).tolist() == [200]
