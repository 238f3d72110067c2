"""Sources that a library knows: `torchvision:CIFAR10` and `hf:NAME_OR_PATH`."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastload.errors import ConfigError, DecodeError, SourceError, printable
from fastload.places import Place
from fastload.records import SPLIT_WORDS, Record, Source
from fastload.sources.extras import need
from fastload.sources.labels import from_numbers, from_texts
from fastload.sources.lists import LABEL_NAMES
from fastload.urls import Url

# The words that torchvision's classes take as `split`; the first known one of each split counts.
TORCHVISION_SPLITS = {"train": ("train", "trainval"), "valid": ("val", "valid"), "test": ("test",)}


def read_torchvision(name: str, *, root: Place | None, download: bool) -> Source:
    """List `torchvision.datasets.NAME`, any of its classes whose samples are (image, class number).

    Record paths are `NAME/SPLIT/NUMBER`. Where every image is grey (MNIST), the source has one channel.

    Args:
        name: of the class, e.g. `CIFAR10`.
        root: what the class takes as its root.
        download: let the class fetch its files; without it, nothing touches the network.

    Raises:
        ConfigError: no such class, or one that needs other arguments.
        SourceError: its files are missing, or its samples are no (image, class number).
    """
    datasets = importlib.import_module("torchvision.datasets")
    cls = getattr(datasets, name, None) if name in datasets.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, datasets.VisionDataset)):
        raise ConfigError(f"torchvision:{printable(name)}: torchvision has no such dataset; try torchvision:CIFAR10.")
    if isinstance(root, Url):
        raise ConfigError(f"--root {printable(root)}: torchvision reads local folders only; pass one.")
    loader = _Loader()
    splits = _open_torchvision(name, cls, root, download, loader)
    grey = True
    found: list[tuple[str, str, int | None]] = []
    for split, (dataset, path) in splits.items():
        for row in range(len(dataset)):
            image, label = _sample(name, dataset, row)
            grey = grey and getattr(image, "mode", "") == "L"
            found.append((split, f"{path}/{row:08d}", label))
    if not found:
        raise SourceError(f"torchvision:{name} has no samples in {printable(root)}; check --root.")
    names, *others = (getattr(dataset, "classes", None) for dataset, _ in splits.values())
    if any(other != names for other in others):
        raise SourceError(
            f"torchvision:{name}: its splits have different classes; check the files in {printable(root)}."
        )
    if isinstance(names, Sequence) and all(isinstance(n, str | tuple | list) for n in names):
        # ImageNet has several names for a class.
        classes = tuple(n if isinstance(n, str) else ", ".join(n) for n in names)
        records = from_numbers(found, classes, f"torchvision:{name}")
    else:
        classes, records = from_texts((s, p, str(label)) for s, p, label in found)
    loader.listing = False
    rows = {path: dataset for dataset, path in splits.values()}
    return Source(
        root=root or Path(), layout="torchvision", classes=classes, records=records, num_channels=1 if grey else 3,
        name=name, reader=LibraryReader(rows),
    )  # fmt: skip


class _Loader:
    """Stands in for torchvision's own loader: no file is read while listing, none is decoded after."""

    def __init__(self) -> None:
        self.listing = True

    def __call__(self, path: str | Path) -> bytes:
        return b"" if self.listing else Path(path).read_bytes()


class LibraryReader:
    """Reads sample NUMBER of the dataset that the rest of a record's path names."""

    def __init__(
        self, datasets: Mapping[str, Any], column: str | None = None, folders: Sequence[str] | None = None
    ) -> None:
        self.datasets, self.column, self.folders = datasets, column, folders

    def __call__(self, record: Record) -> bytes | npt.NDArray[np.uint8]:
        """Return one image, encoded, or as pixels where the library holds pixels.

        Raises:
            DecodeError: whatever the library says.
        """
        path, _, row = record.path.rpartition("/")
        try:
            sample = self.datasets[path][int(row)]
            image = sample[0] if self.column is None else sample[self.column]
            if isinstance(image, Mapping):  # Hugging Face: {"bytes", "path"}
                return image["bytes"] if image["bytes"] is not None else self._file(image["path"])
        except Exception as e:  # a library may raise anything
            raise DecodeError(record.path, f"cannot be read ({type(e).__name__}: {printable(e)})") from e
        if isinstance(image, bytes):
            return image
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def _file(self, path: str) -> bytes:
        """Return the content of a file that a row names: data, so it is not let lead just anywhere."""
        plain = os.path.abspath(path)  # noqa: PTH100 - links are followed, as in any folder of images
        if self.folders is not None and not plain.startswith(tuple(f"{folder}/" for folder in self.folders)):
            raise PermissionError(f"it names {path}, outside of the dataset; pass --allow-outside to read that")
        if not Path(plain).is_file():  # from a pipe nothing might come, for ever
            raise FileNotFoundError(f"it names {path}, which is no file")
        return Path(plain).read_bytes()


def _folders_of(library: Any, folder: Path) -> tuple[str, ...]:
    """Return where the images of a Hugging Face dataset may lie: in its own folder, or where things are fetched to."""
    from huggingface_hub import constants

    places = [str(folder)] if folder.exists() else []
    places += [str(library.config.HF_DATASETS_CACHE), str(constants.HF_HUB_CACHE)]
    both = (find(place) for place in places for find in (os.path.abspath, os.path.realpath))
    return tuple(dict.fromkeys(both))


def _open_torchvision(
    name: str, cls: type, root: Path | None, download: bool, loader: _Loader
) -> dict[str, tuple[Any, str]]:
    """Return {split: (dataset, first part of its record paths)}."""
    parameters = dict(inspect.signature(cls).parameters)
    # Some classes hide the parameters that they hand to their parent.
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        inherited = {k: v for base in cls.__mro__[1:-1] for k, v in inspect.signature(base).parameters.items()}
        parameters = inherited | parameters
    options: dict[str, Any] = {}
    if "root" in parameters:
        if root is None:
            raise ConfigError(
                f"torchvision:{name} needs --root FOLDER: where its files lie, or shall be downloaded to."
            )
        options["root"] = root.absolute()  # a worker of a cluster has another working folder
    if "download" in parameters:
        options["download"] = download
    elif download:
        raise ConfigError(
            f"torchvision:{name} cannot be downloaded by torchvision; fetch it, and leave --download out."
        )
    if "loader" in parameters:
        options["loader"] = loader
    tries: dict[str, list[dict[str, Any]]]
    if "train" in parameters:
        tries = {"train": [{"train": True}], "test": [{"train": False}]}
    elif "split" in parameters:
        tries = {split: [{"split": word} for word in words] for split, words in TORCHVISION_SPLITS.items()}
    else:
        tries = {"train": [{}]}
    opened: dict[str, tuple[Any, str]] = {}
    for split, choices in tries.items():
        for choice in choices:
            try:
                opened[split] = (cls(**options, **choice), f"{name}/{split}")
                break
            except ValueError as e:
                if "split" not in choice:  # else it is a word that this class does not know
                    raise SourceError(f"torchvision:{name}: {printable(e)}.") from e
            except TypeError as e:
                raise ConfigError(f"torchvision:{name} needs more than a root: {printable(e)}.") from e
            except ImportError as e:
                raise ConfigError(f"torchvision:{name}: {printable(e)}; install that package.") from e
            except (OSError, RuntimeError) as e:
                more = "" if download else ", or pass --download"
                raise SourceError(
                    f"torchvision:{name} cannot be opened in {printable(root)} ({printable(e)}); check --root{more}."
                ) from e
    return opened


def _sample(name: str, dataset: Any, row: int) -> tuple[Any, int]:
    try:
        image, label = dataset[row]
        return image, int(label)
    except (TypeError, ValueError) as e:
        raise SourceError(
            f"torchvision:{name}: its samples are not (image, class number), so it is no set to classify."
        ) from e
    except (OSError, RuntimeError) as e:
        raise SourceError(f"torchvision:{name}: sample {row} cannot be read ({printable(e)}); check its files.") from e


def read_huggingface(name: str, *, label_column: str | None, download: bool, allow_outside: bool = False) -> Source:
    """List a Hugging Face dataset: a local folder (saved, or one that `load_dataset` reads), or a name on the hub.

    Record paths are `SPLIT/NUMBER`, with the split's name in the dataset. Images that are files lie in that folder or
    in the library's cache, or anywhere where `allow_outside` is set.

    Raises:
        ConfigError: the library is missing, the name is not local and `download` is not set, or no such column.
        SourceError: it cannot be loaded, or has no column of images or labels.
    """
    library = need("datasets", "hf", f"hf:{printable(name)}")
    folder = Path(name)
    if not name or folder.is_file():
        raise ConfigError(
            f"hf:{printable(name)}: expected a folder or a name on the hub; a .parquet, .csv or .tar is converted "
            "without hf: before its name."
        )
    if not folder.exists() and not download:
        raise ConfigError(f"hf:{printable(name)} is no local folder; pass --download to fetch it from the hub.")
    saved = any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
    try:
        loaded = library.load_from_disk(str(folder.absolute())) if saved else library.load_dataset(name)
    except Exception as e:  # a library may raise anything
        raise SourceError(f"hf:{printable(name)} cannot be loaded ({type(e).__name__}: {printable(e)}).") from e
    parts = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    known = {part: SPLIT_WORDS[part.lower()] for part in parts if part.lower() in SPLIT_WORDS}
    if not known:
        raise SourceError(f"hf:{printable(name)} has no split train, valid or test, but {printable(', '.join(parts))}.")
    features = next(parts[part] for part in known).features
    image = _only(name, [c for c, kind in features.items() if isinstance(kind, library.Image)], features, "images")
    label = _label_column(name, library, features, label_column)
    found: list[tuple[str, str, Any]] = []
    rows = {}
    for part, split in known.items():
        rows[part] = parts[part].cast_column(image, library.Image(decode=False))
        labels = rows[part].select_columns([label]).with_format(None)[:][label]
        found.extend((split, f"{part}/{row:08d}", value) for row, value in enumerate(labels))
    names = getattr(features[label], "names", None)
    if names is not None:
        classes: tuple[str, ...] = tuple(names)
        records = from_numbers(found, classes, f"hf:{name}")
    else:
        classes, records = from_texts((s, p, None if v is None else str(v).strip() or None) for s, p, v in found)
    others = [part for part in parts if part not in known]
    notes = (f"splits that are neither train, valid nor test, left out: {', '.join(others)}",) if others else ()
    reader = LibraryReader(rows, image, None if allow_outside else _folders_of(library, folder))
    return Source(
        root=folder if folder.exists() else Path(), layout="huggingface", classes=classes, records=records,
        name=os.path.basename(name.rstrip("/")), notes=notes, reader=reader,  # noqa: PTH119
    )  # fmt: skip


def _label_column(name: str, library: Any, features: Mapping[str, Any], given: str | None) -> str:
    fit = [
        column
        for column, kind in features.items()
        if isinstance(kind, library.ClassLabel) or getattr(kind, "dtype", "").startswith(("int", "uint", "string"))
    ]
    if given is not None:
        if given not in fit:
            raise ConfigError(
                f"--label-column {printable(given)}: hf:{printable(name)} has no such column of numbers or texts "
                f"({printable(', '.join(features))})."
            )
        return given
    best = [c for c in fit if isinstance(features[c], library.ClassLabel)] or [c for c in LABEL_NAMES if c in fit][:1]
    return _only(name, best or fit, features, "labels")


def _only(name: str, columns: list[str], features: Mapping[str, Any], what: str) -> str:
    if len(columns) != 1:
        option = "; pass --label-column" if what == "labels" else ""
        raise SourceError(
            f"hf:{printable(name)} has {len(columns)} columns of {what} ({printable(', '.join(features))}){option}."
        )
    return columns[0]
