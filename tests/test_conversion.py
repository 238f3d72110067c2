import csv
import errno
import json
import os
import resource
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from fastload import Loader, conversion, convert, decode, open_dataset
from fastload.conversion import default_output
from fastload.conversion_ffcv import convert_to_ffcv
from fastload.errors import ConfigError, DatasetError, DecodeError, SourceError
from fastload.output import Output
from fastload.records import Source
from fastload.sources import detect
from tests.conftest import convert_small, launch, write_folder, write_image
from tests.test_idx import idx


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


def test_default_output_of_what_a_library_knows(tmp_path: Path) -> None:
    names = {"torchvision:CIFAR10": "cifar10", "hf:org/Food101": "food101", f"hf:{tmp_path}/Saved.v2/": "saved.v2"}
    for spec, name in names.items():
        assert default_output(spec) == Path(f"{name}.fastload")
    listed = Source(root=tmp_path, layout="torchvision", classes=(), records=(), name="CIFAR10")
    assert default_output(listed) == Path("cifar10.fastload")
    for spec in ("torchvision:", "hf:", "hf:..", "hf:."):
        with pytest.raises(ConfigError, match="name the dataset"):
            default_output(spec)


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
    assert len(kept) == 3  # the fourth is the smallest, whose turn comes last
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
def test_killed_at_any_moment_it_is_finished_by_the_same_command(folder: Path, tmp_path: Path) -> None:
    """Kill -9 before each of dozens of file operations; what stands there afterwards is nothing, or whole."""
    for seed in range(16):  # four more shards
        write_image(folder / "train" / "bee" / f"more{seed}.jpg", seed)
    expected = contents(convert_small(folder, tmp_path / "expected", conversion))
    done = launch("tests/killed_runs.py", folder, tmp_path)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) >= 30
    assert {outcome["killed"] for outcome in outcomes[:-1]} == {True}
    assert outcomes[-1]["killed"] is False, "the last run was never reached by its kill"
    for number, outcome in enumerate(outcomes):
        out = tmp_path / f"out{number}"
        assert contents(out) == expected
        assert not (tmp_path / f"out{number}.partial").exists()
        # Finished shards are kept: their files are the ones that the killed run wrote.
        assert outcome["kept"] == outcome["finished"]
    assert max(outcome["finished"] for outcome in outcomes[:-1]) >= 4


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """No file may grow beyond half of what the larger shard needs, as the kernel has it: a real error, not a mock."""
    root = tmp_path / "set"
    for split, count in (("train", 2), ("valid", 7)):
        for number in range(count):
            write_image(root / split / "bee" / f"{number}.jpg", number)
    expected = contents(convert(root, tmp_path / "expected", size=64))
    convert(root, tmp_path / "out", size=64, task="1/2")  # the smaller one: its turn would come last
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 64 * 64 * 3, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"valid-00000.*make room.*same command"):
            convert(root, tmp_path / "out", size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {f.name for f in (tmp_path / "out.partial").iterdir()} == {"train-00000.safetensors", "plan.json"}
    kept = (tmp_path / "out.partial" / "train-00000.safetensors").stat().st_mtime_ns
    out = convert(root, tmp_path / "out", size=64)
    assert contents(out) == expected
    assert (out / "train-00000.safetensors").stat().st_mtime_ns == kept


def test_a_disk_that_is_full_for_the_tables(tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "bee" / "0.jpg", 0)
    for number in range(1, 200):
        os.link(tmp_path / "set" / "bee" / "0.jpg", tmp_path / "set" / "bee" / f"{number:0100d}.jpg")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"samples\.csv cannot be written.*make room"):
            convert(tmp_path / "set", tmp_path / "out", size=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {f.name for f in (tmp_path / "out.partial").iterdir()} == {"train-00000.safetensors"}
    assert len(open_dataset(convert(tmp_path / "set", tmp_path / "out", size=1))) == 200


@pytest.mark.processes
def test_a_second_converter_is_told_who_holds_the_output(folder: Path, tmp_path: Path) -> None:
    with Output(tmp_path / "out", "manifest.json").held():
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(folder), str(tmp_path / "out")], capture_output=True, text=True, check=False
        )
    assert f"is being written by process {os.getpid()} on " in done.stderr


def test_the_manifest_says_where_it_comes_from_and_nothing_of_this_machine(dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["source"]["name"] == "insects"
    assert str(dataset.parent) not in (dataset / "manifest.json").read_text()
    assert manifest["settings"] == {"size": 20, "fit": "stretch", "interpolation": "bilinear, antialiased", "seed": 0}


# --- bad images that are skipped ---


def test_skipped_images_are_left_out_and_listed(folder: Path, tmp_path: Path) -> None:
    whole = convert_small(folder, tmp_path / "whole", conversion)
    bad = {"train/bee/001.jpg": b"", "train/ant/000.jpg": b"no image", "valid/wasp/001.jpg": b"\xff\xd8\xff cut"}
    for path, content in bad.items():
        (folder / path).write_bytes(content)
    (folder / "valid" / "bee" / "000.jpg").chmod(0)
    with mock.patch.object(conversion, "SHARD_BYTES", 4 * 20 * 20 * 3):
        out = convert(folder, tmp_path / "out", size=20, on_bad="skip")
    with (out / "bad.csv").open(newline="") as opened:
        listed = {row["path"]: row["reason"] for row in csv.DictReader(opened)}
    assert bad.keys() <= listed.keys()
    assert listed["train/bee/001.jpg"] == "the file is empty"
    manifest = json.loads((out / "manifest.json").read_text())
    assert {s["path"] for s in manifest["skipped"]} == listed.keys()
    # Every image that is left is the one that its row in samples.csv names.
    kept, all_of_them = (samples_of(d) for d in (out, whole))
    assert kept.keys() == all_of_them.keys() - listed.keys()
    assert all(np.array_equal(kept[path], all_of_them[path]) for path in kept)
    train = np.concatenate([s.numpy().reshape(-1, 3) for s in open_dataset(out).shards]) / 255
    assert np.allclose(manifest["mean"], train.mean(0), atol=1e-9)


def samples_of(dataset: Path) -> dict[str, np.ndarray]:
    with (dataset / "samples.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    found = {}
    for split in ("train", "valid"):
        opened_split = open_dataset(dataset, split)
        ours = [r for r in rows if r["split"] == split]
        assert len(ours) == len(opened_split)
        for i, row in enumerate(ours):
            image, label = opened_split[i]
            assert label == int(row["label"])
            found[row["path"]] = image.numpy()
    return found


def test_what_one_run_skipped_stops_the_next(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "bee" / "001.jpg").write_bytes(b"")
    (folder / "valid" / "bee" / "001.jpg").write_bytes(b"")
    with (
        mock.patch.object(conversion, "SHARD_BYTES", 4 * 20 * 20 * 3),
        mock.patch.object(conversion, "finish", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        convert(folder, tmp_path / "out", size=20, on_bad="skip")
    with pytest.raises(DecodeError, match="001"):
        convert_small(folder, tmp_path / "out", conversion)
    for split in ("train", "valid"):  # mended
        write_image(folder / split / "bee" / "001.jpg", 1)
    out = convert_small(folder, tmp_path / "out", conversion)
    assert contents(out) == contents(convert_small(folder, tmp_path / "again", conversion))


def test_nothing_but_bad_images_is_no_dataset(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/2.jpg"):
        (tmp_path / "bad" / name).parent.mkdir(parents=True)
        (tmp_path / "bad" / name).write_bytes(b"x")
    with pytest.raises(SourceError, match="none of the 2 images"):
        convert(tmp_path / "bad", tmp_path / "out", size=8, on_bad="skip")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["resident", "ffcv"])
def test_the_machines_troubles_are_no_bad_images(folder: Path, tmp_path: Path, format: str) -> None:
    if format == "ffcv":
        pytest.importorskip("ffcv")
    to = {"resident": partial(convert, size=8), "ffcv": convert_to_ffcv}[format]
    source = detect(folder)
    (folder / "train" / "ant" / "000.jpg").unlink()
    (folder / "train" / "ant" / "001.jpg").write_bytes((folder / "train" / "ant" / "001.jpg").read_bytes()[:-99])
    real = decode.decode_whole if format == "ffcv" else decode.decode

    def short(data: bytes, path: str, **options: Any) -> Any:
        if path == "valid/bee/001.jpg":
            raise DecodeError(path, "not enough memory") from MemoryError()
        return real(data, path, **options)

    def broken(root: Path, path: str) -> bytes:
        if path == "valid/bee/001.jpg":
            raise OSError(errno.EIO, "Input/output error")
        return (root / path).read_bytes()

    room = f"fastload.{'conversion_ffcv' if format == 'ffcv' else 'filling'}.{real.__name__}"
    for patched in (mock.patch("fastload.records.read_bytes", broken), mock.patch(room, short)):
        with patched, pytest.raises(DecodeError, match=r"valid/bee/001\.jpg: .*no bad image.*same command"):
            to(source, tmp_path / "out", on_bad="skip")
    out = to(source, tmp_path / "out", on_bad="skip")
    assert [line.split(",")[0] for line in (out / "bad.csv").read_text().splitlines()] == [
        "path", "train/ant/000.jpg", "train/ant/001.jpg"
    ]  # fmt: skip


# --- other layouts, the whole way ---


def test_labels_in_file_names_and_unlabelled_images(tmp_path: Path) -> None:
    for seed, name in enumerate(("training/3_0.jpg", "training/10_1.jpg", "validation/3_2.jpg", "testing/0007.jpg")):
        write_image(tmp_path / "food11" / name, seed)
    out = convert(tmp_path / "food11", size=16)
    assert open_dataset(out).classes == ("3", "10")
    assert open_dataset(out, "test").labels.tolist() == [-1]
    assert len(Loader(open_dataset(out, "test"), 1, shuffle=False)) == 1
    with pytest.raises(ConfigError, match="none of the 1 samples of test has a label"):
        Loader(open_dataset(out, "test"), 1, drop_last=False)


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    raw, digits = tmp_path / "MNIST" / "raw", np.arange(20, dtype=np.uint8) % 10
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for split in ("t10k", "train"):  # torchvision wants both
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(digits))
    out = convert(detect("torchvision:MNIST", root=tmp_path), tmp_path / "mnist.fastload", size=28)
    opened = open_dataset(out, "test")
    assert opened.sample_shape == (28, 28, 1)
    images, labels = next(iter(Loader(opened, 20, shuffle=False)))
    assert np.array_equal((images[:, 0] * 255).round().numpy(), pixels)
    assert np.array_equal(labels, digits)
