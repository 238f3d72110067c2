"""URLs: whatever is listed and read there is what a local copy would give."""

from __future__ import annotations

import gzip
import json
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fastload import convert
from fastload.cli import app
from fastload.errors import ConfigError, DecodeError, SourceError
from fastload.places import NUM_WAITING, join
from fastload.records import Source
from fastload.sources import describe, detect, read_table
from tests.conftest import write_image
from tests.remote_help import Elsewhere, forget, to_memory
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
    write_files,
)

few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


pytestmark = pytest.mark.usefixtures("empty_memory")


def same(local: Source, remote: Source) -> None:
    """Check that two listings are one, but for where they lie."""
    for attribute in ("layout", "classes", "records", "num_ignored", "display_names", "num_channels", "name", "notes"):
        assert getattr(local, attribute) == getattr(remote, attribute)
    assert local.digest() == remote.digest()
    assert content_of(local) == content_of(remote)
    copied = pickle.loads(pickle.dumps(remote))
    assert content_of(copied) == content_of(local)
    assert content_of(pickle.loads(pickle.dumps(local))) == content_of(local)
    assert all(line.isprintable() for line in describe(remote))


# The law.

Write = Callable[[list[Sample], Path, bool, int], str]


def check(write: Write, truth: list[Sample], splits: bool, layout: str | None = None) -> None:
    forget()
    with tempfile.TemporaryDirectory() as folder:
        # Beside and among the samples, what is none: it must be left out, and counted, alike.
        spec = write(truth, Path(folder, "set"), splits, 1)
        root = Path(folder, "set")
        classes = {s.label: f"shown {i}" for i, s in enumerate(truth) if s.label is not None}
        extra = {
            ".hidden/a/x.jpg": b"",
            ".x.jpg": b"",
            "notes.md": b"",
            "cat_to_name.json": json.dumps(classes).encode(),
        }
        write_files(root, extra, 0)
        (root / "empty").mkdir(exist_ok=True)
        to_memory(Path(folder), "t")
        local = detect(spec, layout=layout)
        for protocol in ("memory", "elsewhere"):
            remote = detect(spec.replace(folder, f"{protocol}://t"), layout=layout)
            same(local, remote)
        assert content_of(local) == expected(truth)


@given(truth=truths())
@few
def test_class_folders_with_splits(truth: list[Sample]) -> None:
    check(class_folders, truth, True)


@given(truth=truths(splits=False))
@few
def test_class_folders_without_splits(truth: list[Sample]) -> None:
    check(class_folders, truth, False)


@given(truth=truths(unlabelled=True))
@few
def test_file_names(truth: list[Sample]) -> None:
    check(file_names, truth, True)


@given(truth=truths())
@few
def test_sidecars(truth: list[Sample]) -> None:
    check(sidecars, truth, True)


@given(truth=truths(unlabelled=True), suffix=st.sampled_from([".csv", ".tsv", ".txt"]))
@few
def test_lists(truth: list[Sample], suffix: str) -> None:
    check(lambda *a: a_list(*a, suffix=suffix), truth, True)


@given(truth=truths(unlabelled=True))
@few
def test_tars(truth: list[Sample]) -> None:
    check(tars, truth, True)


def write_parquet(truth: list[Sample], root: Path, splits: bool, seed: int) -> str:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    root.mkdir(parents=True)
    for split in {s.split for s in truth}:
        rows = [s for s in truth if s.split == split]
        labels = arrow.array([s.label for s in rows], arrow.string())
        table = arrow.table({"image": [{"bytes": s.content} for s in rows], "label": labels})
        parquet.write_table(table, root / f"{split}-0.parquet", row_group_size=4)
    return str(root)


@given(truth=truths(unlabelled=True).filter(lambda t: all(s.label is None or s.label.isprintable() for s in t)))
@few
def test_parquet(truth: list[Sample]) -> None:
    check(write_parquet, truth, True)


# Where samples are read.


@pytest.mark.processes
@pytest.mark.parametrize("write", [class_folders, tars, write_parquet])
def test_forked_processes_open_the_remote_anew(tmp_path: Path, write: Write) -> None:
    truth = []
    for i in range(11):
        write_image(tmp_path / "x.jpg", i)
        truth.append(Sample("train", f"{i % 3}", f"{i}.jpg", (tmp_path / "x.jpg").read_bytes()))
    if write is tars:  # whose helper makes names of contents
        (tmp_path / "set").mkdir()
        with tarfile.open(tmp_path / "set" / "0.tar", "w") as tar:
            for s in truth:
                add(tar, s.name, s.content)
                add(tar, f"{Path(s.name).stem}.cls", str(s.label).encode())
    else:
        write(truth, tmp_path / "set", False, 0)
    to_memory(tmp_path, "t")
    source = detect("elsewhere://t/set")
    first = source.read(source.records[0])  # a loop and its thread are in use when processes are forked
    for name, listed in (("local", detect(tmp_path / "set")), ("remote", source)):
        convert(listed, tmp_path / name, size=20, workers=2)
    files = [file.name for file in (tmp_path / "local").glob("*.safetensors")]
    assert files
    for name in files:
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "remote" / name).read_bytes()
    assert source.read(source.records[0]) == first


def test_threads_read_at_once(folder: Path) -> None:
    to_memory(folder, "t")
    source = detect("elsewhere://t")
    with ThreadPoolExecutor(8) as threads:
        contents = list(threads.map(source.read, source.records * 5))
    assert contents == [(folder / r.path).read_bytes() for r in source.records] * 5


def test_listing_needs_no_request_per_file(tmp_path: Path) -> None:
    paths = [f"train/{c}/{i}.jpg" for c in range(2 * NUM_WAITING) for i in range(40)]
    write_files(tmp_path, dict.fromkeys(paths, b""), 0)
    to_memory(tmp_path, "t")
    assert len(detect("elsewhere://t").records) == len(paths)
    assert Elsewhere.requests["ls"] == 2 + 2 * NUM_WAITING  # each folder once
    assert sum(Elsewhere.requests.values()) - Elsewhere.requests["ls"] < 12


def test_what_was_added_since_is_seen(tmp_path: Path) -> None:
    write_files(tmp_path, {"ants/1.jpg": b"", "bees/1.jpg": b""}, 0)
    to_memory(tmp_path, "t")
    assert len(detect("elsewhere://t").records) == 2
    assert not fsspec.filesystem("elsewhere").dircache  # nor does it stay in memory
    fsspec.filesystem("memory").pipe_file("/t/bees/2.jpg", b"")
    assert len(detect("elsewhere://t").records) == 3


# What is beside the samples.


def test_names_and_roots_at_urls(tmp_path: Path) -> None:
    write_files(tmp_path, {"set/1/a.jpg": b"a", "set/2/b.jpg": b"b", "l.csv": b"1/a.jpg,1\n2/b.jpg,2\n"}, 0)
    (tmp_path / "cat_to_name.json").write_text('{"1": "rose", "2": "tulip"}')
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfA\r\nB\r\n")
    url = to_memory(tmp_path, "t")
    assert detect(f"{url}/set").display_names == ("rose", "tulip")
    assert detect(f"{url}/set/", class_names=f"{url}/names.txt").display_names == ("A", "B")
    assert detect(tmp_path / "set", class_names=f"{url}/names.txt").display_names == ("A", "B")
    for source in (
        detect(f"{url}/l.csv", root=f"{url}/set"),
        detect(tmp_path / "l.csv", root=f"{url}/set"),
        detect(f"{url}/l.csv", root=tmp_path / "set"),
        detect(f"file://{tmp_path}/l.csv", root=f"file://{tmp_path}/set"),
    ):
        assert content_of(source) == {(b"a", "train", "1"), (b"b", "train", "2")}
    said = CliRunner().invoke(app, ["convert", f"{url}/l.csv", "out", "--dry-run", "--root", f"{url}/set",
                                    "--class-names", f"{url}/names.txt"])  # fmt: skip
    assert f"layout: list, in {url}/set" in said.output
    assert "classes: 2: 1 (A), 2 (B)" in said.output


def test_a_pattern_of_tars(tmp_path: Path) -> None:
    for number in range(12):
        with tarfile.open(tmp_path / f"{number:03d}.tar", "w") as tar:
            add(tar, "x.jpg", b"%d" % number)
            add(tar, "x.cls", b"%d" % (number % 2))
            add(tar, "nothing.jpg", b"")
    url = to_memory(tmp_path, "t")
    local, remote = detect(f"{tmp_path}/{{000..010}}.tar"), detect(f"{url}/{{000..010}}.tar")
    assert (local.records, local.classes, local.digest()) == (remote.records, remote.classes, remote.digest())
    assert [remote.read(r) for r in remote.records] == [local.read(r) for r in local.records]
    with pytest.raises(SourceError, match=r"2 of 3 tars do not exist \(first: 012\.tar\)"):
        detect(f"{url}/{{011..013}}.tar")
    with pytest.raises(ConfigError, match="a pattern comes after the bucket"):
        detect("memory://{a,b}/0.tar")
    fsspec.filesystem("memory").pipe_file("/t/001.tar", (tmp_path / "001.tar").read_bytes()[:512])
    with pytest.raises(DecodeError, match="was cut since"):
        [remote.read(r) for r in remote.records]


def test_tables(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbfa;b;y\r\n1;x;0\r\n3;z;1\r\n"
    write_files(tmp_path, {"t.csv": text, "t.csv.gz": gzip.compress(text)}, 0)
    url = to_memory(tmp_path, "t")
    for name in ("t.csv", "t.csv.gz"):
        assert read_table(f"{url}/{name}", target="y").digest() == read_table(tmp_path / name, target="y").digest()
    with pytest.raises(SourceError, match=r"memory://t/u\.csv: no such file; check the path"):
        read_table(f"{url}/u.csv")


def test_a_chain_of_filesystems(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in ("set/ants/1.jpg", "set/bees/a::b.jpg"):
            archive.writestr(path, path)
    url = to_memory(tmp_path, "t")
    source = detect(f"zip://set::{url}/set.zip")
    assert (source.name, source.classes) == ("set", ("ants", "bees"))
    assert [source.read(r) for r in source.records] == [b"set/ants/1.jpg", b"set/bees/a::b.jpg"]
    assert str(join(source.root, "ants/1.jpg")) == f"zip://set/ants/1.jpg::{url}/set.zip"
    with pytest.raises(SourceError, match="no such folder or file"):
        detect(f"zip://nothing::{url}/set.zip", layout="class-folders")


@pytest.mark.parametrize("root", ["memory://", "zip://::memory://set.zip"])
def test_the_top_of_a_filesystem(tmp_path: Path, root: str) -> None:
    files = {"ants/1.jpg": b"1", "bees/x/2.jpg": b"2"}
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    memory = fsspec.filesystem("memory")
    for path, content in files.items() if root == "memory://" else [("set.zip", (tmp_path / "set.zip").read_bytes())]:
        memory.pipe_file(f"/{path}", content)
    assert content_of(detect(root)) == {(b"1", "train", "ants"), (b"2", "train", "bees")}


def test_a_server_that_gives_whole_files_only(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "1.jpg", b"1")
        add(tar, "1.cls", b"ants")
    source = detect(f"{to_memory(tmp_path, 't')}/x.tar")
    with (
        mock.patch.object(MemoryFileSystem, "cat_file", return_value=(tmp_path / "x.tar").read_bytes()),
        pytest.raises(DecodeError, match=r"x\.tar/1\.jpg: cannot be read \(the server gives whole files only"),
    ):
        source.read(source.records[0])
