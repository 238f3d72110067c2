"""Tables: `.csv`, `.csv.gz` and `.tsv` with a target column -> float features and labels.

Shape letters: n rows of a split, D features, T targets.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from fastload.errors import ConfigError, SourceError, printable, several
from fastload.places import Place, as_place
from fastload.records import SPLITS, UNLABELLED, Record, Source, check_seed
from fastload.sources.labels import is_whole, sorted_classes
from fastload.sources.lists import CANDIDATES, as_text, find_delimiter
from fastload.sources.splits import cut_splits
from fastload.urls import Url

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})  # compared in lower case
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
MAX_CLASSES = 20  # whole numbers of more values are an amount, not a class
MAX_UNPACKED_BYTES = 1 << 30  # in memory a cell takes ten times as much
MAX_CATEGORIES = 1000  # a text column of more is a name or an id: one-hot, it would only fill memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """What a table holds, ready to train on.

    Attributes:
        path: the file.
        feature_names: D names; a text column gives one per text, `week=Fri`.
        features: per split float32 [n, D], standardized with the mean and deviation of `train`.
        labels: per split int64 [n] class numbers (-1: unlabelled), or float32 [n, T] as they stand in the file.
        rows: per split int64 [n], the number of each row in the file, from 1, the header not counted.
        classes: class names, index = label; none for regression.
        target_names: T names.
        columns: how each column was turned into features, fit for JSON.
        notes: sentences on what a person should know.
    """

    path: Place
    feature_names: tuple[str, ...]
    features: dict[str, npt.NDArray[np.float32]]
    labels: dict[str, npt.NDArray[np.int64] | npt.NDArray[np.float32]]
    rows: dict[str, npt.NDArray[np.int64]]
    classes: tuple[str, ...]
    target_names: tuple[str, ...]
    columns: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def is_regression(self) -> bool:
        """Whether the labels are amounts, not classes."""
        return not self.classes

    def counts(self) -> dict[str, int]:
        """Return the number of rows per split, in the order train, valid, test."""
        return {split: len(self.rows[split]) for split in SPLITS if split in self.rows}

    def digest(self) -> str:
        """Return SHA-256 (hex) over names, columns and every number."""
        head = [self.feature_names, self.target_names, self.classes, self.columns]
        sha = hashlib.sha256(json.dumps(head).encode())
        for split in self.counts():
            sha.update(f"\0{split}\0".encode())
            for part in (self.rows[split], self.features[split], self.labels[split]):
                sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()


def is_packed_table(path: str | Path | Url) -> bool:
    """Tell whether a file is a table by its name: lists are texts as well, but never packed ones."""
    return str(path).lower().endswith((".csv.gz", ".tsv.gz"))


def read_table(
    path: str | Path | Url,
    *,
    target: str | Sequence[str] | None = None,
    regression: bool | None = None,
    split: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Table:
    """Read a table, cut its splits and turn every column into numbers.

    A header is a first row of names over columns of numbers. Numeric columns are standardized with the mean and
    deviation of `train`, a missing number being the mean; text columns are one-hot over the texts of `train`.

    Args:
        path: a `.csv`, `.tsv`, or one of them with `.gz`; here, or the URL of one.
        target: the column to predict, by name or by number (from 1, or -1 for the last), or several for
            regression; without it the last column.
        regression: whether the target is an amount. Without it: whole numbers of at most 20 values and texts
            are classes.
        split: shares to cut from `train`, as `cut_splits` takes them.
        seed: of the cut.

    Raises:
        ConfigError: no such column, a target that cannot be regressed on, or shares that make no sense.
        SourceError: the file cannot be read, or holds what is neither number nor category.
    """
    check_seed(seed)
    path = as_place(path)
    given = [target] if isinstance(target, str) else list(target or ())
    names, body = _read_cells(path, given)
    places = list(dict.fromkeys(_place(path, names, t) for t in given)) or [len(names) - 1]
    if len(places) == len(names):
        raise SourceError(f"{printable(path)} has no column beside the target; expected features, too.")
    cells = [list(column) for column in zip(*body, strict=True)]
    targets = {names[i]: cells[i] for i in places}
    classes, labels, in_target = _labels(path, targets, regression)
    notes = _target_notes(targets, classes, labels)
    used = [i for i in range(len(names)) if i not in places]
    if names[0] == "" and used[:1] == [0]:
        if len(used) > 1 and cells[0] == [str(i) for i in range(len(body))]:
            # The index that pandas writes: where rows are sorted by class, it would give the class away.
            notes.append("the first column only counts the rows, left out")
            used = used[1:]
        names[0] = "1"

    split_of = _splits(path, labels if classes else np.zeros(len(body), np.int64), split or {}, seed)
    parts = [_features(path, names[i], cells[i], split_of == "train") for i in used]
    features = np.concatenate([part for _, part, _, _ in parts], axis=1).astype(np.float32)
    rows = {s: np.flatnonzero(split_of == s) for s in SPLITS if (split_of == s).any()}
    return Table(
        path=path,
        feature_names=tuple(name for of_column, _, _, _ in parts for name in of_column),
        features={s: features[which] for s, which in rows.items()},
        labels={s: labels[which] for s, which in rows.items()},
        rows={s: which + 1 for s, which in rows.items()},
        classes=classes,
        target_names=tuple(targets),
        columns={"features": [column for _, _, column, _ in parts], "target": in_target},
        notes=(*notes, *(note for *_, of_column in parts for note in of_column)),
    )


def describe_table(table: Table) -> list[str]:
    """Return the sentences that tell a person what was found in a table."""
    counts = ", ".join(f"{count:,} {split}" for split, count in table.counts().items())
    names = ", ".join(table.target_names)
    what = "an amount" if table.is_regression else f"{len(table.classes)} classes: {', '.join(table.classes)}"
    num_columns = len(table.columns["features"])
    return [
        printable(line)
        for line in (
            f"table: {table.path}",
            f"rows: {counts}",
            f"target: {names} ({what})",
            f"features: {len(table.feature_names)} from {num_columns} columns: {several(table.feature_names)}",
            *table.notes,
        )
    ]


def _read_cells(path: Place, targets: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return (column names, rows of cells); without a header, columns are called by their numbers."""
    rows: list[list[str]] = []
    try:
        packed = path.suffix.lower() == ".gz"
        with (
            path.open("rb") as raw,
            as_text(cast("BinaryIO", _Unpacked(path, raw)) if packed else raw) as opened,
        ):
            suffix = Path(path.stem if packed else path.name).suffix
            delimiter = find_delimiter(opened.read(1 << 16), CANDIDATES.get(suffix.lower(), ",;\t"))
            opened.seek(0)
            reader = csv.reader(opened, delimiter=delimiter, strict=True)
            for cells in reader:
                if cells:
                    rows.append([cell.strip() for cell in cells])
                    if len(cells) != len(rows[0]):
                        raise SourceError(
                            f"{printable(path)}, line {reader.line_num}: {len(cells)} cells where the first row has "
                            f"{len(rows[0])}; mend it."
                        )
    except FileNotFoundError:
        raise SourceError(f"{printable(path)}: no such file; check the path.") from None
    except (OSError, EOFError, zlib.error, csv.Error) as e:
        raise SourceError(f"{printable(path)} cannot be read ({printable(e)}); mend the table.") from e
    if rows and _has_header(rows, targets):
        names, body = [name or (str(i) if i > 1 else "") for i, name in enumerate(rows[0], 1)], rows[1:]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise SourceError(f"{printable(path)} has two columns called {printable(twice)!r}; rename one.")
    else:
        names, body = [str(i) for i in range(1, len(rows[0]) + 1)] if rows else [], rows
    if not body:
        raise SourceError(f"{printable(path)} has no rows; expected numbers or texts, with or without a header.")
    return names, body


class _Unpacked(gzip.GzipFile):
    """What is in a packed table, up to a limit: a few MB may hold more than any memory."""

    def __init__(self, path: Place, packed: BinaryIO) -> None:
        super().__init__(fileobj=packed)
        self._path = path

    def read1(self, size: int = -1) -> bytes:
        """Return some bytes; SourceError where they are too many."""
        data = super().read1(size)
        if self.tell() > MAX_UNPACKED_BYTES:
            raise SourceError(
                f"{printable(self._path)} holds more than {MAX_UNPACKED_BYTES:,} bytes; unpack it with gunzip, if it "
                "shall be read, and pass the table in it."
            )
        return data


def _has_header(rows: list[list[str]], targets: list[str]) -> bool:
    """Tell whether the first row names a column: a text over nothing but numbers.

    Not every name need be a text: pandas calls columns 0, 1, ..., and gives its index no name at all.
    """
    if any(t in rows[0] for t in targets if not is_whole(t)):
        return True
    first = rows[0]
    if first[0] == "" and len(rows) > 1 and [row[0] for row in rows[1:]] == [str(i) for i in range(len(rows) - 1)]:
        return True
    counted = [i for i, cell in enumerate(first) if _is_number(cell)]
    if 3 <= len(counted) < len(first) and all(first[i] == str(i) for i in counted):
        return True
    texts = [i for i, cell in enumerate(first) if not _is_number(cell) and cell.lower() not in MISSING]
    if len(texts) == len(first):  # all names: one column with a number in it is enough
        return any(_is_number(cell) for row in rows[1:] for cell in row)
    return any(
        any(_is_number(row[i]) for row in rows[1:])
        and all(_is_number(row[i]) or row[i].lower() in MISSING for row in rows[1:])
        for i in texts
    )


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None


def _place(path: Place, names: list[str], target: str) -> int:
    if target in names:
        return names.index(target)
    if is_whole(target) and 1 <= abs(int(target)) <= len(names):
        return int(target) - (int(target) > 0)
    raise ConfigError(
        f"--target {printable(target)}: {printable(path)} has no such column; it has {printable(several(names))}."
    )


def _numbers(path: Place, name: str, cells: list[str]) -> npt.NDArray[np.float64] | None:
    """Return the column as float64 [n], NaN where missing, or None where a cell is a text."""
    numbers = np.empty(len(cells))
    for i, cell in enumerate(cells):
        if NUMBER.fullmatch(cell):
            numbers[i] = float(cell)
        elif cell.lower() in MISSING:
            numbers[i] = np.nan
        elif INFINITE.fullmatch(cell):
            raise SourceError(
                f"{printable(path)}: column {printable(name)!r} is infinite in row {i + 1} ({printable(cell)}); "
                "write a number there, or nothing where it is missing."
            )
        else:
            return None
    if np.isnan(numbers).all():
        raise SourceError(f"{printable(path)}: column {printable(name)!r} is empty; delete it.")
    if not (np.abs(numbers[~np.isnan(numbers)]) < np.finfo(np.float32).max).all():
        raise SourceError(f"{printable(path)}: column {printable(name)!r} has numbers beyond float32; scale it.")
    return numbers


def _labels(
    path: Place, targets: dict[str, list[str]], regression: bool | None
) -> tuple[tuple[str, ...], npt.NDArray[np.int64] | npt.NDArray[np.float32], list[dict[str, Any]]]:
    """Return (classes, labels of all rows, what the manifest says of the targets)."""
    numbers = {name: _numbers(path, name, cells) for name, cells in targets.items()}
    name = next(iter(targets))
    found = numbers[name]
    if regression is None:
        known = found[~np.isnan(found)] if found is not None else None
        few = known is None or ((known == np.round(known)).all() and len(np.unique(known)) <= MAX_CLASSES)
        regression = len(targets) > 1 or not few
    if regression:
        columns, described = [], []
        for name, column in numbers.items():
            if column is None or np.isnan(column).any():
                bad = next(i for i, cell in enumerate(targets[name]) if not NUMBER.fullmatch(cell))
                raise SourceError(
                    f"{printable(path)}: target {printable(name)!r} is no number in row {bad + 1} "
                    f"({printable(targets[name][bad])!r}); mend the row, or pass another --target."
                )
            columns.append(column)
            described.append({"name": name, "kind": "number"})
        return (), np.stack(columns, axis=1).astype(np.float32), described
    if len(targets) > 1:
        raise ConfigError(f"--target {printable(several(list(targets)))}: classes have one target; pass one.")
    # 1, 1.0 and 1e0 are one class where all are whole numbers.
    whole = found is not None and bool((found == np.round(found))[~np.isnan(found)].all())
    texts = [None if cell.lower() in MISSING else str(int(float(cell))) if whole else cell for cell in targets[name]]
    classes = sorted_classes(text for text in texts if text is not None)
    if not classes:
        raise SourceError(f"{printable(path)}: target {printable(name)!r} is empty; pass another --target.")
    label_of: dict[str | None, int] = {None: UNLABELLED} | {text: label for label, text in enumerate(classes)}
    return classes, np.array([label_of[t] for t in texts], np.int64), [{"name": name, "kind": "class"}]


def _splits(path: Place, labels: npt.NDArray[Any], fractions: Mapping[str, float], seed: int) -> npt.NDArray[np.str_]:
    """Return the split of each row, cut as images are."""
    records = tuple(Record(path=str(i), label=int(label), split="train") for i, label in enumerate(labels, 1))
    source = cut_splits(Source(root=path.parent, layout="table", classes=(), records=records), dict(fractions), seed)
    split_of = np.empty(len(labels), dtype="U5")
    for record in source.records:
        split_of[int(record.path) - 1] = record.split
    return split_of


def _target_notes(
    targets: dict[str, list[str]], classes: tuple[str, ...], labels: npt.NDArray[np.int64] | npt.NDArray[np.float32]
) -> list[str]:
    """Return the sentences on a target that is classes; amounts were checked, number by number."""
    if not classes:
        return []
    ((name, cells),) = targets.items()
    notes = [_not_a_number(name, cells)] if any(map(_is_number, cells)) else []
    num_unlabelled = int((labels == UNLABELLED).sum())
    if num_unlabelled:
        notes.append(f"rows without {name}, unlabelled and kept for prediction: {num_unlabelled:,}")
    if len(classes) == 1:
        notes.append(f"every {name} is {classes[0]}: one class alone teaches a classifier nothing")
    return [note for note in notes if note]


def _not_a_number(name: str, cells: list[str]) -> str:
    """Return the sentence on a column of numbers that a few cells made a column of texts, or nothing."""
    known = [(row, cell) for row, cell in enumerate(cells, 1) if cell.lower() not in MISSING]
    texts = [(row, cell) for row, cell in known if not _is_number(cell)]
    if not texts or 2 * len(texts) > len(known):
        return ""
    row, cell = texts[0]
    return f"{name} is taken as texts, for {cell!r} in row {row} is no number: {len(texts):,} of {len(known):,} cells"


def _text_notes(name: str, cells: list[str]) -> list[str]:
    """Return the sentences on a column of texts that somebody may have meant to be something else."""
    num_texts = len(set(cells))
    if note := _not_a_number(name, cells):
        return [note]
    if num_texts > MAX_CLASSES and 2 * num_texts > len(cells):
        return [f"{name} has {num_texts:,} different texts in {len(cells):,} rows, and each becomes a feature; "
                "an id or a date teaches nothing, and a number has a point and no thousands"]  # fmt: skip
    return []


def _features(
    path: Place, name: str, cells: list[str], train: npt.NDArray[np.bool_]
) -> tuple[list[str], npt.NDArray[np.float64], dict[str, Any], list[str]]:
    """Return (feature names, float64 [n, ...], what the manifest says of the column, notes)."""
    numbers = _numbers(path, name, cells)
    if numbers is not None:
        known = numbers[train & ~np.isnan(numbers)]
        mean, std = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
        num_missing = int(np.isnan(numbers).sum())
        # A constant column tells nothing: it becomes 0, also where rounding left it a deviation.
        scale = std if std > 1e-12 * math.hypot(mean, 1e-300) else math.inf
        part = np.nan_to_num((numbers - mean) / scale, nan=0.0)[:, None]
        notes = [f"missing numbers in {name}, taken as the mean: {num_missing:,}"] if num_missing else []
        return [name], part, {"name": name, "kind": "number", "mean": mean, "std": std}, notes
    texts = np.array(cells, dtype=object)
    categories = sorted(set(texts[train]))
    if len(categories) > MAX_CATEGORIES:
        raise SourceError(
            f"{printable(path)}: column {printable(name)!r} has {len(categories):,} different texts "
            f"(first: {printable(categories[0])}), more than {MAX_CATEGORIES:,} categories; delete the column."
        )
    part = np.stack([texts == category for category in categories], axis=1).astype(np.float64)
    num_unknown = int((part.sum(1) == 0).sum())
    notes = _text_notes(name, cells)
    notes += [f"texts of {name} that train does not have, all zero: {num_unknown:,} rows"] if num_unknown else []
    names = [f"{name}={category}" for category in categories]
    return names, part, {"name": name, "kind": "text", "categories": categories}, notes
