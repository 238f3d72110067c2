"""MNIST's own files: what is listed, and what is said of damaged ones."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from fastload import convert, open_dataset
from fastload.errors import SourceError
from fastload.sources import detect
from tests.conftest import SHARED

SHAPE = (11, 5, 7)  # images, and an odd size
DIGITS = [3, 0, 3, 10, 2, 2, 0, 3, 10, 0, 3]


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def write_pair(root: Path, name: str, seed: int = 0, *, pack: bool = False) -> None:
    root.mkdir(exist_ok=True)
    for kind, data in (("images-idx3", pixels(seed)), ("labels-idx1", np.array(DIGITS, np.uint8))):
        file = root / f"{name}-{kind}-ubyte{'.gz' if pack else ''}"
        file.write_bytes(gzip.compress(idx(data)) if pack else idx(data))


def test_two_pairs_are_two_splits(tmp_path: Path) -> None:
    for name, seed, pack in (("train", 0, True), ("train", 0, False), ("t10k", 1, True)):  # as torchvision's raw/
        write_pair(tmp_path / "raw", name, seed, pack=pack)
    source = detect(tmp_path / "raw")
    assert (source.layout, source.counts(), source.num_channels) == ("idx", {"train": 11, "test": 11}, 1)
    assert source.classes == ("0", "2", "3", "10")
    of_split = {s: [r for r in source.records if r.split == s] for s in ("train", "test")}
    for seed, records in enumerate(of_split.values()):
        assert [source.classes[r.label] for r in records] == [str(d) for d in DIGITS]
        assert np.array_equal(np.stack([source.read(r) for r in records]), pixels(seed)[..., None])


def test_a_lone_pair_is_train_and_can_be_cut(tmp_path: Path) -> None:
    write_pair(tmp_path / "digits", "t10k", pack=True)
    source = detect(tmp_path / "digits")
    assert source.counts() == {"train": 11}
    assert "--split" in source.notes[0]
    out = convert(tmp_path / "digits", size=8, split={"valid": 0.3})
    train, valid = (open_dataset(out, split) for split in ("train", "valid"))
    assert (len(train), len(valid), train.sample_shape) == (7, 4, (8, 8, 1))  # of each class its share, rounded


def test_stored_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    square = np.random.default_rng(5).integers(0, 256, (3, 9, 9), dtype=np.uint8)
    (tmp_path / "a" / "train-images-idx3-ubyte").write_bytes(idx(square))
    (tmp_path / "a" / "train-labels-idx1-ubyte").write_bytes(idx(np.array([1, 0, 1], np.uint8)))
    dataset = open_dataset(convert(tmp_path / "a", size=9))
    stored = {bytes(dataset[i][0].numpy().tobytes()): dataset[i][1] for i in range(3)}
    assert stored == {square[i].tobytes(): [1, 0, 1][i] for i in range(3)}


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda data: data[:-1], "no whole idx file: it says 11x5x7 and holds 384 bytes"),
        (lambda data: data + b"x", "holds more"),
        (lambda data: data[:3], "does not begin like an idx file"),
        (lambda data: b"\0\0\x08\x03", "does not begin like an idx file"),
        (lambda data: b"\0\0\x0d\x03" + data[4:], "does not begin like an idx file"),
        (lambda data: data[:4] + b"\xff" * 12 + data[16:], "does not begin like an idx file"),
        (lambda data: idx(pixels(0)[:7]), "7 images, and beside it are 11"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, break_it, said: str) -> None:  # type: ignore[no-untyped-def]
    write_pair(tmp_path / "a", "train")
    file = tmp_path / "a" / "train-images-idx3-ubyte"
    file.write_bytes(break_it(file.read_bytes()))
    with pytest.raises(SourceError, match=said) as e:
        detect(tmp_path / "a")
    assert file.name in str(e.value)


def test_a_packed_file_that_is_none_or_cut(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", "train", pack=True)
    file = tmp_path / "a" / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for data in (b"no gzip at all", whole[:-20], whole[:12] + b"\xff" * (len(whole) - 12)):
        file.write_bytes(data)
        with pytest.raises(SourceError, match="copy it anew"):
            detect(tmp_path / "a")


def test_what_is_missing_or_there_twice(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", "train")
    write_pair(tmp_path / "a", "letters-train")
    with pytest.raises(SourceError, match="two idx files of images for train"):
        detect(tmp_path / "a")
    write_pair(tmp_path / "b", "t10k")
    (tmp_path / "b" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(SourceError, match="add t10k-labels-idx1-ubyte"):
        detect(tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(SourceError, match="no idx file of images"):
        detect(tmp_path / "c", layout="idx")


def test_mnists_real_digits(tmp_path: Path) -> None:
    files = [SHARED / f"t10k-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    if not files[0].exists():
        pytest.skip("MNIST's t10k files are not there")
    (tmp_path / "mnist").mkdir()
    for file in files:
        (tmp_path / "mnist" / file.name).symlink_to(file)
    source = detect(tmp_path / "mnist")
    assert source.counts() == {"train": 10_000}
    assert source.classes == tuple("0123456789")
    assert source.classes[source.records[0].label] == "7"  # as every tutorial shows it
    assert source.read(source.records[0]).shape == (28, 28, 1)
