import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from fastload.errors import ConfigError, SourceError
from fastload.records import SPLIT_WORDS, Record, Source
from fastload.sources import cut_splits, detect
from tests.conftest import write_folder, write_image


def test_splits_classes_and_labels(folder: Path) -> None:
    source = detect(folder)
    assert source.layout == "split-class-folders"
    assert source.classes == ("ant", "bee", "wasp")
    assert source.counts() == {"train": 13, "valid": 7}
    assert source.records[0] == Record(path="train/ant/000.jpg", label=0, split="train")


@pytest.mark.parametrize("word", SPLIT_WORDS)
def test_every_word_for_a_split_is_known(tmp_path: Path, word: str) -> None:
    write_image(tmp_path / word.title() / "ant" / "1.jpg", 1)
    assert detect(tmp_path).counts() == {SPLIT_WORDS[word]: 1}


def test_labels_are_those_of_torchvision(tmp_path: Path) -> None:
    for name in ("10", "2", "1", "B", "a"):
        write_image(tmp_path / name / "x" / "deep.JPG", 1)
    source = detect(tmp_path)
    theirs = ImageFolder(str(tmp_path))
    assert list(source.classes) == theirs.classes
    ours = {str(tmp_path / r.path): r.label for r in source.records}
    assert ours == dict(theirs.samples)


def test_other_files_and_hidden_ones_are_left_out(folder: Path) -> None:
    (folder / "train" / "ant" / "notes.txt").write_text("hello")
    (folder / "train" / "ant" / ".hidden.jpg").write_bytes(b"")
    (folder / ".git").mkdir()
    source = detect(folder)
    assert (len(source.records), source.num_ignored) == (20, 1)


def test_a_link_to_a_folder_above_ends(folder: Path) -> None:
    (folder / "train" / "ant" / "again").symlink_to(folder / "train" / "ant")
    assert detect(folder).counts() == {"train": 13, "valid": 7}


def test_strange_names(tmp_path: Path) -> None:
    name = os.fsdecode(b"new\nline \xff.jpg")
    write_image(tmp_path / "ant" / "plain.jpg", 1)
    (tmp_path / "ant" / "plain.jpg").rename(tmp_path / "ant" / name)
    source = detect(tmp_path)
    assert source.records[0].path == f"ant/{name}"
    assert len(source.digest()) == 64


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "holds no images"),
        (lambda root: (root / "ant").mkdir(), "holds no images"),
        (lambda root: (root / "notes.txt").write_text("x"), "holds no images"),
        (lambda root: write_image(root / "1.jpg", 1), "no class folders"),
        (lambda root: write_image(root / "train" / "1.jpg", 1), "no class folders"),
        (lambda root: [write_image(root / n / "a" / "1.jpg", 1) for n in ("train", "other")], "beside other"),
    ],
)
def test_what_is_no_layout_says_so(tmp_path: Path, make, said: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path)
    with pytest.raises(SourceError, match=said):
        detect(tmp_path)


def test_missing_folder_and_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        detect(tmp_path / "nowhere")


def test_the_order_of_creation_does_not_matter(tmp_path: Path) -> None:
    names = [f"{c}/{n}.jpg" for c in "cab" for n in (3, 1, 2)]
    for root, order in ((tmp_path / "x", names), (tmp_path / "y", names[::-1])):
        for name in order:
            write_image(root / name, 1)
    assert detect(tmp_path / "x").records == detect(tmp_path / "y").records
    assert detect(tmp_path / "x").digest() == detect(tmp_path / "y").digest()


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    fraction=st.floats(0.01, 0.6),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_a_cut_is_stratified_and_loses_nothing(counts: list[int], fraction: float, seed: int) -> None:
    records = tuple(
        Record(path=f"{c}/{n}.jpg", label=c, split="train") for c, count in enumerate(counts) for n in range(count)
    )
    source = Source(root=Path(), layout="class-folders", classes=tuple(map(str, range(len(counts)))), records=records)
    cut = cut_splits(source, {"valid": fraction}, seed)
    assert sorted(r.path for r in cut.records) == sorted(r.path for r in records)
    for label, count in enumerate(counts):
        moved = [r for r in cut.records if r.label == label and r.split == "valid"]
        assert len(moved) == min(round(fraction * count), count - 1)  # train keeps one of each class
    assert cut == cut_splits(source, {"valid": fraction}, seed)


def test_a_cut_keeps_its_images_when_others_are_added(tmp_path: Path) -> None:
    source = detect(write_folder(tmp_path, splits=False))
    valid = {r.path for r in cut_splits(source, {"valid": 0.5}, 0).records if r.split == "valid"}
    write_image(tmp_path / "ant" / "zzz.jpg", 99)
    more = {r.path for r in cut_splits(detect(tmp_path), {"valid": 0.5}, 0).records if r.split == "valid"}
    assert {p for p in valid if not p.startswith("ant/")} <= more


@pytest.mark.parametrize("fractions", [{"valid": 1.0}, {"valid": 0.0}, {"valid": 0.6, "test": 0.5}, {"train": 0.1}])
def test_an_impossible_cut_is_refused(tmp_path: Path, fractions: dict[str, float]) -> None:
    source = detect(write_folder(tmp_path, splits=False))
    with pytest.raises(ConfigError):
        cut_splits(source, fractions, 0)


def test_a_split_that_is_there_is_not_cut_again(folder: Path) -> None:
    with pytest.raises(ConfigError, match="already has"):
        cut_splits(detect(folder), {"valid": 0.1}, 0)
