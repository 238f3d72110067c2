"""Splits: which folders are splits, and cutting one from train."""

from __future__ import annotations

import dataclasses
import re

from fastload.errors import ConfigError, SourceError, printable
from fastload.places import Place
from fastload.records import SPLIT_WORDS, SPLITS, UNLABELLED, Record, Source, check_seed, known_split, stable_rank
from fastload.sources.labels import in_order
from fastload.sources.scan import folders_in, has_image


def split_folders(root: Place) -> list[tuple[str, str]]:
    """Return (split, folder name) of every folder right under `root` that is named like a split, sorted by name.

    Raises:
        SourceError: the folder cannot be listed, or another folder with images stands beside them.
    """
    names = folders_in(root)
    splits = [(SPLIT_WORDS[name.lower()], name) for name in names if name.lower() in SPLIT_WORDS]
    if splits:
        for other in names:
            if other.lower() not in SPLIT_WORDS and has_image(root / other):
                named, other = printable(splits[0][1]), printable(other)
                raise SourceError(
                    f"{printable(root)} holds a split folder ({named}) beside {other}; move {other} into a split, "
                    f"or rename {named} if it is a class."
                )
    return splits


def split_prefixes(root: Place) -> list[tuple[str, str]]:
    """Return (split, path prefix) of the split folders under `root`, `("valid", "val/")`; without any, all is `train`.

    Raises:
        SourceError: as of `split_folders`.
    """
    return [(split, f"{name}/") for split, name in split_folders(root)] or [("train", "")]


def split_of_name(path: str) -> str:
    """Return the split that a file's folders or name tell of (`val/0.tar`, `cc3m-train-0001.tar`), else `train`."""
    *folders, name = path.split("/")
    for word in (*reversed(folders), *re.split(r"[-_.]", name)):
        if word.lower() in SPLIT_WORDS:
            return SPLIT_WORDS[word.lower()]
    return "train"


def cut_splits(source: Source, fractions: dict[str, float], seed: int) -> Source:
    """Move a stratified share of `train` to other splits, e.g. `{"valid": 0.1}`.

    Of each class, `round(fraction * n)` samples go, chosen by a hash of seed and path, but never the last one:
    what `train` lacks cannot be learned. Unlabelled samples stay.

    Raises:
        ConfigError: a fraction outside 0..1, a split that is not valid or test, one the source already has, or one
            that is named twice (`val`, `valid`).
    """
    check_seed(seed)
    if len({known_split(split) for split in fractions}) < len(fractions):
        raise ConfigError(
            f"--split {printable(', '.join(fractions))}: one split is named twice; leave one of them out."
        )
    fractions = {known_split(split): fraction for split, fraction in fractions.items()}
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
        if record.split == "train" and record.label != UNLABELLED:
            by_class.setdefault(record.label, []).append(record)
    moved: dict[str, str] = {}
    for members in by_class.values():
        members.sort(key=lambda r: stable_rank(seed, r.path))
        start = 0
        for split, fraction in fractions.items():
            stop = min(start + round(fraction * len(members)), len(members) - 1)
            moved.update((r.path, split) for r in members[start:stop])
            start = stop
    records = (
        Record(path=r.path, label=r.label, split=moved[r.path]) if r.path in moved else r for r in source.records
    )
    return dataclasses.replace(source, records=in_order(records))
