"""What a listing leaves out or makes of a folder against what people expect is said before anything is converted."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from fastload import convert, open_dataset
from fastload.conversion import merge
from fastload.errors import DatasetError, SourceError
from fastload.formats.manifest import read_manifest
from fastload.records import Record, Source
from fastload.sources import cut_splits, detect, remarks
from tests.test_cli import fastload


def add(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def said(root: Path) -> str:
    return "; ".join(remarks(detect(root)))


def test_an_archive_unpacked_into_its_own_name_is_one_class(tmp_path: Path) -> None:
    root = add(tmp_path / "flowers", "flowers/rose/1.jpg", "flowers/tulip/1.jpg")
    assert f"{root}/flowers holds 2 folders (first: rose); if these are the classes, convert that" in said(root)
    assert "one class only, flowers" in said(root)
    assert "holds" not in said(add(tmp_path / "two", "a/x/1.jpg", "a/y/1.jpg", "b/1.jpg"))


def test_a_class_that_train_lacks_and_a_source_without_train(tmp_path: Path) -> None:
    assert "classes that train does not have: 1 (first: Daisy)" in said(
        add(tmp_path / "a", "train/daisy/1.jpg", "train/rose/1.jpg", "val/Daisy/1.jpg", "val/rose/2.jpg")
    )
    assert "no split train" in said(add(tmp_path / "b", "test/daisy/1.jpg", "test/rose/1.jpg"))
    assert said(add(tmp_path / "c", "train/daisy/1.jpg", "train/rose/1.jpg", "val/rose/2.jpg")) == ""


def test_endings_of_jpegs_and_of_what_is_not_read(tmp_path: Path) -> None:
    root = add(tmp_path / "in", "a/1.jfif", "a/2.JPE", "a/3.heic", "b/1.jpg", "b/2.avif", "b/notes.txt")
    source = detect(root)
    assert [r.path for r in source.records] == ["a/1.jfif", "a/2.JPE", "b/1.jpg"]
    assert "images in formats that are not read, left out: 2 (first: a/3.heic)" in said(root)
    assert "ignored: 3 other files" in said(root)


def test_a_conversion_says_it_and_not_only_a_dry_run(tmp_path: Path) -> None:
    root = add(tmp_path / "in", "train/a/1.txt", "test/loose.jpg")
    for name in ("a", "b"):
        (root / f"train/{name}").mkdir(exist_ok=True)
        # A grey picture of one pixel, in a format without a header to speak of.
        (root / f"train/{name}/1.pgm").write_bytes(b"P5 1 1 255\n\x07")
    (root / "train/b/2.pgm").write_bytes(b"no image")
    (root / "train/c").mkdir()
    (root / "train/c/1.pgm").write_bytes(b"no image")
    stopped = fastload("convert", root, "--size", 4, "--workers", 1)
    assert (stopped.returncode, "pass --on-bad skip" in stopped.stderr) == (2, True)
    done = fastload("convert", root, "--size", 4, "--workers", 1, "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "note: images outside every class folder, left out: 1 (first: test/loose.jpg)" in done.stderr
    assert "note: ignored: 2 other files" in done.stderr
    assert "note: classes of which every image is bad: 1 (first: c)" in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--mode", "jpg"], "--mode means nothing to a dataset of one size"),
        (["--quality", 90], "--quality means nothing"),
        (["--format", "ffcv", "--size", 256], "--size means nothing to --format ffcv"),
        (["--target", "y", "--size", 64], "--size means nothing to a table"),
        (["--target", "y", "--on-bad", "skip"], "--on-bad means nothing to a table"),
        (["--split", "valid=0.1", "--split", "valid=0.2"], "valid was given before"),
        (["--workers", 9999], "1 to 1,024 processes"),
        (["--split", "valid=0.1"], "valid=0.1 takes no sample of any class"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path: Path, words: list[object], reason: str) -> None:
    done = fastload("convert", add(tmp_path / "in", "a/1.jpg", "b/1.jpg"), tmp_path / "out", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("convert", ""), ("convert", ".", ""), ("convert", ".", "."), ("info", ""),
                                   ("show", "x.beton")])  # fmt: skip
def test_paths_that_name_nothing(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(add(tmp_path / "in", "a/1.jpg", "b/1.jpg"))
    done = fastload(*words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_what_ffcv_would_be_written_as(tmp_path: Path) -> None:
    root = add(tmp_path / "in", "a/1.jpg", "b/1.jpg")
    done = fastload("convert", root, "--format", "ffcv", "--dry-run")
    assert f"would write: {tmp_path}/in.ffcv, train.beton" in done.stdout


def test_a_cut_leaves_a_sample_of_each_class_and_takes_one() -> None:
    records = tuple(Record(path=f"{label}/{i}", label=label, split="train") for label in (0, 1) for i in range(3))
    source = Source(root=Path(), layout="class-folders", classes=("a", "b"), records=records, name="x")
    cut = cut_splits(source, {"valid": 0.6, "test": 0.39}, 0)
    assert {r.label for r in cut.records if r.split == "train"} == {0, 1}


def test_a_list_of_ids_finds_the_files(tmp_path: Path) -> None:
    add(tmp_path, "img/d0.jpg", "img/r0.png", "img/r0.txt", "img/two.jpg", "img/two.png")
    (tmp_path / "labels.csv").write_text("id,breed\nimg/d0,dingo\nimg/r0,rottweiler\n")
    source = detect(tmp_path / "labels.csv")
    assert [(r.path, source.classes[r.label]) for r in source.records] == [
        ("img/d0.jpg", "dingo"), ("img/r0.png", "rottweiler"),
    ]  # fmt: skip
    assert source.notes == ("names without their ending, found with it: 2 (first: img/d0 is img/d0.jpg)",)
    (tmp_path / "labels.csv").write_text("id,breed\nimg/d0,dingo\nimg/two,rottweiler\n")
    with pytest.raises(SourceError, match="1 of 2 files do not exist"):
        detect(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("id,breed\nimg\\d0.jpg,dingo\n")
    with pytest.raises(SourceError, match=r"write / for"):
        detect(tmp_path / "labels.csv")


def test_lists_of_other_texts(tmp_path: Path) -> None:
    add(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "l.tsv").write_bytes("file\tlabel\r\na.jpg\tx\r\nb.jpg\ty\r\n".encode("utf-16"))
    assert detect(tmp_path / "l.tsv").classes == ("x", "y")
    (tmp_path / "l.txt").write_text("a.jpg\nb.jpg\n")
    with pytest.raises(SourceError, match="one column"):
        detect(tmp_path / "l.txt")


@pytest.mark.parametrize("cut", [512 + 512, 1024 + 100])
def test_a_tar_that_was_cut_between_two_members_is_no_whole_tar(tmp_path: Path, cut: int) -> None:
    """As a download that was broken off leaves it; tarfile itself takes this for the end."""
    whole = add(tmp_path / "in", "1.jpg", "1.cls", "2.jpg", "2.cls")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.jpg", "1.cls", "2.jpg", "2.cls"):
            tar.add(whole / name, name)
    assert len(detect(tmp_path / "a.tar").records) == 2
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: 1024 + cut])
    with pytest.raises(SourceError, match="before its end mark"):
        detect(tmp_path / "a.tar")


def test_ids_without_a_header_keep_their_first_row(tmp_path: Path) -> None:
    for name in ("000012.jpg", "000017.jpg", "1.jpg", "2.jpg"):
        (tmp_path / name).touch()
    for name, text, expected in (
        ("a.csv", "000012,dog\n000017,cat\n", {"000012.jpg": "dog", "000017.jpg": "cat"}),
        ("b.txt", "000012 2\n000017 1\n", {"000012.jpg": "2", "000017.jpg": "1"}),
        ("c.csv", "2,7\n1,8\n", {"2.jpg": "7", "1.jpg": "8"}),  # whose first cell is what the column is called
        ("d.csv", "000017,dog\n", {"000017.jpg": "dog"}),
        ("e.csv", "number,kind\n000017,dog\n", {"000017.jpg": "dog"}),
        ("f.csv", "1,class\n000017,dog\n", {"000017.jpg": "dog"}),  # a known name: a header
    ):
        (tmp_path / name).write_text(text)
        source = detect(tmp_path / name, label_column="2")
        assert {r.path: source.classes[r.label] for r in source.records} == expected


def test_paths_that_cannot_be_looked_at_are_one_sentence(tmp_path: Path) -> None:
    root = add(tmp_path / "in", "a/1.jpg", "b/1.jpg")
    long = tmp_path / ("x" * 300)
    unseen = r"x cannot be looked at \(File name too long\); check the path"
    for spec in (long, f"{long}.tar", f"{long}.csv"):
        with pytest.raises(SourceError, match="cannot be looked at"):
            detect(spec)
    with pytest.raises(SourceError, match="cannot be looked at"):
        detect(f"{long}{{0..1}}", layout="webdataset")
    with pytest.raises(SourceError, match=unseen):
        convert(long)
    with pytest.raises(DatasetError, match=unseen):
        convert(root, long, size=8)
    with pytest.raises(DatasetError, match="cannot be looked at"):
        merge(tmp_path / ("y" * 250))  # whose unfinished name is too long
    with pytest.raises(DatasetError, match=unseen):
        read_manifest(long)
    for dataset, options in ((long, {}), (long, {"size": 8}), (long.with_suffix(".beton"), {})):
        with pytest.raises(DatasetError, match="cannot be looked at"):
            open_dataset(dataset, **options)
