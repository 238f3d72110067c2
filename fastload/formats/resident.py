"""The resident format, version 1: a directory of safetensors shards and a manifest.

`NAME.fastload/` holds `manifest.json`, `samples.csv` and `SPLIT-00000.safetensors ...`. A shard has the
tensors `image` uint8 [n, H, W, C], or of a table `features` float32 [n, D], and `label` int64 [n], or
float32 [n, T] for regression. The manifest is written last: a directory without it is no dataset.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fastload.errors import DatasetError, printable
from fastload.formats.manifest import DTYPES, SAMPLES_HEAD, SAMPLES_NAME, Manifest, Shard
from fastload.places import Place, num_bytes_of
from fastload.urls import Url

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


class Dataset(torch.utils.data.Dataset[tuple[torch.Tensor, int | torch.Tensor]]):
    """One split of a resident dataset, mapped into memory; `open_dataset` makes it.

    Attributes:
        path: the dataset's directory.
        split: `train`, `valid` or `test`.
        manifest: everything the dataset says of itself.
        shards: one tensor per shard, uint8 [n, H, W, C] or float32 [n, D], backed by the file: reading one
            row touches only that row's pages.
        labels: int64 [N], in memory, -1 where a sample is unlabelled; or float32 [N, T] for regression.
    """

    def __init__(self, path: Path, manifest: Manifest, split: str) -> None:
        if split not in manifest.splits:
            has = ", ".join(manifest.splits) or "none"
            raise DatasetError(f"{printable(path)} has no split {printable(split)!r}; it has: {has}.")
        self.path = path
        self.split = split
        self.manifest = manifest
        self.shards: list[torch.Tensor] = []
        self._files: list[tuple[Path, tuple[int, ...]]] = []
        labels = []
        for shard in manifest.splits[split]:
            self._files.append((path / shard.file, _identity(path / shard.file)))
            sample, label = _open_shard(path, shard, manifest)
            self.shards.append(sample)
            labels.append(label)
        empty = torch.empty((0, *manifest.label.shape), dtype=DTYPES[manifest.label.dtype][1], device="cpu")
        self.labels = torch.cat([empty, *labels])
        if (
            len(self.labels)
            and not self.is_regression
            and not -1 <= int(self.labels.min()) <= int(self.labels.max()) < len(manifest.classes)
        ):
            raise DatasetError(
                f"{printable(path)}: {split} has labels outside its {len(manifest.classes)} classes; convert it again."
            )
        self._first_rows = np.cumsum([0, *(len(s) for s in self.shards)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Return (uint8 [H, W, C] or float32 [D], label). A sample is a view of the file's pages: clone it to write.

        The label is a class number, or float32 [T] for regression.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        shard = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        label = self.labels[index] if self.is_regression else int(self.labels[index])
        return self.shards[shard][index - int(self._first_rows[shard])], label

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, index = label."""
        return self.manifest.classes

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class name -> label."""
        return {name: label for label, name in enumerate(self.classes)}

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """What each sample was made of, by sample id (`Loader.batch_ids`): its path in the source, or row of a table.

        Read from `samples.csv` when first asked for: a second for a million.

        Raises:
            DatasetError: that file is missing, or lists other samples.
        """
        return _read_paths(self.path / SAMPLES_NAME, self.split, self.manifest.splits[self.split])

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(H, W, C) of every image, or (D,) of every row of a table."""
        return self.manifest.sample.shape

    @property
    def sample(self) -> str:
        """What a sample is, in words, e.g. `128x128x3 uint8`."""
        return str(self.manifest.sample)

    @property
    def source_name(self) -> str:
        """What was converted is called."""
        return str(self.manifest.source.get("name"))

    @property
    def is_uint8(self) -> bool:
        """Whether samples are stored pixels."""
        return not self.is_table

    @property
    def is_table(self) -> bool:
        """Whether the samples are rows of a table, not images."""
        return self.manifest.is_table

    @property
    def is_regression(self) -> bool:
        """Whether the labels are amounts, float32 [N, T], not classes."""
        return self.manifest.label.dtype == "float32"

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over `train`, in 0..1 units."""
        return self.manifest.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over `train`, in 0..1 units."""
        return self.manifest.std

    @property
    def num_bytes(self) -> int:
        """Bytes of all samples of this split."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return self.num_bytes // max(1, len(self))

    @property
    def places(self) -> list[tuple[Path, int]]:
        """The file of each shard, and the byte at which its samples begin; none where files are gone or others now."""
        try:
            if any(_identity(file) != identity for file, identity in self._files):
                return []
            return [(file, _first_byte(file, self.manifest.sample.name)) for file, _ in self._files]
        except OSError:
            return []

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the manifest, and so over the checksum of every shard."""
        return hashlib.sha256(self.manifest.to_json().encode()).hexdigest()


def _read_paths(file: Path, split: str, shards: Sequence[Shard]) -> tuple[str, ...]:
    wanted = ([split, shard.file, str(row)] for shard in shards for row in range(shard.rows))
    paths = []
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
            lines = csv.reader(opened)
            if tuple(next(lines, ())) != SAMPLES_HEAD:
                raise ValueError("no such columns")
            for *place, _, path in lines:
                if place[0] == split:
                    if place != next(wanted, None):
                        raise ValueError(f"line {lines.line_num}")
                    paths.append(path)
        if next(wanted, None) is not None:
            raise ValueError(f"it ends after {len(paths):,} of {split}")
    except (OSError, ValueError, IndexError, csv.Error) as e:
        raise DatasetError(
            f"{printable(file)} does not list this dataset's samples ({printable(e)}); copy the whole directory anew, "
            "or convert again."
        ) from e
    return tuple(paths)


def _open_shard(path: Path, shard: Shard, manifest: Manifest) -> tuple[torch.Tensor, torch.Tensor]:
    file = path / shard.file
    name = f"{printable(path)}/{printable(shard.file)}"
    try:
        size = file.stat().st_size
        if size != shard.bytes:
            raise DatasetError(f"{name} has {size:,} bytes, not {shard.bytes:,}: it was cut or changed; convert again.")
        # safetensors asks torch for the default device.
        with torch.device("cpu"), safe_open(file, framework="pt") as opened:
            tensors = [opened.get_tensor(field.name) for field in (manifest.sample, manifest.label)]
    except FileNotFoundError:
        raise DatasetError(f"{name} is missing; convert again, or copy the whole directory.") from None
    except (OSError, SafetensorError) as e:
        raise DatasetError(f"{name} cannot be read ({printable(e)}); convert again.") from e
    for field, tensor in zip((manifest.sample, manifest.label), tensors, strict=True):
        wanted = (shard.rows, *field.shape)
        if tensor.dtype != DTYPES[field.dtype][1] or tuple(tensor.shape) != wanted:
            raise DatasetError(
                f"{name} holds {field.name} {tensor.dtype} {list(tensor.shape)}, not {field.dtype} {list(wanted)}; "
                "convert again."
            )
    return tensors[0], tensors[1]


def _identity(file: Path) -> tuple[int, ...]:
    """Return what tells a file from another of the same name; nothing of one that is not there."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _first_byte(file: Path, name: str) -> int:
    """Return where a tensor begins in a safetensors file that has been opened, and so checked, before."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        return 8 + length + int(json.loads(opened.read(length))[name]["data_offsets"][0])


def read_shard_metadata(file: Place) -> dict[str, Any] | None:
    """Return the metadata that a shard was written with, or None where there is no whole shard."""
    try:
        if isinstance(file, Path):
            with safe_open(file, framework="np") as opened:
                text = (opened.metadata() or {}).get("fastload", "null")
        else:
            text = _read_remote_header(file)
        metadata = json.loads(text)
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    return metadata if isinstance(metadata, dict) else None


def _read_remote_header(file: Url) -> str:
    """Return the metadata in the header of a shard, whose size is held against it; ValueError where it is none."""
    length = int.from_bytes(file.read_range(0, 8), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    entries = json.loads(file.read_range(8, length))
    text = str(entries.pop("__metadata__")["fastload"])
    if num_bytes_of(file) != 8 + length + max(entry["data_offsets"][1] for entry in entries.values()):
        raise ValueError("cut")
    return text


def sha256_of(file: Place, advance: Callable[[int], object] | None = None) -> str:
    """Return SHA-256 (hex) of a file, calling `advance(bytes)` as it goes."""
    sha = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            sha.update(block)
            if advance is not None:
                advance(len(block))
    return sha.hexdigest()


def find_damage(
    path: Place, manifest: Manifest, advance: Callable[[int], object] | None = None, *, split: str | None = None
) -> Iterator[str]:
    """Yield one sentence for each shard of the dataset, or of one split, that is not what the manifest says."""
    for shards in manifest.splits.values() if split is None else (manifest.splits[split],):
        for shard in shards:
            try:
                if isinstance(path, Path):
                    _open_shard(path, shard, manifest)
                if sha256_of(path / shard.file, advance) != shard.sha256:
                    yield f"{printable(path)}/{printable(shard.file)}: its bytes are not those that were written."
            except OSError as e:
                yield f"{printable(path)}/{printable(shard.file)} cannot be read ({printable(e.strerror)})."
            except DatasetError as e:
                yield str(e)
