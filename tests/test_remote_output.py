"""Datasets written to URLs."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from fastload import conversion, convert, files, open_dataset
from fastload.conversion import merge
from fastload.conversion_ffcv import convert_to_ffcv
from fastload.errors import ConfigError, DatasetError, DecodeError
from fastload.files import write_whole
from fastload.formats.manifest import read_manifest
from fastload.formats.resident import find_damage, read_shard_metadata
from fastload.places import as_place, files_in
from tests.conftest import write_image
from tests.remote_help import forget, to_memory
from tests.test_cli import fastload
from tests.test_conversion import contents

URL = "memory://bucket/set.fastload"


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    forget()
    with mock.patch.object(conversion, "SHARD_BYTES", 4 * 20 * 20 * 3):
        yield
    forget()


def remote(url: str = URL) -> dict[str, bytes]:
    return {name: (as_place(url) / name).read_bytes() for name in files_in(as_place(url), "")}


def test_a_url_gets_the_bytes_that_a_folder_gets(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 1000)  # of which a shard has several
    expected = contents(convert(folder, tmp_path / "expected", size=20))
    assert str(convert(to_memory(folder, "insects"), URL, size=20)) == URL
    assert remote() == expected
    with pytest.raises(DatasetError, match=rf"{URL} exists"):
        convert(folder, URL, size=20)
    with pytest.raises(DatasetError, match="copy the folder to a local disk"):
        open_dataset(URL)
    assert not list(find_damage(as_place(URL), read_manifest(as_place(URL))))
    assert "all as written" in fastload("verify", URL).stdout
    for command in ("info", "show"):
        assert "copy the folder to a local disk" in fastload(command, URL).stderr
    shard = as_place(URL) / "valid-00000.safetensors"
    write_whole(shard, [shard.read_bytes()[:-1], b"x"])
    assert fastload("verify", URL).returncode == 1


def test_by_the_command(folder: Path) -> None:
    done = fastload("convert", folder, URL, "--size", 20, "--split", "test=0.3")
    assert done.returncode == 0, done.stderr
    assert f"wrote {URL}: 9 train, 7 valid, 4 test" in done.stdout
    done = fastload("convert", "memory://nothing", URL)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    done = fastload("convert", folder, "nonsense://x")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_what_stands_there_is_kept_and_the_rest_is_written(folder: Path, tmp_path: Path) -> None:
    bad = folder / "valid" / "bee" / "001.jpg"
    whole = bad.read_bytes()
    bad.write_bytes(b"x")
    with pytest.raises(DecodeError, match=r"valid/bee/001\.jpg"):
        convert(folder, URL, size=20)
    assert "manifest.json" not in remote()
    bad.write_bytes(whole)
    filesystem = fsspec.filesystem("memory")
    kept = {name: filesystem.modified(f"/bucket/set.fastload/{name}") for name in remote()}
    assert kept
    cut = as_place(URL) / "train-00001.safetensors"
    write_whole(cut, [cut.read_bytes()[:-1]])  # as no store would leave it, but a person might
    assert read_shard_metadata(cut) is None
    with pytest.raises(DatasetError, match="other options"):
        convert(folder, URL, size=19)
    convert(folder, URL, size=20)
    del kept["train-00001.safetensors"]
    assert {name: filesystem.modified(f"/bucket/set.fastload/{name}") for name in kept} == kept
    assert remote() == contents(convert(folder, tmp_path / "expected", size=20))


def test_a_shard_that_is_cut_off_on_its_way_is_not_seen(folder: Path) -> None:
    write = MemoryFile.write

    def fail(file: MemoryFile, data: bytes) -> int:
        if file.tell() > 3000:
            raise TimeoutError("the line is dead")
        return write(file, data)

    with (
        mock.patch("fastload.files._BLOCK_BYTES", 1000),
        mock.patch.object(MemoryFile, "write", fail),
        pytest.raises(DatasetError, match=r"the line is dead.*same command"),
    ):
        convert(folder, URL, size=20)
    assert remote() == {}


def test_a_file_that_arrived_cut(tmp_path: Path) -> None:
    with (
        mock.patch.object(MemoryFile, "write", lambda file, data: len(data)),
        pytest.raises(OSError, match="3 bytes were sent, and 0 arrived"),
    ):
        write_whole(as_place("memory://bucket/a"), [b"abc"])


def test_tasks_and_merge(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        merge(URL)
    for index in (3, 1):
        convert(folder, URL, size=20, task=f"{index}/3")
    with pytest.raises(DatasetError, match="2 of 6 shards are missing"):
        merge(URL)
    done = fastload("convert", folder, URL, "--size", 20, "--task", "2/3")
    assert f"task 2/3 is done: {URL}" in done.stdout
    assert "13 train, 7 valid" in fastload("merge", URL).stdout
    assert remote() == contents(convert(folder, tmp_path / "expected", size=20))


def test_a_table_at_a_url(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "t.csv").write_text("a,b\n1,2.5\n2,3.5\n4,1\n")
    url = to_memory(tmp_path / "t", "t")
    convert(f"{url}/t.csv", URL, target="b")
    assert remote() == contents(convert(tmp_path / "t" / "t.csv", tmp_path / "out", target="b"))


def test_a_place_that_cannot_be_made_is_told_before_any_work(folder: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    with (
        mock.patch.object(type(filesystem), "mkdir", side_effect=FileNotFoundError("bucket")),
        mock.patch.object(conversion, "convert_shards") as work,
        pytest.raises(DatasetError, match=rf"{URL} cannot be made \(No such file"),
    ):
        convert(folder, URL, size=20)
    work.assert_not_called()


def test_what_cannot_be_at_a_url(folder: Path) -> None:
    with pytest.raises(ConfigError, match="ffcv writes local files"):
        convert_to_ffcv(folder, "memory://x/out")
    with pytest.raises(ConfigError, match="name the dataset to write"):
        convert(to_memory(folder, "insects"))


def test_other_files_at_the_url_stay(folder: Path) -> None:
    write_whole(as_place("memory://bucket/set.fastload/notes.txt"), [b"mine"])
    write_image(folder / "train" / "bee" / "more.jpg", 5)
    convert(folder, URL, size=20)
    assert remote()["notes.txt"] == b"mine"
