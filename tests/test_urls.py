"""URLs: what they are called, what data may not name, and what a remote refuses."""

from __future__ import annotations

import pickle
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastload import convert
from fastload.errors import ConfigError, DecodeError, FastloadError, SourceError
from fastload.places import as_place, join, read_bytes
from fastload.records import Record, Source
from fastload.sources import detect
from fastload.sources.lists import read_list
from fastload.urls import Url
from tests.remote_help import Elsewhere, forget, to_memory
from tests.sources_help import (
    content_of,
    write_files,
)

pytestmark = pytest.mark.usefixtures("empty_memory")


# Nothing out of data leads out.


@pytest.mark.parametrize("row", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "s3://b/x.jpg", "memory://t/x.jpg",
                                 "memory://t/set/../x.jpg", "memory://t/settle/x.jpg", "file:///etc/x.jpg",
                                 "zip://x.jpg::memory://t/set/x.zip"])  # fmt: skip
def test_rows_that_lead_out_are_refused(tmp_path: Path, row: str) -> None:
    write_files(tmp_path, {"set/a.jpg": b"a", "set/l.csv": f"a.jpg,1\n{row},2\n".encode()}, 0)
    url = to_memory(tmp_path, "t")
    with pytest.raises(SourceError, match=r"line 2: .* lies outside memory://t/set; pass --root"):
        detect(f"{url}/set/l.csv")
    with pytest.raises(SourceError, match=r"line 2: .* lies outside .*set; pass --root"):
        detect(tmp_path / "set/l.csv")


def test_rows_that_begin_with_the_roots_url_lie_inside(tmp_path: Path) -> None:
    rows = b"memory://t/set/a.jpg,1\nb/./b.jpg,2\nmemory://t/set//b/c.jpg,1\n"
    write_files(tmp_path, {"set/a.jpg": b"a", "set/b/b.jpg": b"b", "set/b/c.jpg": b"c", "set/l.csv": rows}, 0)
    source = detect(f"{to_memory(tmp_path, 't')}/set/l.csv")
    assert [r.path for r in source.records] == ["a.jpg", "b/b.jpg", "b/c.jpg"]
    assert [source.read(r) for r in source.records] == [b"a", b"b", b"c"]


def test_outside_only_when_allowed(tmp_path: Path) -> None:
    rows = f"a.jpg,1\n../x.jpg,2\nmemory://t/else/y.jpg,2\n{tmp_path}/z.jpg,1\n".encode()
    files = {"set/a.jpg": b"a", "set/l.csv": rows, "x.jpg": b"x", "else/y.jpg": b"y", "z.jpg": b"z"}
    write_files(tmp_path, files, 0)
    url = to_memory(tmp_path, "t")
    for spec in (f"{url}/set/l.csv", tmp_path / "set/l.csv"):
        assert {c for c, _, _ in content_of(detect(spec, allow_outside=True))} == {b"a", b"x", b"y", b"z"}


parts = st.sampled_from(["..", ".", "", "a", "b.jpg", "memory:", "memory://t/set", "memory://", "::", "zip://", "file://",
                         "/", "//", "~", "%2e%2e", "\\..", "s3://t/set", "file:///t/set"])  # fmt: skip


@given(pieces=st.lists(parts, min_size=1, max_size=7), slashes=st.booleans())
@example(pieces=["memory://t/set", "", "", "etc"], slashes=True)
@settings(max_examples=200, deadline=None)
def test_no_row_leads_out(pieces: list[str], slashes: bool) -> None:
    row = ("/" if slashes else "").join(pieces)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "l.csv")
        file.write_text(f'"{row}",label\n')
        for root in (as_place("memory://t/set"), Path("/t/set")):
            with mock.patch("fastload.sources.lists._existing", lambda file, root, paths: {p: p for p in paths}):
                try:
                    source = read_list(file, root=root, path_column="1", label_column="2")
                except SourceError:
                    continue
            place = join(source.root, source.records[0].path)
            assert isinstance(place, type(root))
            path = place.path if isinstance(place, Url) else str(place)
            assert (path + "/").startswith("/t/set/")
            assert ".." not in path.split("/")


def test_a_listing_that_names_other_places_is_not_followed() -> None:
    lies = [
        {"name": name, "type": kind, "size": 1}
        for name in (
            "t/set/ants",
            "t/other",
            "/etc",
            "t/set/../up",
            "t/set/ants/deep",
            "t/set",
            "http://host/x",
            "t/set/..",
        )
        for kind in ("directory", "file")
    ]
    with mock.patch.object(Elsewhere, "listing", lies):
        place = as_place("elsewhere://t/set")
        assert isinstance(place, Url)
        assert [entry.name for entry in place.entries()] == ["ants", "ants"]


# Addresses.


def test_what_is_a_url_and_what_a_path(tmp_path: Path) -> None:
    assert as_place(str(tmp_path)) == as_place(f"file://{tmp_path}") == as_place(f"LOCAL://{tmp_path}") == tmp_path
    assert as_place("a/b://c") == Path("a/b:/c")
    url = as_place("memory://t/a/")
    assert isinstance(url, Url)
    assert [str(p) for p in (url, url / "b/c.tar", url.parent, url.parent.parent, url / "b/../../d")] == [
        "memory://t/a", "memory://t/a/b/c.tar", "memory://t", "memory://", "memory://t/d",
    ]  # fmt: skip
    assert [(p.name, p.stem, p.suffix) for p in (url / "x.y.csv", url.parent.parent)] == [
        ("x.y.csv", "x.y", ".csv"), ("memory", "memory", ""),
    ]  # fmt: skip
    for name in ("a::b", "a#b", "a?b", "a%20b", "memory:", "*", " "):
        assert (url / name).path == f"/t/a/{name}"
        assert str((url / name).parent) == "memory://t/a"
    bucket = Url(origin="s3://bucket", base="bucket", path="bucket")
    assert (bucket.parent, bucket.name, str(bucket / "x/y")) == (bucket, "bucket", "s3://bucket/x/y")
    assert pickle.loads(pickle.dumps(url)) == url


class LikeUPath:
    def __init__(self, **options: str) -> None:
        self.storage_options = options

    def __str__(self) -> str:
        return "memory://t/a"


def test_the_path_of_another_library_is_taken_as_its_url() -> None:
    assert str(as_place(LikeUPath())) == "memory://t/a"  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"carries options, .*by fsspec's configuration") as e:
        as_place(LikeUPath(key="secret"))  # type: ignore[arg-type]
    assert "secret" not in str(e.value)


# What goes wrong there is one sentence.


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (FileNotFoundError("t/set"), "no such folder or file"),
        (PermissionError("Access Denied.\nmore"), r"cannot be read \(Access Denied\); check the address"),
        (TimeoutError(), r"cannot be read \(Connection timed out\)"),
        (ValueError("no credentials\x1b"), r"cannot be read \(ValueError: no credentials\\x1b\)"),
    ],
)
def test_a_remote_that_refuses(tmp_path: Path, failure: Exception, said: str) -> None:
    write_files(tmp_path, {"ants/1.jpg": b"", "l.csv": b"ants/1.jpg,1\n"}, 0)
    to_memory(tmp_path, "t")
    source = detect("elsewhere://t")
    Elsewhere.failure = failure
    with pytest.raises(SourceError, match=said) as e:
        detect("elsewhere://t")
    assert "\n" not in str(e.value)
    with pytest.raises(DecodeError, match=r"ants/1\.jpg: cannot be read \(\w"):
        source.read(source.records[0])


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    write_files(tmp_path, {"ants/1.jpg": b"", "l.csv": b"ants/1.jpg,1\n"}, 0)
    to_memory(tmp_path, "t")
    for spec in ("elsewhere://t", "elsewhere://t/l.csv"):
        with (
            mock.patch.multiple(Elsewhere, failure=PermissionError("Access Denied"), failing={"ls"}),
            pytest.raises(SourceError, match=r"elsewhere://t\S*: cannot be listed \(Access Denied\); check"),
        ):
            detect(spec)


@pytest.mark.parametrize("spec", ["set", "set/0.tar", "set/0.parquet", "set/l.csv", "{0..1}.tar"])
def test_what_is_not_there(spec: str) -> None:
    with pytest.raises(SourceError, match=r"no such folder or file|do not exist|no whole, uncompressed tar"):
        detect(f"memory://t/{spec}")


def test_what_is_read_and_gone(tmp_path: Path) -> None:
    write_files(tmp_path, {"ants/1.jpg": b""}, 0)
    source = detect(to_memory(tmp_path, "t"))
    forget()
    with pytest.raises(DecodeError, match=r"ants/1\.jpg: cannot be read \(No such file or directory\)"):
        source.read(source.records[0])


def test_what_cannot_be_opened_names_the_command() -> None:
    known = {"nowhere": {"class": "nowherefs.core.FileSystem", "err": "Install nowherefs to go nowhere"}}
    with (
        mock.patch.dict("fsspec.registry.known_implementations", known),
        pytest.raises(
            ConfigError, match=r"nowhere://x needs nowherefs, which is not installed: pip install nowherefs$"
        ),
    ):
        detect("nowhere://x")
    with (
        mock.patch.dict(sys.modules, {"aiohttp": None}),
        mock.patch.dict("fsspec.registry._registry"),
        mock.patch.dict(sys.modules),
    ):
        sys.modules.pop("fsspec.implementations.http", None)
        sys.modules["fsspec.registry"]._registry.pop("https", None)
        with pytest.raises(ConfigError, match=r"needs aiohttp, which is not installed: pip install aiohttp$"):
            detect("https://host/x")
    with pytest.raises(ConfigError, match=r"memory://t is no path; name the dataset to write"):
        convert("memory://t")
    with pytest.raises(ConfigError, match=r"foo://x cannot be opened \(Protocol not known: foo\); check the URL"):
        detect("foo://x")


def test_torchvision_wants_a_folder() -> None:
    with pytest.raises(ConfigError, match="torchvision reads local folders only"):
        detect("torchvision:MNIST", root="memory://t")


def test_errors_are_the_packages_own() -> None:
    record = Record(path="x", label=0, split="train")
    source = Source(root=as_place("memory://t"), layout="list", classes=("a",), records=(record,))
    with pytest.raises(FastloadError):
        source.read(record)


def test_a_local_record_is_read_whole_whatever_its_size_says(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("a b\udcff", b"x" * 70_000)):
        (tmp_path / name).write_bytes(content)
        assert read_bytes(tmp_path, name) == read_bytes(Path("elsewhere"), str(tmp_path / name)) == content
    # Said to have 0 bytes, as pipes and the like are.
    assert read_bytes(Path("/proc/self"), "cmdline") == Path("/proc/self/cmdline").read_bytes() != b""
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path, ".")
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path, "none")
