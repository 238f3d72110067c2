"""The layout of class folders: `ROOT/[SPLIT/]CLASS/**/NAME.jpg`."""

from __future__ import annotations

import os

from fastload.errors import SourceError, printable
from fastload.places import Place
from fastload.records import Record, Source
from fastload.sources.labels import in_order
from fastload.sources.scan import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    files_in,
    folders_in,
    has_image_suffix,
    walk_each,
)
from fastload.sources.splits import split_folders


def read_class_folders(root: Place) -> Source:
    """List `root`, whose folders are classes, or splits that hold classes.

    Every folder at the first level that is named like a split (train, training, val, valid, ...) makes
    it a folder of splits; otherwise all samples are `train`. Classes are the folder names, sorted as
    text, over all splits: the same labels that torchvision's ImageFolder gives. A folder without images is
    no class: unpacking leaves such folders behind.

    Raises:
        SourceError: no images, no class folders, or folders that are splits and classes mixed.
    """
    splits = split_folders(root)
    roots = [(split, root / name, f"{name}/") for split, name in splits] or [("train", root, "")]

    num_ignored = 0
    found: dict[tuple[str, str], list[str]] = {}  # (split, class) -> paths: a tuple for each would double the memory
    empty: list[str] = []
    unread: list[str] = []
    for split, folder, prefix in roots:
        names = folders_in(folder)
        for class_name, files in zip(names, walk_each([folder / name for name in names], root), strict=True):
            paths = []
            for path, is_image in files:
                if is_image:
                    paths.append(f"{prefix}{class_name}/{path}")
                else:
                    num_ignored += 1
                    if os.path.splitext(path)[1].lower() in UNREAD_SUFFIXES:  # noqa: PTH122
                        unread.append(f"{prefix}{class_name}/{path}")
            if paths:
                found.setdefault((split, class_name), []).extend(paths)
            else:
                empty.append(f"{prefix}{class_name}")
    if not found:
        raise SourceError(_nothing_found(root, [folder for _, folder, _ in roots], num_ignored))
    beside = _images_beside(root, splits)
    classes = tuple(sorted({class_name for _, class_name in found}))
    if not splits and len(classes) == 1 and split_folders(root / classes[0]):
        inner = printable(root / classes[0])
        raise SourceError(f"{inner} holds split folders, so it is no class; convert {inner} itself.")
    notes = [*_left_out(unread), *(_inner_folders(root, found) if len(classes) == 1 else [])]
    if empty:
        notes.append(f"folders without images, so no classes: {len(empty):,} (first: {printable(empty[0])})")
    if beside:
        notes.append(f"images outside every class folder, left out: {len(beside):,} (first: {printable(beside[0])})")
    label_of = {name: label for label, name in enumerate(classes)}
    return Source(
        root=root,
        layout="split-class-folders" if splits else "class-folders",
        classes=classes,
        records=in_order(
            Record(path=path, label=label_of[name], split=split)
            for (split, name), paths in found.items()
            for path in paths
        ),
        num_ignored=num_ignored + len(beside),
        notes=tuple(notes),
    )


def _left_out(unread: list[str]) -> list[str]:
    """Return what to say of images in formats that nobody here reads."""
    if not unread:
        return []
    return [
        f"images in formats that are not read, left out: {len(unread):,} (first: {printable(unread[0])}); "
        "save them as JPEG or PNG"
    ]


def _inner_folders(root: Place, found: dict[tuple[str, str], list[str]]) -> list[str]:
    """Return what to say where the only class holds folders of its own: an archive that was unpacked into its name."""
    (_, name), paths = next(iter(found.items()))
    after = paths[0].find(f"{name}/") + len(name) + 1
    inner = sorted({path[after:].split("/")[0] for path in paths if "/" in path[after:]})
    if len(inner) < 2:
        return []
    shown = printable(root / paths[0][: after - 1])
    return [
        f"{shown} holds {len(inner):,} folders (first: {printable(inner[0])}); if these are the classes, convert that"
    ]


def _images_beside(root: Place, splits: list[tuple[str, str]]) -> list[str]:
    """Return the images that lie right in `root` or in a split folder, where no class claims them."""
    prefixes = ["", *(f"{name}/" for _, name in splits)]
    return [prefix + name for prefix in prefixes for name in files_in(root / prefix) if has_image_suffix(name)]


def _nothing_found(root: Place, folders: list[Place], num_ignored: int) -> str:
    for folder in folders:
        if any(has_image_suffix(name) for name in files_in(folder)):
            return (
                f"{printable(folder)} holds images but no class folders; "
                f"put them into one folder per class, e.g. {printable(folder.name)}/cat/0001.jpg, "
                "or pass the list that has their labels (a .csv, .tsv or .txt file)."
            )
    seen = f" ({num_ignored:,} other files were seen)" if num_ignored else ""
    known = ", ".join(sorted(IMAGE_SUFFIXES))
    return f"{printable(root)} holds no images{seen}; expected CLASS/NAME with a name ending in one of {known}."
