"""Sources that a library knows: torchvision, Hugging Face datasets, parquet."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import resource
import socket
import struct
import sys
import tarfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from fastload import convert, open_dataset
from fastload.errors import ConfigError, DatasetError, DecodeError, SourceError
from fastload.records import Record, Source
from fastload.sources import cut_splits, describe, detect, parquet
from fastload.sources.libraries import LibraryReader
from fastload.sources.parquet import ParquetReader
from tests.conftest import write_image
from tests.sources_help import add


def labels(source: Source) -> dict[str, str | None]:
    return {r.path: source.classes[r.label] if r.label >= 0 else None for r in source.records}


def encoded(grey: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 3), (grey, grey, grey)).save(out, "PNG")
    return out.getvalue()


# torchvision


def write_mnist(root: Path, name: str, counts: dict[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    images = {}
    for prefix, count in counts.items():
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[prefix] = pixels
        head = struct.pack(">4I", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        digits = bytes(i % 10 for i in range(count))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + digits)
    return images


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_grey_sets_have_one_channel(tmp_path: Path, name: str) -> None:
    images = write_mnist(tmp_path, name, {"train": 23, "t10k": 11})
    source = detect(f"torchvision:{name}", root=tmp_path)
    assert (source.num_channels, source.counts(), source.name) == (1, {"train": 23, "test": 11}, name)
    assert len(source.classes) == 10
    assert [r.label for r in source.records] == [i % 10 for n in (23, 11) for i in range(n)]
    for record, pixels in zip(source.records, [*images["train"], *images["t10k"]], strict=True):
        np.testing.assert_array_equal(source.read(record), pixels[..., None])
    assert "samples: 23 train, 11 test, 1 channel (grey)" in describe(source)
    cut = cut_splits(source, {"valid": 0.5}, 0)
    moved = next(r for r in cut.records if r.split == "valid")
    np.testing.assert_array_equal(cut.read(moved), images["train"][int(moved.path[-8:])][..., None])
    copied = ForkingPickler.loads(ForkingPickler.dumps(source))
    np.testing.assert_array_equal(copied.read(moved), cut.read(moved))


def test_files_of_a_class_come_as_they_are(tmp_path: Path) -> None:
    write_image(tmp_path / "bee" / "1.jpg", 1)
    write_image(tmp_path / "ant" / "2.jpg", 2)
    with mock.patch("PIL.Image.open", side_effect=AssertionError("no image is decoded")):
        source = detect("torchvision:ImageFolder", root=tmp_path)
        assert [source.read(r) for r in source.records] == [
            (tmp_path / "ant" / "2.jpg").read_bytes(),
            (tmp_path / "bee" / "1.jpg").read_bytes(),
        ]
    assert (source.classes, source.num_channels) == (("ant", "bee"), 3)
    (tmp_path / "ant" / "2.jpg").unlink()
    with pytest.raises(DecodeError, match="ImageFolder/train/00000000: cannot be read"):
        source.read(source.records[0])


def test_splits_by_word(tmp_path: Path) -> None:
    meta = tmp_path / "food-101" / "meta"
    meta.mkdir(parents=True)
    for split, names in (
        ("train", {"pie": ["pie/1", "pie/2"], "rice": ["rice/1"]}),
        ("test", {"pie": [], "rice": ["rice/7"]}),
    ):
        (meta / f"{split}.json").write_text(json.dumps(names))
        for name in (n for group in names.values() for n in group):
            write_image(tmp_path / "food-101" / "images" / f"{name}.jpg", 1)
    source = detect("torchvision:Food101", root=tmp_path)
    assert source.counts() == {"train": 3, "test": 1}
    assert [source.classes[r.label] for r in source.records] == ["pie", "pie", "rice", "rice"]
    (meta / "test.json").write_text(json.dumps({"rice": ["rice/7"]}))  # this class would call it 0, which is pie
    with pytest.raises(SourceError, match="its splits have different classes"):
        detect("torchvision:Food101", root=tmp_path)


def test_flowers102_has_three_splits(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    from torchvision.datasets import Flowers102

    base = tmp_path / "flowers-102"
    for i in range(1, 8):
        write_image(base / "jpg" / f"image_{i:05d}.jpg", i)
    scipy_io.savemat(base / "imagelabels.mat", {"labels": np.array([[1, 102, 3, 3, 1, 2, 2]])})
    scipy_io.savemat(base / "setid.mat", {"trnid": [[1, 2, 3]], "valid": [[4, 5]], "tstid": [[6, 7]]})
    with mock.patch.object(Flowers102, "_check_integrity", return_value=True):
        source = detect("torchvision:Flowers102", root=tmp_path)
    assert source.counts() == {"train": 3, "valid": 2, "test": 2}
    assert [r.label for r in source.records] == [0, 101, 2, 2, 0, 1, 1]
    assert (source.classes[0], len(source.classes)) == ("pink primrose", 102)
    assert source.read(source.records[4]) == (base / "jpg" / "image_00005.jpg").read_bytes()


def test_a_set_that_makes_its_images() -> None:
    with mock.patch("torchvision.datasets.FakeData.__init__.__defaults__", (7, (3, 9, 8), 3, None, None, 0)):
        source = detect("torchvision:FakeData")
        pixels = source.read(source.records[0])
    assert (source.counts(), source.num_channels) == ({"train": 7}, 3)
    assert isinstance(pixels, np.ndarray)
    assert (pixels.shape, pixels.dtype) == ((9, 8, 3), np.uint8)


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST", "Flowers102", "SVHN", "STL10"])
def test_what_is_not_there_is_not_fetched(tmp_path: Path, name: str) -> None:
    with (
        mock.patch.object(socket.socket, "connect", side_effect=AssertionError("no network")),
        pytest.raises(SourceError, match=rf"torchvision:{name} cannot be opened .*check --root, or pass --download"),
    ):
        detect(f"torchvision:{name}", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CIFAR11", "torchvision has no such dataset"),
        ("utils", "torchvision has no such dataset"),
        ("EMNIST", "needs more than a root"),
        ("CocoDetection", "needs more than a root"),
        ("ImageFolder", "cannot be downloaded by torchvision"),
    ],
)
def test_classes_that_will_not_do(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        detect(f"torchvision:{name}", root=tmp_path, download=name == "ImageFolder")
    with pytest.raises(ConfigError, match="needs --root FOLDER"):
        detect("torchvision:MNIST")


# Parquet


def write_parquet(file: Path, rows: list[tuple[int, Any]], *, column: str = "label", names: list[str] | None = None,
                  struct_of: bool = True) -> None:  # fmt: skip
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    images = [encoded(g) for g, _ in rows]
    data = {
        "image": [{"bytes": b, "path": None} for b in images] if struct_of else images,
        column: [v for _, v in rows],
    }
    table = pa.table(data)
    if names is not None:
        features = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=4)


@pytest.mark.parametrize("struct_of", [True, False])
def test_parquet(tmp_path: Path, struct_of: bool) -> None:
    names = ["cat", "dog", "emu"]
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [(i, i % 2) for i in range(11)], names=names,
                  struct_of=struct_of)  # fmt: skip
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [(50, 2)], names=names, struct_of=struct_of)
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [(99, -1), (98, 0)], names=names,
                  struct_of=struct_of)  # fmt: skip
    source = detect(tmp_path)
    assert (source.layout, source.counts(), source.classes) == ("parquet", {"train": 12, "valid": 2}, tuple(names))
    assert [r.label for r in source.records] == [0, 1] * 5 + [0, 2, -1, 0]
    # In any order: a row group is not read again for each row.
    greys = [*range(11), 50, 99, 98]
    for i in np.random.default_rng(0).permutation(14):
        assert source.read(source.records[i]) == encoded(greys[i])
    copied = ForkingPickler.loads(ForkingPickler.dumps(source))
    assert copied.read(source.records[11]) == encoded(50)


def test_parquet_with_texts_and_another_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [(1, "b"), (2, "a"), (3, None)], column="kind")
    source = detect(tmp_path / "x.parquet")
    assert labels(source) == {f"x.parquet/{i:08d}": kind for i, kind in enumerate(["b", "a", None])}
    assert detect(tmp_path / "x.parquet", label_column="kind").digest() == source.digest()
    with pytest.raises(ConfigError, match=r"--label-column nope: .* has no such column"):
        detect(tmp_path / "x.parquet", label_column="nope")


def test_parquet_that_cannot_be_right(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "x.parquet", [(1, 5)], names=["only"])
    with pytest.raises(SourceError, match=r"x\.parquet/00000000 has label 5, and there are 1 classes"):
        detect(tmp_path / "a")
    write_parquet(tmp_path / "a" / "x.parquet", [(1, 0)], names=["only"])
    write_parquet(tmp_path / "a" / "y.parquet", [(1, 0)], names=["other"])
    with pytest.raises(SourceError, match="other columns or classes than"):
        detect(tmp_path / "a")
    (tmp_path / "z.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(SourceError, match="no whole parquet file"):
        detect(tmp_path / "z.parquet")
    source = detect(tmp_path / "a" / "x.parquet")
    (tmp_path / "a" / "x.parquet").write_bytes(b"changed since")
    with pytest.raises(SourceError, match="no whole parquet file"):
        source.read(source.records[0])


def test_parquet_is_unpacked_once_and_a_full_disk_loses_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "a" / "x.parquet", [(i, i % 2) for i in range(40)])
    unpacked = tmp_path / "unpacked"
    real = ParquetReader._copy

    def copy(self: ParquetReader, file: Any, descriptor: int) -> Any:
        with unpacked.open("a") as opened:  # which forked processes write to as well
            print(file.name, file=opened)
        return real(self, file, descriptor)

    monkeypatch.setattr(ParquetReader, "_copy", copy)
    out = convert(tmp_path / "a", tmp_path / "out", size=4, workers=3, on_bad="skip")
    assert len(open_dataset(out)) == 40
    assert unpacked.read_text() == "x.parquet\n"
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    for full in ("fastload.sources.parquet.write_at", "tempfile.mkstemp"):
        with (
            mock.patch(full, side_effect=OSError(errno.ENOSPC, "No space left on device")),
            pytest.raises(DatasetError, match=r"x\.parquet cannot be unpacked to .*No space left.*set TMPDIR"),
        ):
            convert(detect(tmp_path / "a"), tmp_path / "full", size=4, on_bad="skip")
    gc.collect()  # what the errors held
    assert len(list(Path("/proc/self/fd").iterdir())) <= num_open
    assert not (tmp_path / "full").exists()


def test_many_parquet_files_need_few_descriptors(tmp_path: Path) -> None:
    for number in range(40):
        write_parquet(tmp_path / "a" / f"{number:02d}.parquet", [(number, 0), (number + 100, 1)])
    source = detect(tmp_path / "a")
    highest = max(int(f.name) for f in Path("/proc/self/fd").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, limits[1]))
        source.prepare(source.records)
        assert source.read(source.records[-1]) == encoded(139)
        assert source.read(source.records[0]) == encoded(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        with pytest.raises(DatasetError, match="too many open files"):  # of the machine, not of the file
            ParquetReader(tmp_path / "a", "image.bytes")(source.records[0])
        with pytest.raises(DatasetError, match="too many open files"):
            parquet._labels_of(tmp_path / "a" / "00.parquet", None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_row_that_names_a_file_is_read_from_the_datasets_own_folders_alone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "set" / "1.png", tmp_path / "private.png"
    (tmp_path / "set").mkdir()
    for file in (inside, outside):
        file.write_bytes(file.name.encode())
    (tmp_path / "set" / "link.png").symlink_to(outside)  # somebody's own, as in any folder of images
    os.mkfifo(tmp_path / "set" / "pipe")
    paths = [
        inside,
        tmp_path / "set" / "link.png",
        outside,
        f"{tmp_path}/set/../private.png",
        tmp_path / "set" / "pipe",
    ]
    rows = [{"image": {"bytes": None, "path": str(path)}} for path in paths]
    records = [Record(path=f"train/{row:08d}", label=0, split="train") for row in range(len(rows))]
    read = LibraryReader({"train": rows}, "image", [str(tmp_path / "set")])
    assert [read(record) for record in records[:2]] == [b"1.png", b"private.png"]
    for record, said in zip(records[2:], [r"private.*--allow-outside"] * 2 + ["pipe, which is no file"], strict=True):
        with pytest.raises(DecodeError, match=said):
            read(record)
    assert LibraryReader({"train": rows}, "image")(records[2]) == b"private.png"


@pytest.mark.parametrize(("module", "extra"), [("pyarrow", "parquet"), ("datasets", "hf")])
def test_a_missing_library_is_one_sentence(tmp_path: Path, module: str, extra: str) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    with (
        mock.patch.dict(sys.modules, {module: None, f"{module}.parquet": None}),
        pytest.raises(ConfigError, match=rf'not installed: pip install "fastload\[{extra}\]"'),
    ):
        detect(tmp_path / "x.parquet" if extra == "parquet" else f"hf:{tmp_path}")


# Hugging Face


def hf_set(rows: list[tuple[int, Any]], kind: object) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "what": kind})
    data = {"picture": [{"bytes": encoded(g), "path": None} for g, _ in rows], "what": [v for _, v in rows]}
    return datasets.Dataset.from_dict(data, features=features)


def test_a_saved_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kind = datasets.ClassLabel(names=["cat", "dog"])
    train = hf_set([(i, i % 2) for i in range(7)], kind).select([6, 0, 3, 4])  # rows in another order than stored
    saved = {"train": train, "validation": hf_set([(50, None)], kind), "extra": hf_set([(60, 1)], kind)}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "pets"))
    source = detect(f"hf:{tmp_path / 'pets'}")
    assert (source.counts(), source.classes, source.name) == ({"train": 4, "valid": 1}, ("cat", "dog"), "pets")
    assert [r.label for r in source.records] == [0, 0, 1, 0, -1]
    assert [source.read(r) for r in source.records] == [encoded(g) for g in (6, 0, 3, 4, 50)]
    assert source.notes == ("splits that are neither train, valid nor test, left out: extra",)
    copied = ForkingPickler.loads(ForkingPickler.dumps(source))
    assert copied.read(source.records[2]) == encoded(3)


def test_a_single_hugging_face_dataset_with_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    hf_set([(1, "b"), (2, "a")], datasets.Value("string")).save_to_disk(str(tmp_path / "x"))
    source = detect(f"hf:{tmp_path / 'x'}")
    assert labels(source) == {"train/00000000": "b", "train/00000001": "a"}
    with pytest.raises(ConfigError, match="--label-column picture"):
        detect(f"hf:{tmp_path / 'x'}", label_column="picture")
    monkeypatch.chdir(tmp_path)
    source = detect("hf:x")
    monkeypatch.chdir("/")  # as the worker of a cluster has another working folder
    assert ForkingPickler.loads(ForkingPickler.dumps(source)).read(source.records[0]) == encoded(1)


def test_the_hub_is_not_asked_unless_told(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with (
        mock.patch.object(socket.socket, "connect", side_effect=AssertionError("no network")),
        pytest.raises(ConfigError, match="hf:someone/pets is no local folder; pass --download"),
    ):
        detect("hf:someone/pets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="cannot be loaded"):
        detect(f"hf:{tmp_path / 'empty'}")


def test_readers_that_are_sent_elsewhere_find_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "rows" / "x.parquet", [(7, 1)])
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "1.jpg", b"one")
        add(tar, "1.cls", b"4")
    write_image(tmp_path / "images" / "bee" / "1.jpg", 1)
    jpeg = (tmp_path / "images" / "bee" / "1.jpg").read_bytes()
    monkeypatch.chdir(tmp_path)
    sources = {
        encoded(7): detect("rows"), b"one": detect("x.tar"), jpeg: detect("torchvision:ImageFolder", root="images"),
    }  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for content, source in sources.items():
        sent = ForkingPickler.loads(ForkingPickler.dumps(source))
        assert sent.read(sent.records[0]) == content
