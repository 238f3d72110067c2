"""The layout of a list: a `.csv`, `.tsv` or `.txt` file whose rows name an image and its label."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastload.errors import ConfigError, SourceError, printable
from fastload.places import Place, each, join, local_path
from fastload.records import SPLIT_WORDS, Source
from fastload.sources.labels import from_texts, is_whole
from fastload.sources.scan import all_entries, has_image_suffix, is_file, unlisted
from fastload.urls import is_url

SUFFIXES = (".csv", ".tsv", ".txt")
CANDIDATES = {".csv": ",;\t", ".tsv": "\t", ".txt": "\t,; "}  # what may stand between cells, likeliest first
PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img",
              "img_path", "image_name", "name", "id")  # fmt: skip
LABEL_NAMES = ("label", "class", "category", "target", "y", "label_name", "class_name", "class_id", "labels")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which cell of a row is what; `split` is None where the list has no such column."""

    path: int
    label: int
    split: int | None
    has_header: bool


def read_list(
    file: Place,
    *,
    root: Place | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    allow_outside: bool = False,
) -> Source:
    """List the images that `file` names.

    A header is a first row without an image's name in it, with or without its ending. The columns are found by
    content and name, or given: by name, or by number (from 1). A column `split` is used where there is one;
    otherwise all samples are `train`. An empty label is unlabelled.

    Args:
        file: the list; commas, semicolons, tabs, or in a .txt file spaces between the cells.
        root: what its paths are relative to; without it the list's own folder.
        path_column, label_column: which columns, where they are not found.
        allow_outside: take paths that lead out of `root`.

    Raises:
        ConfigError: no such column.
        SourceError: the list cannot be read, names files that are missing or outside, or contradicts itself.
    """
    root = root if root is not None else file.parent
    rows = _equally_wide(file, read_rows(file))
    first = list(itertools.islice(rows, 2))
    columns = _find_columns(file, [cells for _, cells in first], path_column, label_column)
    if columns.has_header and _is_without_names(columns, [cells for _, cells in first], path_column, label_column):
        # Ids leave the ending out, so that a row of them looks like a header: whether the file is there decides.
        plain = _find_columns(file, [first[0][1]], path_column, label_column, may_have_header=False)
        if _is_there(file, first[0][0], first[0][1][plain.path], root, allow_outside):
            columns = plain
    found: dict[str, tuple[str, str | None]] = {}
    num_rows = 0
    for line, cells in itertools.chain(first[columns.has_header :], rows):
        path = _inside(file, line, cells[columns.path], root, allow_outside)
        entry = (_split_in(file, line, cells, columns), cells[columns.label].strip() or None)
        if found.setdefault(path, entry) != entry:
            raise SourceError(
                f"{printable(file)}, line {line}: {printable(path)} was named before with another label or split; "
                "keep one of the two rows."
            )
        num_rows += 1
    if not found:
        raise SourceError(f"{printable(file)} has no rows; expected a path and a label in each.")
    named = _existing(file, root, list(found))
    found = {named[path]: entry for path, entry in found.items()}
    classes, records = from_texts((split, path, text) for path, (split, text) in found.items())
    num_repeated = num_rows - len(found)
    notes = [f"rows that repeat another one, left out: {num_repeated:,}"] if num_repeated else []
    completed = [f"{path} is {name}" for path, name in named.items() if path != name]
    if completed:
        notes.append(f"names without their ending, found with it: {len(completed):,} (first: {completed[0]})")
    return Source(root=root, layout="list", classes=classes, records=records, name=file.stem, notes=tuple(notes))


def read_rows(file: Place) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each row that is not blank.

    Raises:
        SourceError: the file cannot be read, or a quote is not closed.
    """
    reader = None
    try:
        with file.open("rb") as raw, as_text(raw) as opened:
            delimiter = find_delimiter(opened.read(1 << 16), CANDIDATES.get(file.suffix.lower(), ",;\t"))
            opened.seek(0)
            if delimiter == " ":
                # In its simplest form the path has spaces, and no quotes to say so.
                for number, line in enumerate(opened, 1):
                    if text := line.strip("\r\n"):
                        head, _, tail = text.rpartition(" ")
                        yield number, [head.strip(), tail] if head.strip() else [tail]
                return
            reader = csv.reader(opened, delimiter=delimiter, strict=True)
            for cells in reader:
                if any(cells):
                    yield reader.line_num, cells
    except (OSError, csv.Error) as e:
        line = f", line {reader.line_num}" if reader is not None else ""
        raise SourceError(f"{printable(file)}{line} cannot be read ({printable(e)}); mend the list.") from e


def as_text(opened: BinaryIO) -> io.TextIOWrapper:
    """Read bytes as a text somebody wrote: with or without a byte order mark, and bytes that are no UTF-8 kept.

    UTF-16, which spreadsheets call Unicode text, is known by its mark.
    """
    mark = opened.read(2)
    opened.seek(0)
    if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return io.TextIOWrapper(opened, encoding="utf-16", errors="replace", newline="")
    return io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _equally_wide(file: Place, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    width = None
    for line, cells in rows:
        width = len(cells) if width is None else width
        if len(cells) != width:
            raise SourceError(
                f"{printable(file)}, line {line}: {len(cells)} cells where the first row has {width}; mend it."
            )
        yield line, cells


def find_delimiter(head: str, candidates: str) -> str:
    """Return the first of `candidates` that is in the first row of `head`, outside quotes; else the first."""
    first_row = re.sub(r'"[^"]*"', "", head).lstrip("\r\n").partition("\n")[0]
    return next((c for c in candidates if c in first_row), candidates[0])


def _is_without_names(
    columns: Columns, first: list[list[str]], path_column: str | None, label_column: str | None
) -> bool:
    """Tell whether a first row that was taken for a header has neither a known name in it nor one that was given."""
    for given in (path_column, label_column):
        if given is not None and not (is_whole(given) and 1 <= int(given) <= len(first[0])):
            return False
    known = {*PATH_NAMES, *LABEL_NAMES, "split"}
    return not any(cell.strip().lower() in known for cell in first[0]) and not has_image_suffix(first[-1][columns.path])


def _is_there(file: Place, line: int, cell: str, root: Place, allow_outside: bool) -> bool:
    """Tell whether a cell names a file, with or without its ending."""
    try:
        path = _inside(file, line, cell, root, allow_outside)
    except SourceError:
        return False
    name = path.rpartition("/")[2]
    names = _names_in(join(root, _folder_of(path)))
    return name in names or any(has_image_suffix(n) and os.path.splitext(n)[0] == name for n in names)  # noqa: PTH122


def _find_columns(
    file: Place,
    first: list[list[str]],
    path_column: str | None,
    label_column: str | None,
    *,
    may_have_header: bool = True,
) -> Columns:
    if not first:
        raise SourceError(f"{printable(file)} is empty; expected a path and a label in each row.")
    named = {column for column in (path_column, label_column) if column is not None and not is_whole(column)}
    has_header = may_have_header and (bool(named) or not any(has_image_suffix(cell) for cell in first[0]))
    header = [cell.strip() for cell in first[0]] if has_header else []
    sample = first[-1] if has_header else first[0]
    width = len(first[0])
    lower = [name.lower() for name in header]
    split = lower.index("split") if "split" in lower else None

    def find(names: tuple[str, ...], free: list[int], by_content: bool) -> int | None:
        held = [i for i in free if by_content and has_image_suffix(sample[i])]
        known = [lower.index(name) for name in names if name in lower and lower.index(name) in free]
        best = held[:1] or known[:1] or free
        return best[0] if len(best) == 1 else None

    free = [i for i in range(width) if i != split]
    label = _place(file, header, width, "--label-column", label_column) if label_column is not None else None
    path = (
        _place(file, header, width, "--path-column", path_column)
        if path_column is not None
        else find(PATH_NAMES, [i for i in free if i != label], True)
    )
    if label is None:
        label = find(LABEL_NAMES, [i for i in free if i != path], False)
    if width == 1:
        raise SourceError(
            f"{printable(file)} has one column (first: {printable(first[0][0])}); expected a path and a label."
        )
    if path is None or label is None or path == label:
        option, what = ("--path-column", "image paths") if path is None else ("--label-column", "labels")
        has = ", ".join(header) if header else f"{width} columns and no header"
        raise SourceError(
            f"{printable(file)}: no column is plainly that of the {what} ({printable(has)}); pass {option}, "
            "or --target COLUMN if it is a table of numbers."
        )
    return Columns(path=path, label=label, split=split, has_header=has_header)


def _place(file: Place, header: list[str], width: int, option: str, given: str) -> int:
    """Return where a column is that was given by name, or by number from 1."""
    if given in header:
        return header.index(given)
    if is_whole(given) and 1 <= int(given) <= width:
        return int(given) - 1
    has = ", ".join(header) if header else f"no header, {width} columns: pass a number"
    raise ConfigError(f"{option} {printable(given)}: {printable(file)} has no such column ({printable(has)}).")


def _split_in(file: Place, line: int, cells: list[str], columns: Columns) -> str:
    if columns.split is None:
        return "train"
    word = cells[columns.split].strip()
    if word.lower() not in SPLIT_WORDS:
        raise SourceError(
            f"{printable(file)}, line {line}: {printable(word)!r} is no split; write train, valid or test."
        )
    return SPLIT_WORDS[word.lower()]


def _inside(file: Place, line: int, path: str, root: Place, allow_outside: bool) -> str:
    """Return `path` relative to `root` and without `..`; it is read as it is returned here."""
    if not path.strip() or "\0" in path:
        raise SourceError(f"{printable(file)}, line {line}: {printable(path)!r} is no path; mend the row.")
    given = path
    if is_url(path):
        if path.startswith(f"{root}/"):
            path = path.removeprefix(f"{root}/").lstrip("/") or "."
        elif (local := local_path(path)) is not None:
            path = local
        elif allow_outside:
            return path
        else:
            raise _outside(file, line, given, root)
    plain = os.path.normpath(path)
    if isinstance(root, Path) and os.path.isabs(plain):  # noqa: PTH117
        relative = os.path.relpath(plain, root.absolute())
        # An absolute path that leads out stays so: it says more than a row of dots.
        plain = relative if relative.split("/")[0] != ".." else plain
    if (plain.startswith("/") or plain.split("/")[0] == "..") and not allow_outside:
        raise _outside(file, line, given, root)
    return plain


def _outside(file: Place, line: int, path: str, root: Place) -> SourceError:
    return SourceError(
        f"{printable(file)}, line {line}: {printable(path)} lies outside {printable(root)}; "
        "pass --root FOLDER, or --allow-outside if it may be read."
    )


def _existing(file: Place, root: Place, paths: list[str]) -> dict[str, str]:
    """Return {path: path of the file}, which differ where a list of ids leaves the ending out, as Kaggle's do.

    Raises:
        SourceError: a file does not exist, or two could be meant.
    """
    # One listing per folder, not one stat per file.
    folders = list(dict.fromkeys(_folder_of(path) for path in paths))
    listings = each(lambda folder: _names_in(join(root, folder)), folders, root)
    names_of = dict(zip(folders, listings, strict=True))
    named = {path: path for path in paths}
    missing = [path for path in paths if path.rpartition("/")[2] not in names_of[_folder_of(path)]]
    if missing:
        by_stem: dict[tuple[str, str], list[str]] = {}
        for folder in {_folder_of(path) for path in missing}:
            for name in filter(has_image_suffix, names_of[folder]):
                by_stem.setdefault((folder, os.path.splitext(name)[0]), []).append(name)  # noqa: PTH122
        for path in missing:
            head, slash, stem = path.rpartition("/")
            full = [head + slash + name for name in by_stem.get((_folder_of(path), stem), ())]
            if len(full) == 1 and full[0] not in named:
                named[path] = full[0]
        missing = [path for path in missing if named[path] == path]
    if missing:
        other = "write / for \\ in the paths, or " if "\\" in missing[0] else ""
        raise SourceError(
            f"{printable(file)}: {len(missing):,} of {len(paths):,} files do not exist (first: {printable(missing[0])} "
            f"in {printable(root)}); {other}pass --root FOLDER if the paths start elsewhere."
        )
    return named


def _folder_of(path: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return folder or slash


def _names_in(folder: Place) -> set[str]:
    try:
        return {entry.name for entry in all_entries(folder) if is_file(entry)}  # reading a pipe could hang
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as e:
        raise unlisted(folder, e) from e
