"""Folders as betons: what is written, kept, left out and refused."""

import csv
import errno
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from fastload.conversion_ffcv import convert_to_ffcv, skipped_in
from fastload.errors import ConfigError, DatasetError, DecodeError, SourceError
from fastload.formats.ffcv import open_beton
from fastload.output import alone_in
from fastload.records import Record, Source
from tests.test_cli import fastload
from tests.test_going_on import grey_png

pytest.importorskip("ffcv")


def test_betons_of_a_folder(folder: Path, tmp_path: Path) -> None:
    bad = {"train/bee/001.jpg": "not an image", "valid/bee/000.jpg": "the file is empty"}
    (folder / "train" / "bee" / "001.jpg").write_bytes(b"x")
    (folder / "valid" / "bee" / "000.jpg").write_bytes(b"")
    with pytest.raises(DecodeError, match=r"train/bee/001\.jpg"):
        convert_to_ffcv(folder, tmp_path / "stopped")
    assert not (tmp_path / "stopped").exists()
    for options in ({"workers": 0}, {"on_bad": "ignore"}):
        with pytest.raises(ConfigError):
            convert_to_ffcv(folder, tmp_path / "stopped", **options)  # type: ignore[arg-type]
    out = convert_to_ffcv(folder, tmp_path / "out", on_bad="skip", max_resolution=30)
    train, valid = open_beton(out / "train.beton"), open_beton(out / "valid.beton")
    assert (len(train), len(valid)) == (12, 6)
    assert train.classes == ("ant", "bee", "wasp")
    image, label = valid[0]
    assert (tuple(image.shape), label) == ((19, 30, 3), 0)
    assert left_out(out).keys() == bad.keys()
    assert all(said in left_out(out)[path] for path, said in bad.items())
    about = json.loads((out / "train.json").read_text())
    assert about["info"]["skipped"] == [{"path": (path := "train/bee/001.jpg"), "reason": left_out(out)[path]}]
    with pytest.raises(DatasetError, match="exists"):
        convert_to_ffcv(folder, out)
    # A split that is missing is written anew, the other one is kept.
    before = (out / "train.beton").stat().st_mtime_ns
    for file in out.glob("valid.*"):
        file.unlink()
    convert_to_ffcv(folder, out, on_bad="skip", max_resolution=30)
    assert (out / "train.beton").stat().st_mtime_ns == before
    assert len(open_beton(out / "valid.beton")) == 6
    assert left_out(out).keys() == bad.keys()  # the kept split's, too


def test_a_second_converter_touches_nothing_of_the_first(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with alone_in(out):
        (out / "bad.csv").write_text("the first one's")
        with pytest.raises(DatasetError, match="is being written by process"):
            convert_to_ffcv(folder, out)
        assert (out / "bad.csv").read_text() == "the first one's"
        (out / "bad.csv").unlink()
    assert not out.exists()


def test_a_run_that_goes_on_takes_no_split_of_images_that_were_changed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "set" / split / label / "0.png" for split in ("train", "valid") for label in "ab"]
    for file in files:
        grey_png(file, 100)
    files[-1].write_bytes(b"")
    with pytest.raises(DecodeError, match="the file is empty"):
        convert_to_ffcv(tmp_path / "set", tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"train.beton", "train.json"}
    for file in files:
        grey_png(file, 200)
    out = convert_to_ffcv(tmp_path / "set", tmp_path / "out", progress=True)
    assert "note: train: written anew, since its images have changed" in capfd.readouterr().err
    for split in ("train", "valid"):
        assert [image.unique().tolist() for image, _ in open_beton(out / f"{split}.beton")] == [[200], [200]]
    assert sorted(f.name for f in out.iterdir()) == ["train.beton", "train.json", "valid.beton", "valid.json"]


def left_out(out: Path) -> dict[str, str]:
    with (out / "bad.csv").open(newline="") as opened:
        listed = {row["path"]: row["reason"] for row in csv.DictReader(opened)}
    assert listed == {entry["path"]: entry["reason"] for entry in skipped_in(out)}
    return listed


def test_what_is_left_out_is_said(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "train" / "ant").iterdir():
        file.write_bytes(b"")
    done = fastload("convert", folder, tmp_path / "out", "--format", "ffcv", "--on-bad", "skip", "--max-resolution", 8)
    num_bad = len(list((folder / "train" / "ant").iterdir()))
    assert f"left out {num_bad} bad images: see {tmp_path}/out/bad.csv" in done.stderr.replace("\n", " ")
    for file in (folder / "valid").rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(SourceError, match=r"none of the 7 images of valid could be read \(first: valid/ant/000\.jpg"):
        convert_to_ffcv(folder, tmp_path / "none", on_bad="skip")
    assert not (tmp_path / "none").exists()


def test_two_conversions_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    (folder / "valid" / "bee" / "000.jpg").write_bytes(b"")
    again = {"on_bad": "skip", "max_resolution": 8}
    out = convert_to_ffcv(folder, tmp_path / "out", **again)  # type: ignore[arg-type]
    for file in out.glob("train.*"):
        file.unlink()
    for other in ({"max_resolution": 9}, {"mode": "jpg"}, {"max_pixels": 10**6}):
        with pytest.raises(DatasetError, match=r"valid\.json is of a conversion with .* other options"):
            convert_to_ffcv(folder, out, **again | other)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=r"names 1 bad images .*first: valid/bee/000\.jpg"):
        convert_to_ffcv(folder, out, max_resolution=8)
    (folder / "train" / "bee" / "002.jpg").rename(folder / "train" / "ant" / "new.jpg")
    with pytest.raises(DatasetError, match=r"valid\.json is of a conversion with another source"):
        convert_to_ffcv(folder, out, **again)  # type: ignore[arg-type]
    assert {file.name for file in out.iterdir()} == {"bad.csv", "valid.beton", "valid.json"}


def test_grey_pixels_among_colours_on_a_file_system_without_locks(tmp_path: Path) -> None:
    pixels = [np.full((5, 7, channels), 9 + channels, np.uint8) for channels in (1, 3)]
    records = tuple(Record(path=str(i), label=i, split="train") for i in range(2))
    source = Source(root=tmp_path, layout="torchvision", classes=("a", "b"), records=records,
                    reader=lambda record: pixels[int(record.path)])  # fmt: skip
    with mock.patch("fcntl.flock", side_effect=OSError(errno.ENOLCK, "No locks available")):
        opened = open_beton(convert_to_ffcv(source, tmp_path / "out") / "train.beton")
    assert [(image.shape, image.unique().tolist()) for image, _ in opened] == [((5, 7, 3), [10]), ((5, 7, 3), [12])]


def test_verify_takes_the_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ffcv"
    assert fastload("convert", folder, out, "--format", "ffcv").returncode == 0
    assert "2 files" in fastload("verify", out).stdout
    with (out / "valid.beton").open("r+b") as opened:
        opened.seek((1 << 23) + 9)  # a pixel: the first image begins at 8 MiB, ffcv's page
        pixel = opened.read(1)[0]
        opened.seek((1 << 23) + 9)
        opened.write(bytes([pixel ^ 1]))
    found = fastload("verify", out)
    assert found.returncode == 1
    assert "valid.beton" in found.stderr
    assert "1 of 2 files" in found.stderr


def test_verify_names_every_beton_that_is_cut_or_lost(folder: Path, tmp_path: Path) -> None:
    out = convert_to_ffcv(folder, tmp_path / "out.ffcv", max_resolution=8)
    for command in ("info", "show"):  # which take another kind of dataset
        found = fastload(command, out)
        assert found.returncode == 2
        assert "train.beton" in found.stderr
        assert "convert" not in found.stderr, "it is converted already"
    for split in ("train", "valid"):
        os.truncate(out / f"{split}.beton", 9 << 20)
    found = fastload("verify", out)
    assert (found.returncode, found.stdout) == (1, "")
    assert "train.beton" in found.stderr
    assert "valid.beton" in found.stderr
    assert "2 of 2 files" in found.stderr
    assert fastload("verify", out / "train.beton").returncode == 1
    (out / "train.beton").unlink()
    (out / "notes.json").write_text('{"format": "another"}')
    for place in (out, out / "train.beton"):
        found = fastload("verify", place)
        assert found.returncode == 1
        assert f"{out}/train.beton is missing" in found.stderr.replace("\n", "")
    (out / "train.json").unlink()
    found = fastload("verify", out / "train.beton")
    assert found.returncode == 2, "a path that names nothing is a mistake, no damage"
    assert "does not exist" in found.stderr
