"""What the tests of sources share: random truths, and the trees that say them in each layout."""

from __future__ import annotations

import csv
import io
import os
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from fastload.records import UNLABELLED, Source

SPLIT_FOLDERS = {"train": "Training", "valid": "val", "test": "evaluation"}


@dataclass(frozen=True)
class Sample:
    """One sample of a random truth; `content` tells it from all others."""

    split: str
    label: str | None
    name: str
    content: bytes


def _is_name(text: str) -> bool:
    plain = text not in SPLIT_FOLDERS and not text.startswith(".") and text == text.strip()
    return plain and 0 < len(os.fsencode(text)) < 90


# Whatever a file system takes: spaces, line ends, quotes, bytes that are no UTF-8, upper and lower case.
hostile_names = st.one_of(
    st.text(st.characters(exclude_characters="/\0\ufeff", exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.binary(min_size=1, max_size=8).map(os.fsdecode).filter(lambda t: "/" not in t and "\0" not in t),
    st.sampled_from(["a", "A", "new\nline", "two words", "Ärger", "a;b,c\t'\"", "-rf", "1", "10", "2", "02"]),
).filter(_is_name)
labels = hostile_names.filter(lambda t: "_" not in t and "\n" not in t and "\r" not in t)


@st.composite
def truths(draw: st.DrawFn, *, unlabelled: bool = False, splits: bool = True) -> list[Sample]:
    """A list of at least one labelled sample; names are unique."""
    names = draw(st.lists(hostile_names.filter(lambda t: "_" not in t), min_size=1, max_size=9, unique=True))
    classes = draw(st.lists(labels, min_size=1, max_size=4, unique=True))
    some_split = st.sampled_from(list(SPLIT_FOLDERS)) if splits else st.just("train")
    some_class = st.sampled_from([*classes, None] if unlabelled else classes)
    suffix = st.sampled_from([".jpg", ".JPEG", ".png"])
    truth = [
        Sample(split=draw(some_split), label=draw(some_class), name=name + draw(suffix), content=b"%d" % i)
        for i, name in enumerate(names)
    ]
    truth[0] = Sample(split=truth[0].split, label=classes[0], name=truth[0].name, content=b"0")
    return truth


def prefix(sample: Sample, splits: bool) -> str:
    return f"{SPLIT_FOLDERS[sample.split]}/" if splits else ""


def write_files(root: Path, files: dict[str, bytes], seed: int) -> None:
    """Write files in an order that `seed` decides: no listing may depend on it."""
    order = list(files)
    random.Random(seed).shuffle(order)
    for path in order:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(files[path])


def class_folders(truth: list[Sample], root: Path, splits: bool, seed: int) -> str:
    write_files(root, {f"{prefix(s, splits)}{s.label}/{s.name}": s.content for s in truth}, seed)
    return str(root)


def file_names(truth: list[Sample], root: Path, splits: bool, seed: int) -> str:
    names = [(s, s.name if s.label is None else f"{s.label}_{s.name}") for s in truth]
    write_files(root, {prefix(s, splits) + name: s.content for s, name in names}, seed)
    return str(root)


def sidecars(truth: list[Sample], root: Path, splits: bool, seed: int) -> str:
    files: dict[str, bytes] = {}
    for i, s in enumerate(truth):
        # Each in its own pair of folders: stems may be the same, and the folder's name means nothing.
        files[f"{prefix(s, splits)}x{i % 3} {i}_image/{s.name}"] = s.content
        text = f" {s.label}\n".encode("utf-8", "surrogateescape")
        files[f"{prefix(s, splits)}x{i % 3} {i}_label/{Path(s.name).stem}.txt"] = text
    write_files(root, files, seed)
    return str(root)


def a_list(truth: list[Sample], root: Path, splits: bool, seed: int, suffix: str = ".csv", header: bool = True) -> str:
    write_files(root, {f"images/{s.name}": s.content for s in truth}, seed)
    rows = [[f"images/{s.name}", *([s.split] if splits else []), s.label or ""] for s in truth]
    random.Random(seed).shuffle(rows)
    file = root / f"list{suffix}"
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as opened:
        # Every cell is quoted where there is no header: a name with a quote in it must not look like one.
        writer = csv.writer(opened, delimiter="," if suffix == ".csv" else "\t", quoting=csv.QUOTE_ALL)
        writer.writerows([["Picture", *(["split"] if splits else []), "Kind"], *rows] if header or splits else rows)
    return str(file)


def tars(truth: list[Sample], root: Path, splits: bool, seed: int) -> str:
    root.mkdir(parents=True, exist_ok=True)
    order = list(truth)
    random.Random(seed).shuffle(order)
    for split in {s.split for s in truth}:
        with tarfile.open(root / f"{split}-000.tar", "w") as tar:
            for s in order:
                if s.split == split:
                    # A key ends at the first dot, so a name must not have one.
                    key = f"{s.content.decode()} {s.name.replace('.', '~')}"
                    add(tar, f"in/{key}.{Path(s.name).suffix[1:]}", s.content)
                    if s.label is not None:
                        add(tar, f"in/{key}.cls", s.label.encode("utf-8", "surrogateescape"))
    return str(root)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def content_of(source: Source) -> set[tuple[bytes, str, str | None]]:
    """Return (content, split, label text) of every sample: what any layout of the same truth has to give."""
    found = [
        (source.read(r), r.split, None if r.label == UNLABELLED else source.classes[r.label]) for r in source.records
    ]
    assert len(found) == len(set(found)) == len({r.path for r in source.records})
    assert all(isinstance(content, bytes) for content, _, _ in found)
    return set(found)  # type: ignore[arg-type]


def expected(truth: list[Sample]) -> set[tuple[bytes, str, str | None]]:
    return {(s.content, s.split, s.label) for s in truth}
