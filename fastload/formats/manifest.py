"""The manifest: what a resident dataset says of itself, in `manifest.json`; resident.py tells of the format."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastload.errors import DatasetError, printable
from fastload.places import Place, exists, files_in
from fastload.records import SPLITS

FORMAT = "fastload-resident"
VERSION = 1
MANIFEST_NAME = "manifest.json"
SAMPLES_NAME = "samples.csv"
SAMPLES_HEAD = ("split", "shard", "row", "label", "path")
BAD_NAME = "bad.csv"


# What may stand in a shard: the name in the manifest -> in safetensors, in torch.
DTYPES = {"uint8": ("U8", torch.uint8), "int64": ("I64", torch.int64), "float32": ("F32", torch.float32)}


@dataclass(frozen=True, kw_only=True)
class Field:
    """A tensor of every shard: `image` or `features`, and `label`.

    Attributes:
        name: of the tensor.
        shape: of one sample: (H, W, C), (D,), (T,) or ().
        dtype: `uint8`, `int64` or `float32`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{'x'.join(str(n) for n in self.shape)} {self.dtype}"


CLASS_LABEL = Field(name="label", shape=(), dtype="int64")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard as the manifest names it; `sha256` is over the whole file, as `sha256sum` prints it."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        sample: what a sample is: the field `image`, uint8 (H, W, C), or `features`, float32 (D,).
        label: int64 () class numbers, or float32 (T,) for regression.
        classes: class names, index = label; none for regression.
        display_names: what people should read for each class.
        splits: shards of each split, in order.
        mean, std: per channel over `train`, in 0..1 units; of images only.
        settings: size, fit, interpolation and seed of the conversion.
        source: name, layout and digest of what was converted.
        skipped: samples that were left out, with reasons.
        fastload: the version that wrote it.
        table: of a table only: `feature_names`, `target_names`, and under `columns` how each column was
            turned into features.
    """

    sample: Field
    label: Field = CLASS_LABEL
    classes: tuple[str, ...]
    display_names: tuple[str, ...]
    splits: dict[str, tuple[Shard, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: dict[str, Any]
    source: dict[str, Any]
    skipped: tuple[dict[str, str], ...]
    fastload: str
    table: dict[str, Any] | None = None

    @property
    def is_table(self) -> bool:
        """Whether the samples are rows of a table, not images."""
        return self.table is not None

    def count(self, split: str) -> int:
        """Return the number of samples in `split`."""
        return sum(shard.rows for shard in self.splits.get(split, ()))

    def to_json(self) -> str:
        """Return the text of `manifest.json`: the same for the same content."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "fields": {f.name: {"shape": list(f.shape), "dtype": f.dtype} for f in (self.sample, self.label)},
            "classes": list(self.classes),
            "display_names": list(self.display_names),
            "splits": {
                split: {"count": self.count(split), "shards": [asdict(s) for s in shards]}
                for split, shards in self.splits.items()
            },
            "mean": list(self.mean),
            "std": list(self.std),
            "settings": self.settings,
            "source": self.source,
            "skipped": list(self.skipped),
            "fastload": self.fastload,
        }
        if self.table is not None:
            content["table"] = self.table
        return json.dumps(content, indent=1, sort_keys=False) + "\n"


def read_manifest(path: Place) -> Manifest:
    """Read and check the manifest of the dataset at `path`, here or at a URL.

    Raises:
        DatasetError: no dataset there, not ours, of another version, or its content does not hold together.
    """
    shown = printable(path)
    if not exists(path, DatasetError):
        raise DatasetError(f"{shown}: no such dataset; make it with: fastload convert FOLDER {shown}")
    if not path.is_dir():
        raise DatasetError(f"{shown} is a file; a dataset is a directory that `fastload convert` wrote.")
    try:
        content = json.loads((path / MANIFEST_NAME).read_bytes())
    except FileNotFoundError:
        raise of_betons(path) or DatasetError(
            f"{shown} has no {MANIFEST_NAME}, so it is no dataset; convert it again."
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise DatasetError(f"{shown}/{MANIFEST_NAME} cannot be read ({printable(e)}); convert it again.") from e
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise DatasetError(
            f"{shown}/{MANIFEST_NAME} is no fastload manifest (format {printable(found)!r}, not {FORMAT!r}); "
            "pass a directory that `fastload convert` wrote."
        )
    if content.get("version") != VERSION:
        raise DatasetError(
            f"{shown} has format version {printable(content.get('version'))}, this fastload reads version {VERSION}; "
            "convert it again, or use the fastload version that wrote it "
            f"({printable(content.get('fastload', 'unknown'))})."
        )
    try:
        return _checked(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise DatasetError(
            f"{shown}/{MANIFEST_NAME} is damaged ({type(e).__name__}: {printable(e)}); convert it again."
        ) from e


def of_betons(folder: Place) -> DatasetError | None:
    """Return the error for a folder of FFCV's files where a manifest is wanted; None where it holds none."""
    try:
        names = files_in(folder, ".beton")
    except OSError:
        return None
    if not names:
        return None
    shown = printable(folder)
    return DatasetError(
        f"{shown} holds FFCV's files ({printable(', '.join(names[:3]))}) and no {MANIFEST_NAME}; open one of them, "
        f"e.g. {shown}/{printable(names[0])}, with fastload.open_dataset, or check all with: fastload verify {shown}"
    )


def _checked(content: dict[str, Any]) -> Manifest:
    table = content.get("table")
    sample = _field(content, "features" if table is not None else "image", 1 if table is not None else 3)
    label = _field(content, "label", None)
    if table is not None:
        named = {"features": sample.shape, "target": label.shape or (1,)}
        for what, shape in named.items():
            names = table["feature_names" if what == "features" else "target_names"]
            if not isinstance(names, list) or len(names) != shape[0]:
                raise ValueError(f"{what}: {len(names)} names of {shape[0]}")
    splits: dict[str, tuple[Shard, ...]] = {}
    for split, entry in content["splits"].items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}")
        shards = tuple(Shard(**shard) for shard in entry["shards"])
        if not shards:
            raise ValueError(f"{split} has no shards")
        for shard in shards:
            _check_shard(shard)
        if sum(shard.rows for shard in shards) != entry["count"]:
            raise ValueError(f"the shards of {split} do not add up to its count")
        splits[split] = shards
    if len(content["display_names"]) != len(content["classes"]):
        raise ValueError(f"{len(content['display_names'])} display_names of {len(content['classes'])} classes")
    if table is None and not len(content["mean"]) == len(content["std"]) == sample.shape[-1]:
        raise ValueError(f"mean and std of {len(content['mean'])} and {len(content['std'])} channels")
    return Manifest(
        sample=sample,
        label=label,
        classes=tuple(str(c) for c in content["classes"]),
        display_names=tuple(str(c) for c in content["display_names"]),
        splits=splits,
        mean=tuple(float(x) for x in content["mean"]),
        std=tuple(float(x) for x in content["std"]),
        settings=dict(content["settings"]),
        source=dict(content["source"]),
        skipped=tuple(content["skipped"]),
        fastload=str(content["fastload"]),
        table=dict(table) if table is not None else None,
    )


def _check_shard(shard: Shard) -> None:
    # The name comes from a file anyone may have edited: it must not lead out of the dataset.
    if Path(shard.file).name != shard.file or shard.file in ("", ".", "..") or "\0" in shard.file:
        raise ValueError(f"shard name {shard.file!r} is not a plain file name")
    os.fsencode(shard.file)
    if any(type(number) is not int or number < 0 for number in (shard.rows, shard.bytes)):
        raise TypeError(f"{shard.file} has {shard.rows!r} rows and {shard.bytes!r} bytes")


def _field(content: dict[str, Any], name: str, num_axes: int | None) -> Field:
    entry = content["fields"][name]
    shape, dtype = tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
    expected = {"image": ("uint8",), "features": ("float32",), "label": ("float32",) if shape else ("int64",)}[name]
    if min(shape, default=1) < 1 or len(shape) not in ((0, 1) if num_axes is None else (num_axes,)):
        raise ValueError(f"{name} shape {list(shape)}")
    if dtype not in expected:
        raise ValueError(f"{name} dtype {dtype}")
    return Field(name=name, shape=shape, dtype=dtype)
