"""The nouns every floor shares: splits, records, sources."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastload.errors import ConfigError, DecodeError
from fastload.places import Place, join, read_bytes

SPLITS = ("train", "valid", "test")

# The words people use for the three splits, as folder names (compared in lower case).
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid",
    "test": "test", "testing": "test", "evaluation": "test",
}  # fmt: skip

UNLABELLED = -1


def known_split(word: str) -> str:
    """Return which of the three splits a word means (`Val`: valid); a word that means none of them as it is."""
    return SPLIT_WORDS.get(word.lower(), word)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A sample before decoding. Sources hold millions: three fields, and no more.

    Attributes:
        path: relative to the source's root, with forward slashes; where samples are no files (rows,
            members of an archive), a name that is unique in the source.
        label: index into the source's classes, or -1 (UNLABELLED): kept for prediction, never trained on.
        split: `train`, `valid` or `test`.
    """

    path: str
    label: int
    split: str


# What gives a sample's content: an encoded image, or pixels, uint8 [H, W, C].
Reader = Callable[[Record], bytes | npt.NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a layout reader found: where the samples lie and which one has which label.

    Attributes:
        root: the folder that record paths are relative to, here or at a URL.
        layout: name of the layout, e.g. `class-folders`.
        classes: class names, index = label.
        records: in a fixed order that does not depend on the file system.
        num_ignored: files that were seen and are no samples.
        display_names: what people should read for each class; without them, the class names.
        num_channels: 3, or 1 where the source itself says that every image is grey.
        name: what the source is called; without it, its root's name.
        notes: sentences on what a person should know of the listing: what was left out, and the like.
        reader: gives a sample's content where it is no file of its own; see `read`.
    """

    root: Place
    layout: str
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    num_ignored: int = 0
    display_names: tuple[str, ...] = ()
    num_channels: int = 3
    name: str = ""
    notes: tuple[str, ...] = ()
    reader: Reader | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.display_names:
            object.__setattr__(self, "display_names", self.classes)
        if not self.name:
            object.__setattr__(self, "name", self.root.resolve().name)

    def read(self, record: Record) -> bytes | npt.NDArray[np.uint8]:
        """Return what `record` holds: an encoded image, or pixels as uint8 [H, W, C].

        Any number of threads may read at once, and so may processes, forked or sent there.

        Raises:
            DecodeError: it cannot be read.
        """
        if self.reader is not None:
            return self.reader(record)
        try:
            return read_bytes(self.root, record.path)
        except OSError as e:
            raise DecodeError(record.path, f"cannot be read ({e.strerror})") from e

    def file_of(self, record: Record) -> Place | None:
        """Return the file that holds `record`; None where only a library knows."""
        if self.reader is None:
            return join(self.root, record.path)
        file_of: Callable[[Record], Place] | None = getattr(self.reader, "file_of", None)
        return file_of(record) if file_of is not None else None

    def prepare(self, records: Iterable[Record]) -> None:
        """Do once, for processes that are forked later, what reading these records would do in each of them.

        Raises:
            SourceError: what holds them cannot be read.
            DatasetError: there is no room to unpack it.
        """
        if (prepare := getattr(self.reader, "prepare", None)) is not None:
            prepare(records)

    def counts(self) -> dict[str, int]:
        """Return the number of records per split, in the order train, valid, test."""
        found = Counter(record.split for record in self.records)
        return {split: found[split] for split in SPLITS if found[split]}

    def digest(self) -> str:
        """Return SHA-256 (hex) over layout, channels, classes and every record: the identity of the listing."""
        sha = hashlib.sha256(f"{self.num_channels} {len(self.classes)}\0".encode())
        for part in (self.layout, *self.classes):
            # surrogatepass, as a class name out of JSON may hold any code point; the length before it,
            # as one out of a list may hold a NUL.
            data = part.encode("utf-8", "surrogatepass")
            sha.update(b"%d\0%s" % (len(data), data))
        for r in self.records:
            sha.update(f"{r.split}\0{r.label}\0{r.path}\0".encode("utf-8", "surrogateescape"))
        return sha.hexdigest()


def check_seed(seed: int) -> None:
    """Raise ConfigError where `seed` is none that `stable_rank` takes."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed}: seeds lie between 0 and 2**63 - 1.")


def stable_rank(seed: int, path: str) -> bytes:
    """Return a key that sorts paths in a random-looking order depending on nothing but seed and path.

    A hash, not a generator: the order of two samples stays the same when others come or go, and on
    every version of every library.
    """
    data = path.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=16, key=seed.to_bytes(8, "little")).digest()
