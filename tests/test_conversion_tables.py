import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastload import Augment, Loader, convert, open_dataset
from fastload.conversion_tables import convert_table
from fastload.errors import ConfigError, DatasetError, SourceError
from fastload.files import write_table
from fastload.formats.manifest import read_manifest
from fastload.formats.resident import find_damage
from fastload.output import Output
from fastload.sources import detect, read_table
from tests.conftest import write_folder
from tests.tables_help import KINDS, tables_of_the_notes
from tests.test_cli import fastload

ROWS = [("week", "heat", "side", "y"), *((f"d{i % 3}", i * 1.5, i % 2, 10 * i + 0.5) for i in range(23))]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "temps.csv", ROWS)


def write_rows(file: Path, rows: list[tuple[object, ...]]) -> Path:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return file


def test_a_table_becomes_a_dataset_with_its_columns_in_the_manifest(table: Path, tmp_path: Path) -> None:
    out = convert(table, target="y", split={"valid": 0.2})
    assert out == tmp_path / "temps.csv.fastload"
    train, valid = open_dataset(out), open_dataset(out, "valid")
    assert (len(train), len(valid)) == (18, 5)
    assert train.is_table
    assert train.is_regression
    assert train.sample_shape == (5,)
    features, label = train[3]
    assert features.dtype == label.dtype == torch.float32
    assert (features.shape, label.shape) == ((5,), (1,))
    about = json.loads((out / "manifest.json").read_text())
    assert about["fields"]["label"] == {"shape": [1], "dtype": "float32"}
    assert about["table"]["feature_names"] == ["week=d0", "week=d1", "week=d2", "heat", "side"]
    assert about["table"]["target_names"] == ["y"]
    # The statistics are those of train, and lead back to the numbers of the file.
    heat = next(c for c in about["table"]["columns"]["features"] if c["name"] == "heat")
    raw = torch.cat([s[:, 3] for s in train.shards]) * heat["std"] + heat["mean"]
    assert abs(float(raw.mean()) - heat["mean"]) < 1e-4
    with (out / "samples.csv").open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row["split"] == "train"]
    for i, row in enumerate(rows):
        number = int(row["path"].removeprefix("temps.csv/")) - 1
        assert float(row["label"]) == float(train.labels[i]) == 10 * number + 0.5
        assert abs(float(raw[i]) - number * 1.5) < 1e-4
        assert train[i][0][:3].tolist() == [float(number % 3 == k) for k in range(3)]
    assert [row["path"] for row in rows] != sorted((r["path"] for r in rows), key=lambda p: int(p.split("/")[1]))


def test_the_same_table_gives_the_same_bytes(table: Path, tmp_path: Path) -> None:
    one, two = (convert(table, tmp_path / name, target="y", split={"valid": 0.2}) for name in ("one", "two"))
    assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in two.iterdir()}
    other = convert(table, tmp_path / "other", target="y", split={"valid": 0.2}, seed=1)
    assert (other / "manifest.json").read_bytes() != (one / "manifest.json").read_bytes()


def test_several_shards_and_damage(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_dataset(convert_table(read_table(table, target="y"), tmp_path / "whole"))
    monkeypatch.setattr("fastload.conversion_tables.SHARD_BYTES", 4 * 5 * 4)
    out = convert(table, tmp_path / "out", target="y")
    opened = open_dataset(out, verify=True)
    assert [len(s) for s in opened.shards] == [4, 4, 4, 4, 4, 3]
    assert torch.equal(torch.cat(opened.shards), whole.shards[0])
    file = out / "train-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert len(list(find_damage(out, read_manifest(out)))) == 1


@pytest.mark.parametrize("placement", ["host", "mapped"])
def test_the_loader_serves_rows(table: Path, tmp_path: Path, placement: str) -> None:
    dataset = open_dataset(convert(table, tmp_path / "out", target=["y", "heat"]))
    loader = Loader(dataset, 4, placement=placement, device="cpu", drop_last=False)  # type: ignore[arg-type]
    seen = []
    for features, labels in loader:
        assert features.dtype == labels.dtype == torch.float32
        assert features.shape[1:] == (4,)
        assert labels.shape == (len(features), 2)
        assert torch.equal(features, torch.stack([dataset[int(i)][0] for i in loader.batch_ids]))
        seen += labels[:, 0].tolist()
    assert sorted(seen) == [10 * i + 0.5 for i in range(23)]


def test_classes_and_unlabelled_rows(tmp_path: Path) -> None:
    rows = [("a", "kind"), *((i, "" if i == 3 else "xy"[i % 2]) for i in range(9))]
    dataset = open_dataset(convert(write_rows(tmp_path / "t.csv", rows), target="kind"))
    assert dataset.classes == ("x", "y")
    assert sorted(dataset.labels.tolist()) == [-1, 0, 0, 0, 0, 0, 1, 1, 1]
    labels = [label for _, batch in Loader(dataset, 1, device="cpu") for label in batch.tolist()]
    assert sorted(labels) == [0, 0, 0, 0, 0, 1, 1, 1]


def test_what_makes_no_sense_of_a_table(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such column"):
        convert(table, target="z")
    with pytest.raises(ConfigError, match="in one go"):
        convert(table, target="y", task="1/2")
    with pytest.raises(ConfigError, match="was listed as images"):
        convert(detect(write_folder(tmp_path / "images")), tmp_path / "x", target="y")
    assert {p.name for p in tmp_path.iterdir()} == {"temps.csv", "images"}
    out = convert(table, target="y")
    with pytest.raises(DatasetError, match="exists"):
        convert(table, target="y")
    with pytest.raises(ConfigError, match="augment is for images"):
        Loader(open_dataset(out), 2, augment=Augment(), device="cpu")
    with (
        Output(tmp_path / "busy", "manifest.json").held(),
        pytest.raises(DatasetError, match="is being written by process"),
    ):
        convert(table, tmp_path / "busy", target="y")
    with pytest.raises(SourceError, match="or --target COLUMN"):
        convert(table, tmp_path / "list")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["fields"]["features"].update(shape=[4]), "damaged"),
        (lambda c: c["fields"]["features"].update(dtype="float64"), "damaged"),
        (lambda c: c["fields"]["label"].update(shape=[2]), "damaged"),
        (lambda c: c["table"].update(feature_names=None), "damaged"),
        (lambda c: c.pop("table"), "damaged"),
        (lambda c: c["splits"]["train"]["shards"][0].update(rows=22) or c["splits"]["train"].update(count=22), "holds"),
    ],
)
def test_a_manifest_of_a_table_that_does_not_hold_together(table: Path, change, said: str) -> None:  # type: ignore[no-untyped-def]
    out = convert(table, target="y")
    content = json.loads((out / "manifest.json").read_text())
    change(content)
    (out / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=said):
        open_dataset(out)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_of_the_notes_by_command(kind: str, tmp_path: Path) -> None:
    tables = tables_of_the_notes(kind, tmp_path)
    done = fastload("convert", tables / "diabetes.csv.gz", tmp_path / "d.fastload", "--split", "valid=0.2")
    assert "606 train, 152 valid; 2 classes, 8 float32" in done.stdout
    done = fastload("convert", tables / "temps.csv", "--target", "actual", "--dry-run")
    assert "348 train" in done.stdout
    assert "actual (an amount)" in done.stdout
    done = fastload("convert", tables / "temps.csv", tmp_path / "t.fastload", "--target", "actual")
    assert "348 train; targets to regress on, 14 float32" in done.stdout
    features = open_dataset(tmp_path / "t.fastload").shards[0]
    assert np.allclose(features.mean(0)[[1, 2, 10, 11]], 0, atol=1e-5)
    assert np.allclose(features.std(0, correction=0)[[1, 2, 10, 11]], 1, atol=1e-5)
    assert "14 float32" in fastload("info", tmp_path / "t.fastload").stdout
    for words, said in (
        (("show", tmp_path / "t.fastload"), "has no pictures"),
        (("convert", tables / "temps.csv", tmp_path / "x", "--target", "actual", "--layout", "list"), "--layout means"),
        (("convert", tables / "temps.csv", tmp_path / "x", "--target", "actual", "--task", "1/2"), "--task means"),
    ):
        done = fastload(*words)
        assert done.returncode == 2
        assert said in done.stderr


def test_names_of_any_kind_come_back_from_a_table(tmp_path: Path) -> None:
    plain = [("a.jpg", 1), ('a "b", c\n.jpg', 2), ("ä\udcff", -1)]
    write_table(tmp_path / "plain.csv", ("path", "label"), plain)
    assert (tmp_path / "plain.csv").read_bytes() == (b'path,label\na.jpg,1\n"a ""b"", c\n.jpg",2\n\xc3\xa4\xff,-1\n')
    rows = [("a\rb", 1), *plain, ("\r", 2), ('a"\r\n,', 3)]
    write_table(tmp_path / "all.csv", ("path", "label"), rows)
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
        _, *back = csv.reader(opened)
    assert back == [[path, str(label)] for path, label in rows]
