"""The words for a split are the same words wherever one is named: a folder, a dataset, a share to cut."""

from pathlib import Path

import pytest

from fastload import open_dataset
from fastload.converting import parse_shares
from fastload.errors import ConfigError, DatasetError
from fastload.records import SPLIT_WORDS
from fastload.sources import cut_splits, detect
from tests.conftest import write_folder, write_image

WORDS = [spelled for word in SPLIT_WORDS for spelled in (word, word.title())]


@pytest.mark.parametrize("word", WORDS)
def test_a_folder_is_read_with_the_labels_that_converting_gives(tmp_path: Path, word: str) -> None:
    split = SPLIT_WORDS[word.lower()]
    other = "Testing" if split == "train" else "Training"
    for name, classes in ((other, "abc"), (word, "bc")):
        for number, of in enumerate(classes):
            write_image(tmp_path / name / of / f"{number}.jpg", number)
    (tmp_path / word / "empty").mkdir()
    source = detect(tmp_path)
    for asked in (split, word):
        opened = open_dataset(tmp_path, asked, size=8)
        assert opened.split == split
        assert opened.classes == source.classes == ("a", "b", "c")
        assert opened.labels is not None
        assert opened.labels.tolist() == [r.label for r in source.records if r.split == split] == [1, 2]
        assert [opened[i][1] for i in range(2)] == [1, 2]


@pytest.mark.parametrize("word", [word for word in WORDS if SPLIT_WORDS[word.lower()] != "train"])
def test_a_dataset_and_a_share_know_every_word(dataset: Path, tmp_path: Path, word: str) -> None:
    split = SPLIT_WORDS[word.lower()]
    if split == "valid":
        assert open_dataset(dataset, word).split == split
    else:
        with pytest.raises(DatasetError, match=r"no split 'test'; it has: train, valid"):
            open_dataset(dataset, word)
    assert parse_shares([f"{word}=0.25"]) == {split: 0.25}
    with pytest.raises(ConfigError, match="was given before"):
        parse_shares([f"{split}=0.1", f"{word}=0.25"])
    source = detect(write_folder(tmp_path, splits=False))
    assert cut_splits(source, {word: 0.3}, 0) == cut_splits(source, {split: 0.3}, 0)
    with pytest.raises(ConfigError, match="twice"):
        cut_splits(source, {"val": 0.1, "validation": 0.1, word: 0.2}, 0)


def test_a_split_that_is_not_there_is_no_other_one(tmp_path: Path) -> None:
    for name in ("Testing", "Val"):
        write_image(tmp_path / name / "a" / "1.jpg", 1)
    with pytest.raises(DatasetError, match=r"no split train; its split folders are: Testing, Val"):
        open_dataset(tmp_path, size=8)
    write_image(tmp_path / "validation" / "a" / "2.jpg", 1)
    with pytest.raises(DatasetError, match=r"Val and validation"):
        open_dataset(tmp_path, "val", size=8)
    with pytest.raises(DatasetError, match=r"no split valid; it has no split folders"):
        open_dataset(tmp_path / "Val", "val", size=8)
