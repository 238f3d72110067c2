"""The layout of class folders: `ROOT/[SPLIT/]CLASS/**/NAME.jpg`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fastload.errors import ConfigError, SourceError, printable
from fastload.records import SPLIT_WORDS, SPLITS, Record, Source, stable_rank

# By name only: opening two million files to list them would take longer than converting most sets.
# Whether a file is an image is decided by its content, when it is decoded.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


def read_class_folders(root: Path) -> Source:
    """List `root`, whose folders are classes, or splits that hold classes.

    Every folder at the first level that is named like a split (train, training, val, valid, ...) makes
    it a folder of splits; otherwise all samples are `train`. Classes are the folder names, sorted as
    text, over all splits: the same labels that torchvision's ImageFolder gives.

    Raises:
        SourceError: no images, images outside class folders, or folders that are splits and classes mixed.
    """
    folders = sorted(_folders(root))
    splits = {name: SPLIT_WORDS[name.lower()] for name in folders if name.lower() in SPLIT_WORDS}
    others = [name for name in folders if name not in splits]
    if splits and any(_has_image(root / name) for name in others):
        named, other = (
            printable(next(iter(splits))),
            printable(next(n for n in others if _has_image(root / n))),
        )
        raise SourceError(
            f"{printable(root)} holds a split folder ({named}) beside {other}; move {other} into a split, "
            f"or rename {named} if it is a class."
        )
    if splits:
        layout = "split-class-folders"
        roots = [(splits[name], root / name, f"{name}/") for name in splits]
    else:
        layout = "class-folders"
        roots = [("train", root, "")]

    num_ignored = 0
    found: list[tuple[str, str, str]] = []  # split, class, path
    for split, folder, prefix in roots:
        for class_name in sorted(_folders(folder)):
            for path, is_image in _files(folder / class_name):
                if is_image:
                    found.append((split, class_name, f"{prefix}{class_name}/{path}"))
                else:
                    num_ignored += 1
    if not found:
        raise SourceError(_nothing_found(root, [folder for _, folder, _ in roots], num_ignored))
    classes = tuple(sorted({class_name for _, class_name, _ in found}))
    label_of = {name: label for label, name in enumerate(classes)}
    found.sort(key=lambda item: (SPLITS.index(item[0]), item[2]))
    records = tuple(Record(path=path, label=label_of[name], split=split) for split, name, path in found)
    return Source(root=root, layout=layout, classes=classes, records=records, num_ignored=num_ignored)


def cut_splits(source: Source, fractions: dict[str, float], seed: int) -> Source:
    """Move a stratified share of `train` to other splits, e.g. `{"valid": 0.1}`.

    Of each class, `round(fraction * n)` samples go, chosen by a hash of seed and path.

    Raises:
        ConfigError: a fraction outside 0..1, a split that is not valid or test, or one the source already has.
    """
    for split, fraction in fractions.items():
        if split not in SPLITS[1:]:
            raise ConfigError(f"--split {printable(split)}={fraction:g}: only valid and test can be cut from train.")
        if split in source.counts():
            raise ConfigError(f"--split {split}={fraction:g}: the source already has a {split} split; leave this out.")
    if not all(0 < f < 1 for f in fractions.values()) or sum(fractions.values()) >= 1:
        given = ", ".join(f"{s}={f:g}" for s, f in fractions.items())
        raise ConfigError(f"--split {given}: shares lie between 0 and 1 and leave something to train on.")

    by_class: dict[int, list[Record]] = {}
    for record in source.records:
        if record.split == "train":
            by_class.setdefault(record.label, []).append(record)
    moved: dict[str, str] = {}
    for members in by_class.values():
        members.sort(key=lambda r: stable_rank(seed, r.path))
        start = 0
        for split, fraction in fractions.items():
            stop = start + round(fraction * len(members))
            moved.update((r.path, split) for r in members[start:stop])
            start = stop
    records = [Record(path=r.path, label=r.label, split=moved.get(r.path, r.split)) for r in source.records]
    records.sort(key=lambda r: (SPLITS.index(r.split), r.path))
    return Source(root=source.root, layout=source.layout, classes=source.classes, records=tuple(records),
                  num_ignored=source.num_ignored)  # fmt: skip


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    except OSError as e:
        raise SourceError(f"{printable(root)}: cannot be listed ({e.strerror}); check its permissions.") from e


def _files(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield (path relative to `folder`, whether its name is an image's), depth first, hidden files left out."""
    # A link may point to a folder above it: each real folder is entered once on the way down.
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while stack:
        relative, above = stack.pop()
        here = folder / relative if relative else folder
        try:
            status = here.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = f"{relative}/{entry.name}" if relative else entry.name
                    if entry.is_dir():
                        stack.append((path, above | {identity}))
                    else:
                        yield path, os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
        except OSError as e:
            raise SourceError(f"{printable(here)}: cannot be listed ({e.strerror}); check its permissions.") from e


def _has_image(folder: Path) -> bool:
    return any(is_image for _, is_image in _files(folder))


def _nothing_found(root: Path, folders: list[Path], num_ignored: int) -> str:
    for folder in folders:
        with os.scandir(folder) as entries:
            if any(Path(e.name).suffix.lower() in IMAGE_SUFFIXES for e in entries):
                return (
                    f"{printable(folder)} holds images but no class folders; "
                    f"put them into one folder per class, e.g. {printable(folder.name)}/cat/0001.jpg."
                )
    seen = f" ({num_ignored:,} other files were seen)" if num_ignored else ""
    known = ", ".join(sorted(IMAGE_SUFFIXES))
    return f"{printable(root)} holds no images{seen}; expected CLASS/NAME with a name ending in one of {known}."
