import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastload import Loader, convert, open_dataset
from fastload.errors import DatasetError
from fastload.formats.manifest import read_manifest
from fastload.formats.resident import find_damage


@pytest.fixture
def copied(dataset: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy.fastload"
    copy.mkdir()
    for file in dataset.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def edit(dataset: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((dataset / "manifest.json").read_text())
    change(content)
    (dataset / "manifest.json").write_text(json.dumps(content))


def test_samples_across_shards(dataset: Path) -> None:
    opened = open_dataset(dataset)
    assert (len(opened), len(opened.shards)) == (13, 4)
    together = torch.cat(opened.shards)
    for i in range(-13, 13):
        image, label = opened[i]
        assert torch.equal(image, together[i])
        assert label == opened.labels[i]
    with pytest.raises(IndexError):
        opened[13]


def test_opening_reads_no_pixels(tmp_path: Path) -> None:
    # 600 MB in a file with holes: opening and reading one row must not bring it into memory.
    rows, file = 200_000, tmp_path / "train-00000.safetensors"
    header = json.dumps(
        {
            "image": {"dtype": "U8", "shape": [rows, 32, 32, 3], "data_offsets": [0, rows * 3072]},
            "label": {"dtype": "I64", "shape": [rows], "data_offsets": [rows * 3072, rows * 3080]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        opened.truncate(8 + len(header) + rows * 3080)
    shard = {"file": file.name, "rows": rows, "bytes": file.stat().st_size, "sha256": ""}
    content = {
        "format": "fastload-resident", "version": 1,
        "fields": {"image": {"shape": [32, 32, 3], "dtype": "uint8"}, "label": {"shape": [], "dtype": "int64"}},
        "classes": ["a"], "display_names": ["a"], "splits": {"train": {"count": rows, "shards": [shard]}},
        "mean": [0, 0, 0], "std": [1, 1, 1], "settings": {}, "source": {}, "skipped": [], "fastload": "0",
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    before = resident_bytes()
    dataset = open_dataset(tmp_path)
    assert dataset[rows - 1][0].sum() == 0
    assert resident_bytes() - before < 100 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such dataset"):
        open_dataset(tmp_path / "nothing.fastload")
    with pytest.raises(DatasetError, match="so no dataset"):
        open_dataset(tmp_path)
    (tmp_path / "half.fastload").mkdir()
    with pytest.raises(DatasetError, match=r"has no manifest\.json"):
        open_dataset(tmp_path / "half.fastload")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match="is a file"):
        open_dataset(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(version=2), "version 2"),
        (lambda c: c.update(format="other"), "no fastload manifest"),
        (lambda c: c.pop("classes"), "damaged"),
        (lambda c: c["fields"]["image"].update(shape=[20, 20]), "damaged"),
        (lambda c: c["fields"]["image"].update(shape=[0, 20, 3]), "damaged"),
        (lambda c: c["fields"]["image"].update(shape=[20, 21, 3]), "holds"),
        (lambda c: c["splits"]["train"].update(count=12), "add up"),
        (lambda c: c["splits"]["train"]["shards"][0].update(file="../other"), "plain file name"),
        (lambda c: c["splits"]["train"]["shards"][0].update(file="/etc/passwd"), "plain file name"),
        (lambda c: c["splits"]["train"]["shards"][0].update(file="lost"), "missing"),
        (lambda c: c["splits"]["train"]["shards"][0].update(file="a\0b"), "plain file name"),
        (lambda c: c["splits"]["train"]["shards"][0].update(file="\udc00\ud800"), "damaged"),
        (lambda c: c["splits"]["train"]["shards"][0].update(bytes="10"), "damaged.*'10' bytes"),
        (lambda c: c["splits"]["train"]["shards"][0].update(rows=4.0), "damaged"),
        (lambda c: c["splits"]["train"].update(count=0, shards=[]), "train has no shards"),
        (lambda c: c.update(display_names=["a"]), "1 display_names of 3 classes"),
        (lambda c: c.update(mean=[]), "mean and std of 0 and 3"),
        (lambda c: c.update(mean=[10**400, 0, 0]), "damaged"),
        (lambda c: c["splits"].update(other=c["splits"].pop("train")), "unknown split"),
        (lambda c: c.update(classes=["a"], display_names=["a"]), "outside its 1 classes"),
        (lambda c: c["splits"].pop("train"), "no split"),
    ],
)
def test_a_manifest_that_does_not_hold_together(copied: Path, change: Callable[[Any], None], said: str) -> None:
    edit(copied, change)
    with pytest.raises(DatasetError, match=said):
        open_dataset(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"fastload-resident"', "\x00\x01", "[" * 100_000])
def test_a_manifest_that_is_none(copied: Path, text: str) -> None:
    (copied / "manifest.json").write_text(text)
    with pytest.raises(DatasetError):
        open_dataset(copied)


def test_a_cut_shard_is_found_on_opening(copied: Path) -> None:
    shard = copied / "train-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"train-00002\.safetensors has"):
        open_dataset(copied)


def test_a_flipped_bit_in_any_shard_is_found_and_named(copied: Path) -> None:
    manifest = read_manifest(copied)
    assert list(find_damage(copied, manifest)) == []
    for shard in (s for shards in manifest.splits.values() for s in shards):
        file = copied / shard.file
        whole = file.read_bytes()
        for position in (0, 9, len(whole) // 2, len(whole) - 1):
            flipped = bytearray(whole)
            flipped[position] ^= 1
            file.write_bytes(flipped)
            assert [shard.file in sentence for sentence in find_damage(copied, manifest)] == [True]
        file.write_bytes(whole)


def test_checksums_are_checked_on_request_when_opening(copied: Path) -> None:
    file = copied / "train-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert len(open_dataset(copied)) == 13
    assert len(open_dataset(copied, "valid", verify=True)) == 7
    with pytest.raises(DatasetError, match=r"train-00001\.safetensors: its bytes"):
        open_dataset(copied, verify=True)


def test_swapped_shards_are_found(copied: Path) -> None:
    a, b = copied / "train-00000.safetensors", copied / "train-00001.safetensors"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    assert len(list(find_damage(copied, read_manifest(copied)))) == 2


def test_batches_are_told_by_their_files(folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b'new\nline, "\xff"\r.jpg')
    (folder / "train" / "bee" / "001.jpg").rename(folder / "train" / "bee" / name)
    (folder / "train" / "wasp" / "000.jpg").write_bytes(b"")
    opened = open_dataset(convert(folder, tmp_path / "out", size=8, on_bad="skip"))
    assert opened.class_to_idx == {"ant": 0, "bee": 1, "wasp": 2}
    files = [str(file.relative_to(folder)) for file in (folder / "train").rglob("*.jpg")]
    assert sorted(opened.paths) == sorted(set(files) - {"train/wasp/000.jpg"})
    assert f"train/bee/{name}" in opened.paths
    loader = Loader(opened, 5, seed=3)
    for _, labels in loader:
        assert [opened.class_to_idx[opened.paths[i].split("/")[1]] for i in loader.batch_ids] == labels.tolist()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(",0,", ",9,", 1),
        lambda text: text.replace("path\n", "file\n"),
        lambda text: text + "train\n",
        lambda text: None,
    ],
)
def test_a_list_of_other_samples_is_refused(copied: Path, change: Callable[[str], str | None]) -> None:
    file = copied / "samples.csv"
    text = change(file.read_text())
    file.unlink() if text is None else file.write_text(text)
    opened = open_dataset(copied)  # which does not need it
    with pytest.raises(DatasetError, match=r"samples\.csv does not list this dataset's samples"):
        _ = opened.paths
