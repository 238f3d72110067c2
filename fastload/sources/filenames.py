"""The layout of labels in file names: `ROOT/[SPLIT/]LABEL_REST.jpg`, as in `food11/training/3_102.jpg`."""

from __future__ import annotations

from fastload.errors import SourceError, printable
from fastload.places import Place
from fastload.records import Source
from fastload.sources.labels import from_texts
from fastload.sources.scan import files_in, folders_in, has_image, has_image_suffix
from fastload.sources.splits import split_folders, split_prefixes


def read_file_names(root: Place) -> Source:
    """List `root`, or its split folders, whose images carry their label before the first `_` of their name.

    An image without a `_`, or with nothing before it, is unlabelled. Classes are the labels, sorted by number
    where all are whole numbers.

    Raises:
        SourceError: no images, or folders that are splits and others mixed.
    """
    found: list[tuple[str, str, str | None]] = []
    num_ignored = 0
    for split, prefix in split_prefixes(root):
        for name in files_in(root / prefix):
            if has_image_suffix(name):
                label, underscore, _ = name.partition("_")
                found.append((split, prefix + name, label if label and underscore else None))
            else:
                num_ignored += 1
    if not found:
        raise SourceError(f"{printable(root)} holds no images; expected [SPLIT/]LABEL_NAME.jpg, e.g. train/3_102.jpg.")
    classes, records = from_texts(found)
    return Source(root=root, layout="file-names", classes=classes, records=records, num_ignored=num_ignored)


def looks_like_file_names(root: Place) -> bool:
    """Tell whether split folders under `root` hold labelled images and no folders.

    Without split folders the layout has to be asked for: any camera's `IMG_0001.jpg` would fit it.
    """
    splits = split_folders(root)
    if not splits or _any_folder(root, splits):
        return False
    names = (name for _, folder in splits for name in files_in(root / folder))
    return any(has_image_suffix(name) and name.find("_") > 0 for name in names)


def _any_folder(root: Place, splits: list[tuple[str, str]]) -> bool:
    return any(has_image(root / folder / name) for _, folder in splits for name in folders_in(root / folder))
