"""Tables: headers, targets, standardizing, one-hot, splits."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastload.errors import ConfigError, SourceError
from fastload.sources import describe_table, is_packed_table, read_table
from tests.tables_help import KINDS, tables_of_the_notes


def write(root: Path, text: str, name: str = "t.csv") -> Path:
    (root / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return root / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "a,b,y\n1,x,0\n3,z,1\n"),
        ("t.csv", "\ufeffa;b;y\r\n1;x;0\r\n\r\n3;z;1"),
        ("t.csv.gz", "a, b, y\n1, x, 0\n3, z, 1\n"),
        ("t.tsv", "a\tb\ty\n1\tx\t0.0\n3\tz\t1e0\n"),
    ],
)
def test_tables_as_people_write_them(tmp_path: Path, name: str, text: str) -> None:
    assert is_packed_table(name) == name.endswith(".gz")
    table = read_table(write(tmp_path, text, name), target="y")
    assert table.feature_names == ("a", "b=x", "b=z")
    np.testing.assert_array_equal(table.features["train"], np.array([[-1, 1, 0], [1, 0, 1]], np.float32))
    np.testing.assert_array_equal(table.labels["train"], [0, 1])
    assert (table.classes, table.target_names, table.features["train"].dtype) == (("0", "1"), ("y",), np.float32)
    assert table.columns == {
        "features": [
            {"name": "a", "kind": "number", "mean": 2.0, "std": 1.0},
            {"name": "b", "kind": "text", "categories": ["x", "z"]},
        ],
        "target": [{"name": "y", "kind": "class"}],
    }
    assert json.loads(json.dumps(table.columns)) == table.columns


def test_without_a_header_the_last_column_is_the_target(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "1,5,a\n2,6,b\n4,7,a\n"))
    assert (table.feature_names, table.target_names, table.classes) == (("1", "2"), ("3",), ("a", "b"))
    assert read_table(write(tmp_path, "1,5,a\n2,6,b\n4,7,a\n"), target="1").feature_names == ("2", "3=a", "3=b")


def test_a_header_over_texts_alone_is_known_by_the_target(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "colour,kind\nred,cat\nblue,dog\n"), target="kind")
    assert (table.feature_names, table.classes) == (("colour=blue", "colour=red"), ("cat", "dog"))


def test_classes_or_an_amount(tmp_path: Path) -> None:
    whole = "x,y\n" + "".join(f"{i},{i % 20}\n" for i in range(61))
    many = "x,y\n" + "".join(f"{i},{i % 21}\n" for i in range(61))
    assert read_table(write(tmp_path, whole)).classes == tuple(str(i) for i in range(20))
    assert read_table(write(tmp_path, many)).is_regression
    assert len(read_table(write(tmp_path, many), regression=False).classes) == 21
    forced = read_table(write(tmp_path, whole), regression=True)
    assert (forced.classes, forced.labels["train"].shape, forced.labels["train"].dtype) == ((), (61, 1), np.float32)
    two = read_table(write(tmp_path, "a,b,c\n1,2,3\n4,5,7\n"), target=["c", "a"])
    np.testing.assert_array_equal(two.labels["train"], [[3, 1], [7, 4]])
    assert (two.feature_names, two.target_names) == (("b",), ("c", "a"))


def test_missing_cells_are_told(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a,b,y\n1,,cat\nNA,x,\n3,x,dog\n"))
    np.testing.assert_array_equal(table.features["train"], np.array([[-1, 1, 0], [0, 0, 1], [1, 0, 1]], np.float32))
    np.testing.assert_array_equal(table.labels["train"], [0, -1, 1])
    assert table.notes == (
        "rows without y, unlabelled and kept for prediction: 1", "missing numbers in a, taken as the mean: 1"
    )  # fmt: skip


def test_what_train_does_not_have(tmp_path: Path) -> None:
    text = "c,k,y\n" + "".join(f"t{i},5,{i % 2}\n" for i in range(40))
    table = read_table(write(tmp_path, text), split={"valid": 0.25}, seed=3)
    assert table.counts() == {"train": 30, "valid": 10}
    assert len(table.columns["features"][0]["categories"]) == 30
    assert not table.features["valid"].any()  # unknown texts, and a column without deviation
    assert table.notes[1:] == ("texts of c that train does not have, all zero: 10 rows",)
    assert any("10 rows" in line for line in describe_table(table))


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a,b\n1,2\n", {"target": "z"}, "--target z: .* has no such column; it has a, b"),
        ("a,b\n1,2\n", {"target": "3"}, "has no such column"),
        ("a,b\n1,2\n", {"target": ["a", "b"]}, "no column beside the target"),
        ("a,b\n1,x\n", {"target": "b", "regression": True}, r"target 'b' is no number in row 1 \('x'\)"),
        ("a,b,c\n1,x,y\n", {"target": ["b", "c"], "regression": False}, "classes have one target"),
        ("a,b\n1,2\n3\n", {}, "line 3: 1 cells where the first row has 2"),
        ("a,a\n1,2\n", {}, "two columns called 'a'"),
        ("a,b\n", {"target": "a"}, "has no rows"),
        ("", {}, "has no rows"),
        ("a,b\n,1\n,2\n", {"target": "b"}, "column 'a' is empty"),
        ("a,b\n1e39,1\n2,2\n", {}, "beyond float32"),
        ('a,b\n"1,2\n', {}, "cannot be read"),
        ("n,y\n" + "".join(f"t{i},1\n" for i in range(1001)), {}, "1,001 different texts"),
        ("a,b\n1,2\n3,4\n", {"split": {"valid": 2.0}}, "shares lie between"),
    ],
)
def test_a_table_that_cannot_be_right(tmp_path: Path, text: str, options: dict[str, object], said: str) -> None:
    with pytest.raises((SourceError, ConfigError), match=said):
        read_table(write(tmp_path, text), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("flip", [1, 0x80, 0xFF])
def test_a_packed_table_that_is_damaged_anywhere(tmp_path: Path, flip: int) -> None:
    packed = gzip.compress("".join(f"{i},{i * i % 7},{'ab'[i % 2]}\n" for i in range(60)).encode())
    num_refused = 0
    for place in range(len(packed)):
        (tmp_path / "t.csv.gz").write_bytes(packed[:place] + bytes([packed[place] ^ flip]) + packed[place + 1 :])
        try:
            read_table(tmp_path / "t.csv.gz")
        except SourceError:
            num_refused += 1
    assert num_refused >= len(packed) - 8  # of the header some bytes tell nothing of the table


def test_files_that_are_no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.csv.gz").write_bytes(gzip.compress(b"1,2\n" * 50_000))
    (tmp_path / "t.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(SourceError, match="cannot be read"):
        read_table(tmp_path / "t.csv.gz")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"1,2\n" * 9999)[:-20])
    with pytest.raises(SourceError, match="cannot be read"):
        read_table(tmp_path / "cut.csv.gz")
    (tmp_path / "wide.csv.gz").write_bytes(gzip.compress(b"1" * 99_999))
    monkeypatch.setattr("fastload.sources.tables.MAX_UNPACKED_BYTES", 50_000)
    for name in ("wide.csv.gz", "long.csv.gz"):
        with pytest.raises(SourceError, match=f"{name} holds more than 50,000 bytes; unpack it"):
            read_table(tmp_path / name)
    with pytest.raises(SourceError, match="no such file; check the path"):
        read_table(tmp_path / "nowhere.csv")


finite = st.floats(-1e6, 1e6, width=32)
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5).map(lambda t: f"t{t}")


@given(
    rows=st.lists(st.tuples(finite, words, st.integers(0, 3)), min_size=3, max_size=40),
    fraction=st.floats(0.1, 0.5),
    seed=st.integers(0, 5),
    header=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_row_comes_back(rows: list[tuple[float, str, int]], fraction: float, seed: int, header: bool) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["x", "word", "y"]] * header + [[x, w, y] for x, w, y in rows])
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder), text.getvalue())
        table = read_table(file, split={"valid": fraction}, seed=seed)
        assert table.digest() == read_table(file, split={"valid": fraction}, seed=seed).digest()
    numbers, texts = table.columns["features"]
    train = [rows[i - 1] for i in table.rows["train"]]
    np.testing.assert_allclose(numbers["mean"], np.mean([x for x, _, _ in train]), rtol=1e-9, atol=1e-9)
    assert texts["categories"] == sorted({w.strip() for _, w, _ in train})
    assert sorted(i for split in table.rows.values() for i in split) == list(range(1, len(rows) + 1))
    for split, numbers_of_rows in table.rows.items():
        for i, features, label in zip(numbers_of_rows, table.features[split], table.labels[split], strict=True):
            x, word, y = rows[i - 1]
            assert table.classes[int(label)] == str(y)
            constant = numbers["std"] <= 1e-12 * abs(numbers["mean"])
            standard = 0.0 if constant else (x - numbers["mean"]) / numbers["std"]
            assert features[0] == pytest.approx(standard, rel=1e-6, abs=1e-6)
            hot = [c for c, on in zip(texts["categories"], features[1:], strict=True) if on]
            assert hot == [word.strip()] * (word.strip() in texts["categories"])


@pytest.mark.parametrize("kind", KINDS)
def test_temperatures(kind: str, tmp_path: Path) -> None:
    file = tables_of_the_notes(kind, tmp_path) / "temps.csv"
    table = read_table(file, target="actual", split={"valid": 0.2})
    assert (table.is_regression, table.counts(), len(table.feature_names)) == (True, {"train": 278, "valid": 70}, 14)
    assert [c["name"] for c in table.columns["features"] if c["kind"] == "text"] == ["week"]
    numeric = [i for i, name in enumerate(table.feature_names) if "=" not in name and name != "year"]
    train = table.features["train"][:, numeric]
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(0), 1, atol=1e-5)
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [float(y) for y in table.labels["valid"][:, 0]] == [
        float(rows[i - 1]["actual"]) for i in table.rows["valid"]
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_diabetes_has_no_header(kind: str, tmp_path: Path) -> None:
    table = read_table(tables_of_the_notes(kind, tmp_path) / "diabetes.csv.gz")
    assert (table.counts(), table.classes, table.features["train"].shape) == ({"train": 758}, ("0", "1"), (758, 8))


def test_a_header_of_numbers_and_the_index_that_pandas_writes(tmp_path: Path) -> None:
    """DataFrame.to_csv calls columns 0, 1, ... and gives its index no name; neither may become a row or a feature."""
    table = read_table(write(tmp_path, ",0,1,label\n0,5,7,a\n1,6,8,b\n2,7,9,a\n", "t.csv.gz"))
    assert (table.feature_names, table.target_names, table.classes) == (("0", "1"), ("label",), ("a", "b"))
    assert "the first column only counts the rows, left out" in table.notes
    plain = read_table(write(tmp_path, "0,1,y\n5,7,1\n6,8,0\n7,9,1\n"))
    assert (plain.feature_names, plain.classes, plain.counts()) == (("0", "1"), ("0", "1"), {"train": 3})


def test_a_table_as_a_spreadsheet_saves_unicode_text(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes("größe\ty\r\n1\t0\r\n3\t1\r\n".encode("utf-16"))
    table = read_table(tmp_path / "t.tsv", target="y")
    assert (table.feature_names, table.counts()) == (("größe",), {"train": 2})


@pytest.mark.parametrize("infinite", ["inf", "-Infinity", "+INF"])
def test_an_infinite_cell_does_not_make_a_column_of_numbers_one_of_texts(tmp_path: Path, infinite: str) -> None:
    with pytest.raises(SourceError, match=r"'a' is infinite in row 2"):
        read_table(write(tmp_path, f"a,y\n1,0\n{infinite},1\n3,0\n"), target="y")


def test_what_a_table_may_not_have_meant_is_said(tmp_path: Path) -> None:
    def notes(text: str) -> str:
        return "; ".join(read_table(write(tmp_path, text), target="y").notes)

    assert "0" in read_table(write(tmp_path, "0,1,2,label\n5,6,7,a\n6,6,8,b\n", "n.csv")).feature_names
    assert "a is taken as texts, for 'n.a.' in row 3 is no number: 1 of 4 cells" in notes(
        "a,y\n1,0\n2,1\nn.a.,0\n4,1\n"
    )
    days = "".join(f"2016-01-{day:02d},{day / 2}\n" for day in range(1, 29))
    assert "day has 28 different texts in 28 rows" in notes("day,y\n" + days)
    assert "rows without y, unlabelled and kept for prediction: 1" in notes("a,y\n1,x\n2,\n3,z\n")
    assert "every y is x" in notes("a,y\n1,x\n2,x\n")
    assert notes("a,b,y\n1,red,x\n2,blue,z\n3,red,x\n") == ""


def test_a_seed_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed=-1"):
        read_table(write(tmp_path, "a,y\n1,0\n2,1\n"), seed=-1, split={"valid": 0.5})
