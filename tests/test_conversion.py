import csv
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastload import conversion, convert, open_dataset
from fastload.errors import ConfigError, DatasetError, DecodeError, SourceError
from tests.conftest import convert_small, write_folder, write_image


def contents(dataset: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(dataset.iterdir())}


def test_pixels_are_those_that_pillow_gives(dataset: Path) -> None:
    root = dataset.with_suffix("")
    with (dataset / "samples.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 20
    for split in ("train", "valid"):
        opened_split = open_dataset(dataset, split)
        for i, row in enumerate(r for r in rows if r["split"] == split):
            expected = Image.open(root / row["path"]).convert("RGB").resize((20, 20), Image.Resampling.BILINEAR)
            image, label = opened_split[i]
            assert np.abs(image.numpy().astype(int) - np.asarray(expected)).max() <= 1  # two resizers round apart
            assert label == int(row["label"]) == opened_split.classes.index(row["path"].split("/")[1])


def test_mean_and_std_are_those_of_the_training_pixels(dataset: Path) -> None:
    opened = open_dataset(dataset)
    pixels = np.concatenate([s.numpy().reshape(-1, 3) for s in opened.shards]) / 255
    assert np.allclose(opened.mean, pixels.mean(0), atol=1e-9)
    assert np.allclose(opened.std, pixels.std(0), atol=1e-9)


def test_training_rows_are_shuffled_and_others_are_not(dataset: Path) -> None:
    with (dataset / "samples.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    train, valid = ([r["path"] for r in rows if r["split"] == s] for s in ("train", "valid"))
    assert train != sorted(train)
    assert valid == sorted(valid)


@pytest.mark.parametrize("workers", [2, 16])
def test_the_same_bytes_from_any_number_of_workers(folder: Path, tmp_path: Path, workers: int) -> None:
    one = convert(folder, tmp_path / "one", size=19, workers=1)
    many = convert(folder, tmp_path / "many", size=19, workers=workers)
    assert contents(one) == contents(many)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_fit(folder: Path, tmp_path: Path, fit: str) -> None:
    opened = open_dataset(convert(folder, tmp_path / fit, size=37, fit=fit))  # type: ignore[arg-type]
    image = opened[0][0].numpy()
    assert image.shape == (37, 37, 3)
    black_rows = (image.reshape(37, -1).max(1) == 0).sum()
    assert black_rows == (14 if fit == "pad" else 0)  # 37x23 in a square of 37


def test_files_are_readable_as_the_umask_has_it(folder: Path, tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        out = convert(folder, tmp_path / "out", size=5)
    finally:
        os.umask(previous)
    assert {stat.S_IMODE(f.stat().st_mode) for f in out.iterdir()} == {0o644}


def test_default_output_keeps_dots_in_the_name(tmp_path: Path) -> None:
    write_folder(tmp_path / "set.v2")
    assert convert(tmp_path / "set.v2", size=5) == tmp_path / "set.v2.fastload"


def test_default_output_for_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert convert(".", size=5) == folder.with_name("insects.fastload")


@pytest.mark.parametrize("bad", [b"", b"no image at all", b"\xff\xd8\xff\xe0 cut"])
def test_a_bad_image_stops_with_its_name_and_leaves_nothing(folder: Path, tmp_path: Path, bad: bytes) -> None:
    (folder / "train" / "bee" / "001.jpg").write_bytes(bad)
    with pytest.raises(DecodeError, match=r"train/bee/001\.jpg"):
        convert(folder, tmp_path / "out", size=9)
    assert {p.name for p in tmp_path.iterdir()} == {"insects"}


def test_after_a_bad_image_finished_shards_are_kept_and_used(folder: Path, tmp_path: Path) -> None:
    image = folder / "valid" / "bee" / "001.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    with pytest.raises(DecodeError):
        convert_small(folder, tmp_path / "out", conversion)
    kept = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out.partial").glob("train-*")}
    assert len(kept) == 4
    image.write_bytes(whole)
    out = convert_small(folder, tmp_path / "out", conversion)
    assert not (tmp_path / "out.partial").exists()
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(out) == contents(convert_small(folder, tmp_path / "again", conversion))


def test_an_unfinished_conversion_with_other_options_is_not_mixed_in(folder: Path, tmp_path: Path) -> None:
    (folder / "valid" / "bee" / "001.jpg").write_bytes(b"")
    with pytest.raises(DecodeError):
        convert_small(folder, tmp_path / "out", conversion)
    with pytest.raises(DatasetError, match="other options"):
        convert_small(folder, tmp_path / "out", conversion, size=21)


def test_an_output_that_exists_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match="exists"):
        convert(folder, tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="exists"):
        convert(folder, tmp_path / "link")


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": -3}, {"size": 10**6}, {"fit": "squeeze"}, {"workers": 0}, {"seed": -1}]
)
def test_impossible_options(folder: Path, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        convert(folder, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out.partial").exists()


def test_an_empty_folder_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        convert(tmp_path / "empty", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"empty"}


def test_an_output_that_cannot_be_written(folder: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be made"):
        convert(folder, "/proc/nothing/out.fastload")


RUN = """
import sys
from fastload import conversion
conversion.SHARD_BYTES = 4 * 20 * 20 * 3
conversion.convert(sys.argv[1], sys.argv[2], size=20)
"""


@pytest.mark.processes
def test_killed_at_any_moment_it_is_finished_by_the_same_command(folder: Path, tmp_path: Path, dataset: Path) -> None:
    """Kill -9 as soon as a given number of shards stands; the bytes after resuming are those of one run."""
    for seed in range(300):  # slow enough to be hit
        write_image(folder / "train" / "bee" / f"x{seed:03d}.jpg", seed, width=301, height=199)
    expected = contents(convert_small(folder, tmp_path / "expected", conversion))
    for num_shards in (1, 20, 60):
        out = tmp_path / f"out{num_shards}"
        partial = tmp_path / f"out{num_shards}.partial"
        running = subprocess.Popen([sys.executable, "-c", RUN, str(folder), str(out)])
        while running.poll() is None and len(list(partial.glob("[tv]*.safetensors"))) < num_shards:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert not out.exists()
        done = {f.name: f.stat().st_mtime_ns for f in partial.glob("[tv]*.safetensors")}
        assert len(done) >= num_shards
        convert_small(folder, out, conversion)
        assert {name: (out / name).stat().st_mtime_ns for name in done} == done
        assert contents(out) == expected
        assert not partial.exists()


@pytest.mark.processes
def test_a_second_converter_is_told_who_holds_the_output(folder: Path, tmp_path: Path) -> None:
    with conversion._partial(tmp_path / "out"):
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(folder), str(tmp_path / "out")], capture_output=True, text=True, check=False
        )
    assert "another process" in done.stderr


def test_the_manifest_says_where_it_comes_from_and_nothing_of_this_machine(dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["source"]["name"] == "insects"
    assert str(dataset.parent) not in (dataset / "manifest.json").read_text()
    assert manifest["settings"] == {"size": 20, "fit": "stretch", "interpolation": "bilinear, antialiased", "seed": 0}
