"""Sources: where raw samples lie, and which sample has which label. No image is opened here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fastload.errors import ConfigError, SourceError, printable, several
from fastload.places import Place, as_place, exists, fresh_listings
from fastload.records import UNLABELLED, Source
from fastload.sources import lists, tables
from fastload.sources.filenames import looks_like_file_names, read_file_names
from fastload.sources.folders import read_class_folders
from fastload.sources.idx import looks_like_idx, read_idx
from fastload.sources.libraries import read_huggingface, read_torchvision
from fastload.sources.lists import read_list
from fastload.sources.names import with_names_beside, with_names_from
from fastload.sources.parquet import read_parquet
from fastload.sources.scan import files_in, folders_in, has_image
from fastload.sources.sidecars import looks_like_sidecars, read_sidecars
from fastload.sources.splits import cut_splits
from fastload.sources.tables import Table, describe_table, is_packed_table, read_table
from fastload.sources.webdataset import read_webdataset
from fastload.urls import Url, is_url

__all__ = ["LAYOUTS", "Table", "cut_splits", "describe", "describe_table", "detect", "is_packed_table", "library_name",
           "read_table", "remarks"]  # fmt: skip

TORCHVISION, HUGGINGFACE = "torchvision:", "hf:"


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What a user passed beside the source; a layout that cannot use an option refuses it."""

    path_column: str | None = None
    label_column: str | None = None
    root: Place | None = None
    download: bool = False
    allow_outside: bool = False

    def given(self) -> set[str]:
        return {name for name in self.__dataclass_fields__ if getattr(self, name) not in (None, False)}


@dataclass(frozen=True, kw_only=True)
class _Layout:
    read: Callable[[str, _Options], Source]
    options: set[str] = field(default_factory=set)
    is_folder: bool = False


LAYOUTS = {
    "class-folders": _Layout(read=lambda spec, o: read_class_folders(as_place(spec)), is_folder=True),
    "file-names": _Layout(read=lambda spec, o: read_file_names(as_place(spec)), is_folder=True),
    "sidecars": _Layout(read=lambda spec, o: read_sidecars(as_place(spec)), is_folder=True),
    "idx": _Layout(read=lambda spec, o: read_idx(as_place(spec)), is_folder=True),
    "list": _Layout(
        read=lambda spec, o: read_list(
            as_place(spec),
            root=o.root,
            path_column=o.path_column,
            label_column=o.label_column,
            allow_outside=o.allow_outside,
        ),
        options={"path_column", "label_column", "root", "allow_outside"},
    ),
    "webdataset": _Layout(read=lambda spec, o: read_webdataset(spec)),
    "parquet": _Layout(
        read=lambda spec, o: read_parquet(as_place(spec), label_column=o.label_column), options={"label_column"}
    ),
    "torchvision": _Layout(
        read=lambda spec, o: read_torchvision(spec.removeprefix(TORCHVISION), root=o.root, download=o.download),
        options={"root", "download"},
    ),
    "huggingface": _Layout(
        read=lambda spec, o: read_huggingface(
            spec.removeprefix(HUGGINGFACE),
            label_column=o.label_column,
            download=o.download,
            allow_outside=o.allow_outside,
        ),
        options={"label_column", "download", "allow_outside"},
    ),
}


# A folder of splits is told by another name, which is part of the digest of every such dataset.
_SAME_LAYOUT = {"split-class-folders": "class-folders"}


def detect(
    spec: str | Path | Url,
    *,
    layout: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    class_names: str | Path | Url | None = None,
    root: str | Path | Url | None = None,
    download: bool = False,
    allow_outside: bool = False,
) -> Source:
    """List the samples of a source, in the layout it is in.

    Args:
        spec: a folder, a list, tars (`shards/{000..099}.tar`), a parquet file, or the URL of one that fsspec
            opens (`s3://bucket/food11`); `torchvision:NAME` or `hf:NAME_OR_PATH`.
        layout: one of LAYOUTS, or a source's own `layout`, where it shall not be found.
        path_column, label_column: of a list, parquet file or Hugging Face dataset, by name.
        class_names: a file (or URL) with names for people; without it `cat_to_name.json`, in the root or above it.
        root: what the paths of a list are relative to, a folder or URL, or torchvision's root.
        download: let a library fetch what is not there.
        allow_outside: take paths of a list, or of a Hugging Face dataset, that lead out of its root.

    Raises:
        ConfigError: an option that cannot be right, or that the layout cannot use; or fsspec cannot open the URL.
        SourceError: nothing there, no images, or no known layout.
    """
    place = Path() if _is_library(str(spec)) else as_place(spec)
    spec = str(spec)
    root = as_place(root) if root is not None else None
    options = _Options(path_column=path_column, label_column=label_column, root=root, download=download,
                       allow_outside=allow_outside)  # fmt: skip
    with fresh_listings(place), fresh_listings(root or Path()):
        name = _SAME_LAYOUT.get(layout, layout) if layout else _find_layout(spec)
        chosen = _checked_layout(name, spec, options)
        source = chosen.read(spec, options)
        if layout is None and not source.classes:
            raise SourceError(
                f"{printable(spec)} looks like the layout {name}, and no sample has a label; pass --layout {name} to "
                "keep them for prediction, or unpack it if it is an archive of class folders."
            )
        if class_names is not None:
            return with_names_from(source, as_place(class_names))
        return with_names_beside(source) if chosen.is_folder or name == "list" else source


def _checked_layout(name: str, spec: str, options: _Options) -> _Layout:
    if name not in LAYOUTS:
        raise ConfigError(f"--layout {printable(name)}: not one of {', '.join(LAYOUTS)}.")
    layout = LAYOUTS[name]
    if name not in ("torchvision", "huggingface"):
        if not ("{" in spec and name == "webdataset") and not exists(as_place(spec), SourceError):
            raise SourceError(f"{printable(spec)}: no such folder or file; check the path.")
        if layout.is_folder and not as_place(spec).is_dir():
            raise SourceError(f"{printable(spec)} is a file; the layout {name} wants a folder.")
    if unused := options.given() - layout.options:
        flag = "--" + min(unused).replace("_", "-")
        raise ConfigError(f"{flag} means nothing to the layout {name} of {printable(spec)}; leave it out.")
    return layout


def describe(source: Source) -> list[str]:
    """Return the sentences that tell a person what was found."""
    records = source.records
    counts = ", ".join(f"{count:,} {split}" for split, count in source.counts().items())
    names = [
        name if shown == name else f"{name} ({shown})"
        for name, shown in zip(source.classes, source.display_names, strict=True)
    ]
    lines = [
        f"layout: {source.layout}, in {source.root}",
        f"samples: {counts}{', 1 channel (grey)' if source.num_channels == 1 else ''}",
        f"classes: {len(names):,}: {several(names)}" if names else "classes: none, all samples are unlabelled",
    ]
    lines += remarks(source)
    # From the ends and the middle: three neighbours would all be of one class.
    for record in [records[i] for i in sorted({0, len(records) // 2, len(records) - 1})]:
        label = "unlabelled" if record.label == UNLABELLED else source.classes[record.label]
        lines.append(f"example: {record.path} -> {record.split}, {label}")
    return [printable(line) for line in lines]


def remarks(source: Source) -> list[str]:
    """Return the sentences on what a person might not expect of a listing, before it costs an hour to convert."""
    num_of = Counter(r.label for r in source.records)
    in_train = {r.label for r in source.records if r.split == "train"}
    lines = []
    if num_of[UNLABELLED]:
        lines.append(f"unlabelled: {num_of[UNLABELLED]:,}, kept for prediction")
    if source.num_ignored:
        lines.append(f"ignored: {source.num_ignored:,} other files")
    lines += source.notes
    if len(source.classes) == 1:
        lines.append(f"one class only, {source.classes[0]}: a classifier learns nothing from it")
    missing = [name for label, name in enumerate(source.classes) if num_of[label] and label not in in_train]
    if not in_train:
        lines.append("no split train: nothing to train on, and no mean and deviation to normalize with")
    elif missing:
        lines.append(f"classes that train does not have: {len(missing):,} (first: {missing[0]})")
    return [printable(line) for line in lines]


def _find_layout(spec: str) -> str:
    if _is_library(spec):
        return "torchvision" if spec.startswith(TORCHVISION) else "huggingface"
    path, lower = as_place(spec), spec.lower()
    if lower.endswith(".tar") and not (exists(path, SourceError) and path.is_dir()):
        return "webdataset"
    if not exists(path, SourceError):
        raise SourceError(f"{printable(spec)}: no such folder or file; check the path.")
    if path.is_dir():
        return _find_folder_layout(path)
    if lower.endswith(".parquet"):
        return "parquet"
    if lower.endswith(lists.SUFFIXES):
        return "list"
    table = ", or pass --target COLUMN if it is a table" if lower.endswith(tables.SUFFIXES) else ""
    raise SourceError(
        f"{printable(spec)} is a file of no known kind; "
        f"pass a folder, a list (.csv, .tsv, .txt), .tar or .parquet{table}."
    )


def library_name(source: str | Source) -> str | None:
    """Return what the dataset of a library is called (`hf:org/Food101`: Food101); None of any other source."""
    if isinstance(source, Source):
        return source.name if source.layout in ("torchvision", "huggingface") else None
    return source.rstrip("/").rpartition("/")[2].rpartition(":")[2] if _is_library(source) else None


def _is_library(spec: str) -> bool:
    return spec.startswith((TORCHVISION, HUGGINGFACE)) and not is_url(spec)  # hf:// is fsspec's


def _find_folder_layout(root: Place) -> str:
    if looks_like_sidecars(root):
        return "sidecars"
    if looks_like_file_names(root):
        return "file-names"
    if not has_image(root):
        if looks_like_idx(root):
            return "idx"
        for suffix, layout in ((".tar", "webdataset"), (".parquet", "parquet")):
            if _holds(root, suffix):
                return layout
    return "class-folders"


def _holds(root: Place, suffix: str) -> bool:
    folders = [root, *(root / name for name in folders_in(root))]
    return any(name.endswith(suffix) for folder in folders for name in files_in(folder))
