"""From label texts and numbers to classes and records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fastload.errors import SourceError, printable
from fastload.records import SPLITS, UNLABELLED, Record


def in_order(records: Iterable[Record]) -> tuple[Record, ...]:
    """Return records in the order of every source: by split, then path."""
    return tuple(sorted(records, key=lambda r: (SPLITS.index(r.split), r.path)))


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names that are no folders in their order: by number where all are whole numbers, else as text."""
    found = set(names)
    if all(is_whole(name) for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def is_whole(text: str) -> bool:
    """Tell whether `text` is a whole number in plain digits, short enough to be one on purpose."""
    return re.fullmatch(r"-?[0-9]{1,18}", text) is not None


def from_texts(found: Iterable[tuple[str, str, str | None]]) -> tuple[tuple[str, ...], tuple[Record, ...]]:
    """Return (classes, records) of (split, path, label text or None for unlabelled)."""
    found = list(found)
    classes = sorted_classes(text for _, _, text in found if text is not None)
    label_of: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
    label_of[None] = UNLABELLED
    return classes, in_order(Record(path=path, label=label_of[text], split=split) for split, path, text in found)


def from_numbers(
    found: Iterable[tuple[str, str, int | None]], classes: Sequence[str], named: str
) -> tuple[Record, ...]:
    """Return the records of (split, path, label), where the source knows its classes; None and -1 are unlabelled.

    Raises:
        SourceError: a label that is no class, found in the source called `named`.
    """
    records = []
    for split, path, number in found:
        label = UNLABELLED if number is None else int(number)
        if not UNLABELLED <= label < len(classes):
            raise SourceError(
                f"{printable(named)}: {printable(path)} has label {label}, and there are {len(classes)} classes; "
                "mend the labels."
            )
        records.append(Record(path=path, label=label, split=split))
    return in_order(records)
