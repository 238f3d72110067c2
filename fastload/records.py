"""The nouns every floor shares: splits, records, sources."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "valid", "test")

# The words people use for the three splits, as folder names (compared in lower case).
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid",
    "test": "test", "testing": "test", "evaluation": "test",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A sample before decoding.

    Attributes:
        path: relative to the source's root, with forward slashes.
        label: index into the source's classes.
        split: `train`, `valid` or `test`.
    """

    path: str
    label: int
    split: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a layout reader found: where the files lie and which sample has which label.

    Attributes:
        root: the folder that record paths are relative to.
        layout: name of the layout, e.g. `class-folders`.
        classes: class names, index = label.
        records: in a fixed order that does not depend on the file system.
        num_ignored: files that were seen and are no images by their name.
    """

    root: Path
    layout: str
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    num_ignored: int = 0

    def counts(self) -> dict[str, int]:
        """Return the number of records per split, in the order train, valid, test."""
        found = Counter(record.split for record in self.records)
        return {split: found[split] for split in SPLITS if found[split]}

    def digest(self) -> str:
        """Return SHA-256 (hex) over layout, classes and every record: the identity of the listing."""
        sha = hashlib.sha256()
        for part in (self.layout, *self.classes):
            sha.update(part.encode("utf-8", "surrogateescape") + b"\0")
        for r in self.records:
            sha.update(f"{r.split}\0{r.label}\0{r.path}\0".encode("utf-8", "surrogateescape"))
        return sha.hexdigest()


def stable_rank(seed: int, path: str) -> bytes:
    """Return a key that sorts paths in a random-looking order depending on nothing but seed and path.

    A hash, not a generator: the order of two samples stays the same when others come or go, and on
    every version of every library.
    """
    data = path.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=16, key=seed.to_bytes(8, "little")).digest()
