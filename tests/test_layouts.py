"""Laws of every layout: the same samples, labels and splits come back, whatever the order of creation."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastload.records import SPLITS, UNLABELLED, Source
from fastload.sources import cut_splits, describe, detect
from tests.conftest import SHARED
from tests.photographs_help import write_photographs
from tests.sources_help import (
    Sample,
    a_list,
    add,
    class_folders,
    content_of,
    expected,
    file_names,
    sidecars,
    tars,
    truths,
)

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(
    write: Callable[[list[Sample], Path, bool, int], str],
    truth: list[Sample],
    splits: bool,
    layout: str | None = None,
    number_order: bool = True,
) -> Source:
    with tempfile.TemporaryDirectory() as folder:
        first = detect(write(truth, Path(folder, "x"), splits, 1), layout=layout)
        second = detect(write(truth, Path(folder, "y"), splits, 2), layout=layout)
        assert content_of(first) == expected(truth)
        assert (first.records, first.classes, first.digest()) == (second.records, second.classes, second.digest())
        assert list(first.records) == sorted(first.records, key=lambda r: (SPLITS.index(r.split), r.path))
        numbers = number_order and all(name.isascii() and name.isdigit() for name in first.classes)
        assert list(first.classes) == sorted(first.classes, key=(lambda n: (int(n), n)) if numbers else None)
        assert all(line.isprintable() for line in describe(first))
        copied = ForkingPickler.loads(ForkingPickler.dumps(first))  # as a process pool sends it
        assert content_of(copied) == expected(truth)
        return first


@given(truth=truths(), splits=st.just(True))
@few
def test_class_folders_with_splits(truth: list[Sample], splits: bool) -> None:
    check(class_folders, truth, splits, number_order=False)


@given(truth=truths(splits=False))
@few
def test_class_folders_without_splits(truth: list[Sample]) -> None:
    check(class_folders, truth, False, number_order=False)


@given(truth=truths(unlabelled=True))
@few
def test_file_names_with_splits(truth: list[Sample]) -> None:
    assert check(file_names, truth, True).layout == "file-names"


@given(truth=truths(unlabelled=True, splits=False))
@few
def test_file_names_without_splits_when_asked_for(truth: list[Sample]) -> None:
    check(file_names, truth, False, layout="file-names")


@given(truth=truths())
@few
def test_sidecars(truth: list[Sample]) -> None:
    assert check(sidecars, truth, True).layout == "sidecars"


@given(truth=truths(unlabelled=True), suffix=st.sampled_from([".csv", ".tsv", ".txt"]))
@few
def test_lists_with_a_split_column(truth: list[Sample], suffix: str) -> None:
    check(lambda *a: a_list(*a, suffix=suffix), truth, True)


@given(truth=truths(unlabelled=True, splits=False), suffix=st.sampled_from([".csv", ".tsv"]), header=st.booleans())
@few
def test_lists_with_and_without_a_header(truth: list[Sample], suffix: str, header: bool) -> None:
    check(lambda *a: a_list(*a, suffix=suffix, header=header), truth, False)


@given(truth=truths(unlabelled=True))
@few
def test_tars(truth: list[Sample]) -> None:
    assert check(tars, truth, True).layout == "webdataset"


@given(truth=truths(unlabelled=True), seed=st.integers(0, 9), fraction=st.floats(0.1, 0.9))
@few
def test_a_cut_never_moves_what_has_no_label(truth: list[Sample], seed: int, fraction: float) -> None:
    truth = [Sample("train", s.label, s.name, s.content) for s in truth]
    for write in (file_names, a_list, tars):
        with tempfile.TemporaryDirectory() as folder:
            source = detect(write(truth, Path(folder, "x"), write is not a_list, 0))
            cut = cut_splits(source, {"valid": fraction}, seed)
            assert {(c, text) for c, _, text in content_of(cut)} == {(s.content, s.label) for s in truth}
            assert all(r.split == "train" for r in cut.records if r.label == UNLABELLED)
            assert (cut.classes, cut.reader, cut.layout) == (source.classes, source.reader, source.layout)


# The same photographs, said in every layout.


@pytest.fixture(scope="module", params=["of the demo", "hymenoptera"])
def photographs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real ones: a dozen cut from scikit-image's pictures, and hymenoptera where it is beside the checkout."""
    root = tmp_path_factory.mktemp("photographs")
    if request.param == "of the demo":
        return write_photographs(root)
    if not (SHARED / "hymenoptera.tar").exists():
        pytest.skip("hymenoptera.tar is not beside the checkout")
    with tarfile.open(SHARED / "hymenoptera.tar") as tar:
        tar.extractall(root, filter="data")
    return root / "hymenoptera"


@pytest.fixture(scope="module")
def truth(photographs: Path) -> set[tuple[str, str, str]]:
    """(hash of the file, split, class), read off the folders by hand."""
    return {
        (hashlib.sha256(file.read_bytes()).hexdigest(), split, name)
        for folder, split in (("train", "train"), ("val", "valid"))
        for name in ("ants", "bees")
        for file in (photographs / folder / name).iterdir()
    }


def hashes(source: Source) -> set[tuple[str, str, str]]:
    return {
        (hashlib.sha256(bytes(source.read(r))).hexdigest(), r.split, source.classes[r.label]) for r in source.records
    }


def files_of(photographs: Path) -> list[tuple[str, str, str, Path]]:
    return [(f.parent.parent.name, f.parent.name, f"{i:04d}{f.suffix}", f) for i, f in
            enumerate(sorted(photographs.glob("*/*/*")))]  # fmt: skip


def test_photographs_in_class_folders(photographs: Path, truth: set[tuple[str, str, str]]) -> None:
    source = detect(photographs)
    assert hashes(source) == truth
    # Of hymenoptera with the one placeholder that is no photograph.
    few = len(source.records) < 100
    assert source.counts() == ({"train": 7, "valid": 5} if few else {"train": 245, "valid": 153})


def test_photographs_with_labels_in_their_names(
    photographs: Path, truth: set[tuple[str, str, str]], tmp_path: Path
) -> None:
    for split, name, new, file in files_of(photographs):
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / split / f"{name}_{new}").symlink_to(file)
    assert hashes(detect(tmp_path)) == truth


def test_photographs_with_sidecars(photographs: Path, truth: set[tuple[str, str, str]], tmp_path: Path) -> None:
    for split, name, new, file in files_of(photographs):
        for kind in ("image", "label"):
            (tmp_path / split / f"{name}_{kind}").mkdir(parents=True, exist_ok=True)
        (tmp_path / split / f"{name}_image" / new).symlink_to(file)
        (tmp_path / split / f"{name}_label" / f"{new[:4]}.txt").write_text(name)
    assert hashes(detect(tmp_path)) == truth


def test_photographs_in_a_list(photographs: Path, truth: set[tuple[str, str, str]], tmp_path: Path) -> None:
    rows = [f"{split},{split}/{name}/{file.name},{name}" for split, name, _, file in files_of(photographs)]
    (tmp_path / "all.csv").write_text("\n".join(["Split,where,what", *rows]))
    assert hashes(detect(tmp_path / "all.csv", root=photographs)) == truth


def test_photographs_in_tars(photographs: Path, truth: set[tuple[str, str, str]], tmp_path: Path) -> None:
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for s, name, new, file in files_of(photographs):
                if s == split:
                    tar.add(file, new)
                    add(tar, f"{new[:4]}.cls", name.encode())
    assert hashes(detect(tmp_path / "{train,val}.tar")) == truth


def test_flowers_have_the_same_labels_in_every_layout(tmp_path: Path) -> None:
    if not (SHARED / "flowers5.tar.xz").exists():
        pytest.skip("flowers5.tar.xz is not beside the checkout")
    with tarfile.open(SHARED / "flowers5.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    root = tmp_path / "flowers5"
    folders = detect(root)
    assert folders.counts() == {"train": 4317}
    (root / "all.txt").write_text("".join(f"{r.path} {folders.classes[r.label]}\n" for r in folders.records))
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for r in folders.records:
        (renamed / r.path.replace("/", "_")).symlink_to(root / r.path)
    listed, named = detect(root / "all.txt"), detect(renamed, layout="file-names")
    assert folders.classes == listed.classes == named.classes
    assert folders.records == listed.records
    assert [(r.path.replace("/", "_"), r.label) for r in folders.records] == [(r.path, r.label) for r in named.records]
