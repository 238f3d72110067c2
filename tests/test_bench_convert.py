"""bench convert: every peer runs on the same files, and what is written says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench.convert import BARE, FFCV, LOOP, OURS, make_photographs, measure, say
from fastload.errors import ConfigError, SourceError
from fastload.machine import installed

pytestmark = pytest.mark.processes


def test_made_photographs_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = measure(None, size=16, workers=2, rounds=1, repeat=2, made="67x45", count=11)
    peers = {BARE, OURS, LOOP} | ({FFCV} if installed(("ffcv",))["ffcv"] else set())
    assert set(result["images_per_second"]) == set(result["cpu_ms_per_image"]) == peers
    assert all(speed > 0 for speed in result["images_per_second"].values())
    assert result["data"]["images"] == 22
    assert result["psnr_db"]["median"] > 38
    assert result["peak_memory_mib"] > 50
    say(result)
    assert "fastload convert" in capsys.readouterr().out
    assert str(tmp_path) not in json.dumps(result)


def test_made_photographs_have_their_size_and_differ(tmp_path: Path) -> None:
    make_photographs(tmp_path, 67, 45, 9)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 9
    for file in files:
        with Image.open(file) as image:
            assert image.size == (67, 45)
    assert len({f.read_bytes() for f in files}) == 8


@pytest.mark.parametrize("made", ["4000", "x3", "0x9", "4000*3000"])
def test_a_wrong_size_is_said(made: str) -> None:
    with pytest.raises(ConfigError, match="WIDTHxHEIGHT"):
        measure(None, size=16, workers=1, rounds=1, repeat=1, made=made, count=1)


def test_a_folder_or_made_and_not_both(tmp_path: Path) -> None:
    for folder, made in ((None, None), (tmp_path, "4x3")):
        with pytest.raises(ConfigError, match="not both"):
            measure(folder, size=16, workers=1, rounds=1, repeat=1, made=made, count=1)


def test_a_folder_without_jpegs_has_nothing_to_compare(tmp_path: Path) -> None:
    for number in range(2):
        file = tmp_path / f"class{number}" / "a.png"
        file.parent.mkdir()
        Image.new("RGB", (9, 9)).save(file)
    with pytest.raises(SourceError, match="no JPEG"):
        measure(tmp_path, size=16, workers=1, rounds=1, repeat=1, made=None, count=1)
