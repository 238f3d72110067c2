"""Finding the layout, its options and errors, and trees that nobody has checked."""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path
from unittest import mock

import pytest

from fastload.errors import ConfigError, DecodeError, SourceError
from fastload.records import Record, Source
from fastload.sources import LAYOUTS, describe, detect
from fastload.sources.lists import read_rows
from fastload.sources.webdataset import expand
from tests.conftest import ROOT
from tests.sources_help import add, write_files


def tree(root: Path, *paths: str) -> Path:
    write_files(root, dict.fromkeys(paths, b""), 0)
    return root


def labels(source: Source) -> dict[str, str | None]:
    return {r.path: source.classes[r.label] if r.label >= 0 else None for r in source.records}


# Finding the layout.


@pytest.mark.parametrize(
    ("paths", "layout"),
    [
        (["train/3_1.jpg", "testing/0007.jpg"], "file-names"),
        (["train/ants/3_1.jpg"], "split-class-folders"),
        (["ants/3_1.jpg"], "class-folders"),
        (["ants_image/1.jpg", "ants_label/1.txt"], "sidecars"),
        (["val/ants_image/1.jpg", "val/ants_label/1.txt"], "sidecars"),
    ],
)
def test_a_layout_is_found(tmp_path: Path, paths: list[str], layout: str) -> None:
    write_files(tmp_path, dict.fromkeys(paths, b"ants"), 0)
    source = detect(tmp_path)
    assert source.layout == layout
    said = describe(source)[0].removeprefix("layout: ").partition(",")[0]
    assert said == layout
    assert detect(tmp_path, layout=said) == source


def test_every_layout_is_taken_by_the_name_it_is_told_by() -> None:
    files = (ROOT / "fastload" / "sources").glob("*.py")
    told = {name for file in files for name in re.findall(r'layout="([^"]+)"', file.read_text())} - {"table"}
    assert told == {*LAYOUTS, "split-class-folders"} - {"class-folders"}  # which test_a_layout_is_found has


def test_a_layout_asked_for_overrules(tmp_path: Path) -> None:
    tree(tmp_path, "train/3_1.jpg", "train/ants/2.jpg")
    assert detect(tmp_path).classes == ("ants",)
    assert detect(tmp_path, layout="file-names").classes == ("3",)


def test_an_unknown_layout_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not one of class-folders, file-names") as e:
        detect(tmp_path, layout="coco")
    assert all(name in str(e.value) for name in LAYOUTS)


def test_an_option_that_means_nothing_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "ants/1.jpg")
    with pytest.raises(ConfigError, match="--path-column means nothing to the layout class-folders"):
        detect(tmp_path, path_column="x")
    with pytest.raises(ConfigError, match="--download means nothing"):
        detect(tmp_path, download=True)


def test_what_is_of_no_kind_says_so(tmp_path: Path) -> None:
    for name, said in (("a.zip", "no known kind"), ("t.csv.gz", "--target COLUMN")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(SourceError, match=said):
            detect(tmp_path / name)
    with pytest.raises(SourceError, match="wants a folder"):
        detect(tmp_path / "a.zip", layout="sidecars")


def test_descriptions_tell_all(tmp_path: Path) -> None:
    tree(tmp_path, "train/1/a.jpg", "train/1/b.jpg", "train/2/c.jpg", "val/1/d.jpg", "val/2/notes.txt", "val/x.jpg",
         "train/empty/y.txt")  # fmt: skip
    (tmp_path / "cat_to_name.json").write_text('{"1": "pink primrose", "2": "canna\\u001b[31m lily"}')
    lines = describe(detect(tmp_path))
    assert lines[1:] == [
        "samples: 3 train, 1 valid",
        "classes: 2: 1 (pink primrose), 2 (canna\\x1b[31m lily)",
        "ignored: 3 other files",
        "folders without images, so no classes: 2 (first: train/empty)",
        "images outside every class folder, left out: 1 (first: val/x.jpg)",
        "example: train/1/a.jpg -> train, 1",
        "example: train/2/c.jpg -> train, 2",
        "example: val/1/d.jpg -> valid, 1",
    ]


# Display names.


def test_names_beside_or_above_and_from_a_file(tmp_path: Path) -> None:
    root = tree(tmp_path / "flowers", "1/a.jpg", "10/b.jpg", "2/c.jpg")
    assert detect(root).display_names == detect(root).classes == ("1", "10", "2")
    (tmp_path / "cat_to_name.json").write_text('{"1": "rose", "2": "tulip"}')
    assert detect(root).display_names == ("rose", "10", "tulip")
    (root / "cat_to_name.json").write_text('{"x": "belongs to another set"}')
    assert detect(root).display_names == ("rose", "10", "tulip")
    for text in ("A\nB\nC\n", '["A", "B", "C"]', '{"1": "A", "10": "B", "2": "C"}'):
        (tmp_path / "names").write_text(text)
        assert detect(root, class_names=tmp_path / "names").display_names == ("A", "B", "C")
    # More lines than classes: by number, as in a list that names all classes of a set with some missing.
    (tmp_path / "names").write_text("\n".join(f"n{i}" for i in range(11)))
    assert detect(root, class_names=tmp_path / "names").display_names == ("n1", "n10", "n2")


@pytest.mark.parametrize(
    ("text", "said"), [("A\nB\n", "has 2 names"), ('{"1": "A"}', "names 1 of 3"), ("{", "cannot be read")]
)
def test_names_that_do_not_fit(tmp_path: Path, text: str, said: str) -> None:
    root = tree(tmp_path / "x", "1/a.jpg", "10/b.jpg", "2/c.jpg")
    (tmp_path / "names").write_text(text)
    with pytest.raises(ConfigError, match=said):
        detect(root, class_names=tmp_path / "names")
    (tmp_path / "cat_to_name.json").write_text("[1]")
    with pytest.raises(SourceError, match="cat_to_name"):
        detect(root)


# Trees that nobody has checked.


def test_links_in_circles_end_and_count_once(tmp_path: Path) -> None:
    tree(tmp_path, *(f"ants/{i}/x.jpg" for i in range(9)), "bees/1.jpg")
    for i in range(9):  # followed along every path, these would be 9! folders
        for j in range(9):
            (tmp_path / "ants" / str(i) / f"to{j}").symlink_to(tmp_path / "ants" / str(j))
    (tmp_path / "ants" / "up").symlink_to(tmp_path)  # would give bees the label of ants
    (tmp_path / "ants" / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    source = detect(tmp_path)
    assert labels(source) == {**{f"ants/{i}/x.jpg": "ants" for i in range(9)}, "bees/1.jpg": "bees",
                              "ants/self.jpg": "ants"}  # fmt: skip
    with pytest.raises(DecodeError, match=r"ants/self\.jpg: cannot be read"):
        source.read(next(r for r in source.records if r.path == "ants/self.jpg"))


def test_a_linked_folder_of_images_is_followed(tmp_path: Path) -> None:
    tree(tmp_path, "elsewhere/x.jpg", "set/ants/1.jpg")
    (tmp_path / "set" / "bees").symlink_to(tmp_path / "elsewhere")
    assert labels(detect(tmp_path / "set")) == {"ants/1.jpg": "ants", "bees/x.jpg": "bees"}


def test_pipes_are_no_images(tmp_path: Path) -> None:
    tree(tmp_path, "ants/1.jpg")
    os.mkfifo(tmp_path / "ants" / "2.jpg")
    (tmp_path / "ants" / "3.jpg").symlink_to("2.jpg")
    source = detect(tmp_path)
    assert (len(source.records), source.num_ignored) == (1, 2)


def test_case_tells_folders_apart(tmp_path: Path) -> None:
    tree(tmp_path, "TRAIN/Ant/1.JPG", "Train/ant/1.jpg", "VAL/ant/1.Png")
    source = detect(tmp_path)
    assert (source.classes, source.counts()) == (("Ant", "ant"), {"train": 2, "valid": 1})


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "ants/deep/1.jpg", "bees/1.jpg")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with (
        mock.patch("os.scandir", refuse),
        pytest.raises(SourceError, match=r"deep: cannot be listed \(Permission denied\)"),
    ):
        detect(tmp_path)


def test_a_wrapping_folder_is_told(tmp_path: Path) -> None:
    tree(tmp_path, "flower_data/train/1/a.jpg", "flower_data/val/1/b.jpg")
    with pytest.raises(SourceError, match=r"flower_data holds split folders.*convert .*flower_data itself"):
        detect(tmp_path)


def test_listing_needs_no_stat_per_file(tmp_path: Path) -> None:
    tree(tmp_path, *(f"train/{c}/{i}.jpg" for c in range(3) for i in range(50)))
    with mock.patch("os.stat", side_effect=os.stat) as stat, mock.patch("os.lstat", side_effect=os.lstat) as lstat:
        assert len(detect(tmp_path).records) == 150
    assert stat.call_count + lstat.call_count < 60


def test_the_digest_covers_what_decides_the_listing() -> None:
    def digest(**changes: object) -> str:
        plain = {"layout": "list", "classes": ("a", "b"), "records": (Record(path="x", label=0, split="train"),)}
        return Source(root=Path(), **{**plain, **changes}).digest()  # type: ignore[arg-type]

    digests = [
        digest(),
        digest(layout="sidecars"),
        digest(classes=("b", "a")),
        digest(classes=("a\0b",)),
        digest(num_channels=1),
        digest(records=(Record(path="x", label=-1, split="train"),)),
        digest(records=(Record(path="x", label=0, split="test"),)),
        digest(classes=("\ud800", "\udcff")),  # what JSON and file names may hold
    ]
    assert len(set(digests)) == len(digests)
    assert digest(name="x", display_names=("A", "B"), notes=("n",)) == digest()


# File names and sidecars.


def test_food11(tmp_path: Path) -> None:
    tree(tmp_path, "training/3_102.jpg", "training/10_1.jpg", "validation/3_5_b.jpg", "testing/0007.jpg",
         "testing/_8.jpg", "training/3_1.txt")  # fmt: skip
    source = detect(tmp_path)
    assert source.classes == ("3", "10")
    assert labels(source) == {
        "training/10_1.jpg": "10", "training/3_102.jpg": "3", "validation/3_5_b.jpg": "3", "testing/0007.jpg": None,
        "testing/_8.jpg": None,
    }  # fmt: skip
    assert source.num_ignored == 1
    assert "unlabelled: 2, kept for prediction" in describe(source)


def test_images_without_a_label_file_are_counted_and_named(tmp_path: Path) -> None:
    write_files(tmp_path, {f"ants_image/{i}.jpg": b"" for i in range(5)}, 0)
    write_files(tmp_path, {f"ants_label/{i}.txt": b"ants" for i in (0, 3, 9)}, 0)
    with pytest.raises(SourceError, match=r"3 of 5 images have no label file \(first: ants_label/1\.txt\)"):
        detect(tmp_path)
    for i in (1, 2, 4):
        (tmp_path / "ants_label" / f"{i}.txt").write_text("bees\n")
    source = detect(tmp_path)
    assert [source.classes[r.label] for r in source.records] == ["ants", "bees", "bees", "ants", "bees"]
    assert source.notes == ("label files without an image: 1",)


@pytest.mark.parametrize(("text", "said"), [("", "is empty"), ("a\nb", "holds 2 lines"), ("x" * 5000, "one label")])
def test_a_sidecar_that_is_no_label(tmp_path: Path, text: str, said: str) -> None:
    write_files(tmp_path, {"a_image/1.jpg": b"", "a_label/1.txt": text.encode()}, 0)
    with pytest.raises(SourceError, match=said):
        detect(tmp_path)


# Lists.


def a_list(root: Path, text: str, name: str = "list.csv", images: tuple[str, ...] = ("a.jpg", "b b.jpg")) -> Path:
    tree(root, *images)
    (root / name).write_text(text)
    return root / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "a.jpg,3\nb b.jpg,20\n"),
        ("l.csv", "file_name,label\r\na.jpg,3\r\nb b.jpg,20\r\n"),
        ("l.csv", "\ufefffile_name;label\n\na.jpg; 3\nb b.jpg;20"),
        ("l.csv", 'label,other,file\n3,,"a.jpg"\n20,x,./b b.jpg\n'),
        ("l.tsv", "a.jpg\t3\nb b.jpg\t20\n"),
        ("l.txt", "a.jpg 3\nb b.jpg 20\n"),
        ("l.txt", "b b.jpg, 20\na.jpg, 3\n"),
        ("l.txt", "picture kind\na.jpg 3\nb b.jpg 20\n"),
    ],
)
def test_lists_as_people_write_them(tmp_path: Path, name: str, text: str) -> None:
    source = detect(a_list(tmp_path, text, name))
    assert (source.layout, source.classes, labels(source)) == ("list", ("3", "20"), {"a.jpg": "3", "b b.jpg": "20"})


def test_columns_by_name_and_number(tmp_path: Path) -> None:
    file = a_list(tmp_path, "a,b,c\nx,a.jpg,b b.jpg\ny,b b.jpg,a.jpg\n")
    assert labels(detect(file, path_column="c", label_column="a")) == {"a.jpg": "y", "b b.jpg": "x"}
    file = a_list(tmp_path, "x,1,a.jpg\ny,2,b b.jpg\n")
    assert labels(detect(file, label_column="1")) == {"a.jpg": "x", "b b.jpg": "y"}
    with pytest.raises(SourceError, match=r"that of the labels \(3 columns and no header\); pass --label-column"):
        detect(file)
    with pytest.raises(ConfigError, match=r"--label-column 7: .* has no such column \(no header, 3 columns"):
        detect(file, label_column="7")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.jpg,1\n../etc/x.jpg,2\n", r"line 2: \.\./etc/x\.jpg lies outside"),
        ("a.jpg,1\nsub/../../x.jpg,2\n", "lies outside"),
        ("a.jpg,1\n/etc/x.jpg,2\n", "/etc/x.jpg lies outside .*--allow-outside"),
        ("a.jpg,1\nn\x1b.jpg,2\nno/m.jpg,1\n", r"2 of 3 files do not exist \(first: n\\x1b\.jpg"),
        ("a.jpg,1\na.jpg,2\n", "another label"),
        ("a.jpg,1,2\na.jpg,1\n", "no column is plainly|cells"),
        ("a.jpg,1\nb b.jpg\n", "line 2: 1 cells where the first row has 2"),
        ("a.jpg,1\n,2\n", "is no path"),
        ('a.jpg,1\n"b b.jpg,2\n', "line 2 cannot be read"),
        ("file,label,split\na.jpg,1,train\nb b.jpg,1,dev\n", "line 3: 'dev' is no split"),
        ("file,label\n", "has no rows"),
        ("", "is empty"),
        ("x,y\n1,2\n3,4\n", "--target COLUMN if it is a table"),
    ],
)
def test_a_list_that_cannot_be_right(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        detect(a_list(tmp_path / "root", text))


def test_a_list_of_what_is_no_file(tmp_path: Path) -> None:
    file = a_list(tmp_path, "a.jpg,1\npipe.jpg,2\nfolder.jpg,1\nnone.jpg,1\n")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(SourceError, match=r"3 of 4 files do not exist \(first: pipe\.jpg"):
        detect(file)


def test_outside_only_when_allowed(tmp_path: Path) -> None:
    tree(tmp_path, "else/x.jpg", "else/y.jpg")
    file = a_list(tmp_path / "root", f"../else/x.jpg,1\n{tmp_path}/else/y.jpg,2\n{tmp_path}/root/a.jpg,3\n")
    source = detect(file, allow_outside=True)
    assert labels(source) == {"../else/x.jpg": "1", f"{tmp_path}/else/y.jpg": "2", "a.jpg": "3"}
    assert all(source.read(r) == b"" for r in source.records)


def test_rows_that_repeat_are_told(tmp_path: Path) -> None:
    source = detect(a_list(tmp_path, "a.jpg,1\n./a.jpg,1\nb b.jpg,\n"))
    assert labels(source) == {"a.jpg": "1", "b b.jpg": None}
    assert source.notes == ("rows that repeat another one, left out: 1",)


def test_rows_keep_names_with_line_ends(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b'"new\nline;\xff.jpg",1\n')
    assert list(read_rows(tmp_path / "l.csv")) == [(2, ["new\nline;\udcff.jpg", "1"])]


# Tars.


def test_a_pattern_of_tars() -> None:
    assert list(expand("{08..11}.tar")) == ["08.tar", "09.tar", "10.tar", "11.tar"]
    assert list(expand("{a,b}-{0..1}.tar")) == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    for pattern in ("{}.tar", "{3..1}.tar", "{0..999999999}.tar", "{0..9999}{0..9999}.tar", "a{.tar"):
        with pytest.raises(ConfigError, match="write a pattern"):
            list(expand(pattern))


def test_tars_with_json_links_and_names_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "00.tar", "w") as tar:
        add(tar, "../../evil.jpg", b"one")
        add(tar, "../../evil.json", json.dumps({"label": 7}).encode())
        add(tar, "./b.c.png", b"two")
        add(tar, "./b.cls", b"10\n")
        add(tar, "./b.json", b'{"label": 3}')
        add(tar, "./._b.c.png", b"what macOS leaves")
        add(tar, "d.jpg", b"first")
        add(tar, "d.jpg", b"last")
        link = tarfile.TarInfo("e.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = detect(tmp_path / "shards/{00..00}.tar")
    assert labels(source) == {"00.tar/../../evil.jpg": "7", "00.tar/b.c.png": "10", "00.tar/d.jpg": None}
    assert [source.read(r) for r in source.records] == [b"one", b"two", b"last"]
    assert (source.num_ignored, source.root) == (2, tmp_path / "shards")
    assert list(tmp_path.iterdir()) == [tmp_path / "shards"]
    with (tmp_path / "shards" / "00.tar").open("r+b") as opened:
        opened.truncate(1500)
    with pytest.raises(DecodeError, match="was cut since"):
        source.read(source.records[-1])


def test_tars_that_are_none_or_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"2 of 2 tars do not exist \(first: 0\.tar\)"):
        detect(tmp_path / "{0..1}.tar")
    for data in (b"", b"no tar" * 1000):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(SourceError, match="no whole, uncompressed tar"):
            detect(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "ants/1.jpg", b"1")
    with pytest.raises(SourceError, match="unpack it if it is an archive of class folders"):
        detect(tmp_path / "x.tar")
    assert labels(detect(tmp_path / "x.tar", layout="webdataset")) == {"x.tar/ants/1.jpg": None}
