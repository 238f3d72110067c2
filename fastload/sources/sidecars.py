"""The layout of sidecar text: `[SPLIT/]X_image/NAME.jpg`, whose label is the text in `[SPLIT/]X_label/NAME.txt`."""

from __future__ import annotations

from pathlib import Path

from fastload.errors import SourceError, printable
from fastload.places import Place, each
from fastload.records import Source
from fastload.sources.labels import from_texts
from fastload.sources.scan import files_in, folders_in, has_image_suffix
from fastload.sources.splits import split_prefixes

IMAGE_END, LABEL_END = "_image", "_label"
MAX_LABEL_BYTES = 1024  # a label is a word: a longer file is something else


def read_sidecars(root: Place) -> Source:
    """List the pairs of folders `X_image` and `X_label` in `root` or in its split folders.

    Classes are the texts, sorted by number where all are whole numbers.

    Raises:
        SourceError: no such folders, an image without its text, or a text that is no label.
    """
    pairs: list[tuple[str, str, str]] = []  # split, image, its text
    missing: list[str] = []
    num_ignored = num_unused = 0
    for split, prefix in split_prefixes(root):
        for name in _image_folders(root / prefix):
            images = f"{prefix}{name}"
            labels = images.removesuffix(IMAGE_END) + LABEL_END
            texts = _texts_in(root / labels)
            num_used = 0
            for file in files_in(root / images):
                if not has_image_suffix(file):
                    num_ignored += 1
                elif (text := f"{Path(file).stem}.txt") in texts:
                    pairs.append((split, f"{images}/{file}", f"{labels}/{text}"))
                    num_used += 1
                else:
                    missing.append(f"{labels}/{text}")
            num_unused += max(0, len(texts) - num_used)
    if missing:
        total = len(pairs) + len(missing)
        raise SourceError(
            f"{printable(root)}: {len(missing):,} of {total:,} images have no label file "
            f"(first: {printable(min(missing))}); add the files, or move those images away."
        )
    if not pairs:
        raise SourceError(f"{printable(root)} holds no images in X_image beside X_label, e.g. ants_image, ants_label.")
    notes = (f"label files without an image: {num_unused:,}",) if num_unused else ()
    label_of = each(lambda pair: _label_in(root / pair[2]), pairs, root)
    classes, records = from_texts((split, path, text) for (split, path, _), text in zip(pairs, label_of, strict=True))
    return Source(root=root, layout="sidecars", classes=classes, records=records, num_ignored=num_ignored, notes=notes)


def looks_like_sidecars(root: Place) -> bool:
    """Tell whether `root`, or a split folder of it, holds a pair of X_image and X_label."""
    for _, prefix in split_prefixes(root):
        names = set(folders_in(root / prefix))
        if any(name.endswith(IMAGE_END) and name.removesuffix(IMAGE_END) + LABEL_END in names for name in names):
            return True
    return False


def _image_folders(folder: Place) -> list[str]:
    return [name for name in folders_in(folder) if name.endswith(IMAGE_END)]


def _texts_in(folder: Place) -> set[str]:
    return {name for name in files_in(folder) if name.endswith(".txt")} if folder.is_dir() else set()


def _label_in(file: Place) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_LABEL_BYTES + 1)
    except OSError as e:
        raise SourceError(f"{printable(file)} cannot be read ({e.strerror}); check its permissions.") from e
    label = data.decode("utf-8-sig", "surrogateescape").strip()
    if not label or "\n" in label or len(data) > MAX_LABEL_BYTES:
        what = f"holds {len(label.splitlines())} lines" if label else "is empty"
        raise SourceError(f"{printable(file)} {what}; expected one label, e.g. ants.")
    return label
