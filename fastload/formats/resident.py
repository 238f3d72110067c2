"""The resident format, version 1: a directory of safetensors shards and a manifest.

`NAME.fastload/` holds `manifest.json`, `samples.csv` and `SPLIT-00000.safetensors ...`. A shard has the
tensors `image` uint8 [n, H, W, C] and `label` int64 [n]. The manifest is written last: a directory
without it is no dataset.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from fastload.errors import DatasetError, printable
from fastload.files import sync
from fastload.records import SPLITS

FORMAT = "fastload-resident"
VERSION = 1
MANIFEST_NAME = "manifest.json"
SAMPLES_NAME = "samples.csv"
BAD_NAME = "bad.csv"

# Images begin at a multiple of it in the file: a page, so that mapped shards share no page with the header.
_ALIGNMENT = 4096
_BLOCK_BYTES = 1 << 20


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
        image_shape: (H, W, C) of every image, uint8.
        classes: class names, index = label.
        display_names: what people should read for each class.
        splits: shards of each split, in order.
        mean, std: per channel over `train`, in 0..1 units.
        settings: size, fit, interpolation and seed of the conversion.
        source: name, layout and digest of what was converted.
        skipped: samples that were left out, with reasons.
        fastload: the version that wrote it.
    """

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    display_names: tuple[str, ...]
    splits: dict[str, tuple[Shard, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: dict[str, Any]
    source: dict[str, Any]
    skipped: tuple[dict[str, str], ...]
    fastload: str

    def count(self, split: str) -> int:
        """Return the number of samples in `split`."""
        return sum(shard.rows for shard in self.splits.get(split, ()))

    def to_json(self) -> str:
        """Return the text of `manifest.json`: the same for the same content."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "fields": {
                "image": {"shape": list(self.image_shape), "dtype": "uint8"},
                "label": {"shape": [], "dtype": "int64"},
            },
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
        return json.dumps(content, indent=1, sort_keys=False) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest of the dataset at `path`.

    Raises:
        DatasetError: no dataset there, not ours, of another version, or its content does not hold together.
    """
    shown = printable(path)
    if not path.exists():
        raise DatasetError(f"{shown}: no such dataset; make it with: fastload convert FOLDER {shown}")
    if not path.is_dir():
        raise DatasetError(f"{shown} is a file; a dataset is a directory that `fastload convert` wrote.")
    try:
        content = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{shown} has no {MANIFEST_NAME}, so it is no dataset; convert it again.") from None
    except (OSError, ValueError) as e:
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
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DatasetError(
            f"{shown}/{MANIFEST_NAME} is damaged ({type(e).__name__}: {printable(e)}); convert it again."
        ) from e


def _checked(content: dict[str, Any]) -> Manifest:
    height, width, channels = (int(n) for n in content["fields"]["image"]["shape"])
    if min(height, width, channels) < 1:
        raise ValueError(f"image shape {[height, width, channels]}")
    splits: dict[str, tuple[Shard, ...]] = {}
    for split, entry in content["splits"].items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}")
        shards = tuple(Shard(**shard) for shard in entry["shards"])
        for shard in shards:
            # The name comes from a file anyone may have edited: it must not lead out of the dataset.
            if Path(shard.file).name != shard.file or shard.file in ("", ".", ".."):
                raise ValueError(f"shard name {shard.file!r} is not a plain file name")
        if sum(shard.rows for shard in shards) != entry["count"]:
            raise ValueError(f"the shards of {split} do not add up to its count")
        splits[split] = shards
    return Manifest(
        image_shape=(height, width, channels),
        classes=tuple(str(c) for c in content["classes"]),
        display_names=tuple(str(c) for c in content["display_names"]),
        splits=splits,
        mean=tuple(float(x) for x in content["mean"]),
        std=tuple(float(x) for x in content["std"]),
        settings=dict(content["settings"]),
        source=dict(content["source"]),
        skipped=tuple(content["skipped"]),
        fastload=str(content["fastload"]),
    )


class Dataset(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """One split of a resident dataset, mapped into memory; `open_dataset` makes it.

    Attributes:
        path: the dataset's directory.
        split: `train`, `valid` or `test`.
        manifest: everything the dataset says of itself.
        shards: one uint8 tensor [n, H, W, C] per shard, backed by the file: reading one row touches
            only that row's pages.
        labels: int64 [N], in memory; -1 where a sample is unlabelled.
    """

    def __init__(self, path: Path, manifest: Manifest, split: str) -> None:
        if split not in manifest.splits:
            has = ", ".join(manifest.splits) or "none"
            raise DatasetError(f"{printable(path)} has no split {printable(split)!r}; it has: {has}.")
        self.path = path
        self.split = split
        self.manifest = manifest
        self.shards: list[torch.Tensor] = []
        labels = []
        for shard in manifest.splits[split]:
            image, label = _open_shard(path, shard, manifest.image_shape)
            self.shards.append(image)
            labels.append(label)
        self.labels = torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64)
        if len(self.labels) and not -1 <= int(self.labels.min()) <= int(self.labels.max()) < len(manifest.classes):
            raise DatasetError(
                f"{printable(path)}: {split} has labels outside its {len(manifest.classes)} classes; convert it again."
            )
        self._first_rows = np.cumsum([0, *(len(s) for s in self.shards)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return (uint8 [H, W, C], label). The image is a view of the file's pages: clone it to write."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        shard = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        return self.shards[shard][index - int(self._first_rows[shard])], int(self.labels[index])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, index = label."""
        return self.manifest.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.manifest.image_shape

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
        """Bytes of all images of this split."""
        return sum(shard.numel() for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the manifest, and so over the checksum of every shard."""
        return hashlib.sha256(self.manifest.to_json().encode()).hexdigest()


def _open_shard(path: Path, shard: Shard, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    file = path / shard.file
    name = f"{printable(path)}/{printable(shard.file)}"
    try:
        size = file.stat().st_size
        if size != shard.bytes:
            raise DatasetError(f"{name} has {size:,} bytes, not {shard.bytes:,}: it was cut or changed; convert again.")
        with safe_open(file, framework="pt") as opened:
            image, label = opened.get_tensor("image"), opened.get_tensor("label")
    except FileNotFoundError:
        raise DatasetError(f"{name} is missing; convert again, or copy the whole directory.") from None
    except (OSError, SafetensorError) as e:
        raise DatasetError(f"{name} cannot be read ({printable(e)}); convert again.") from e
    if image.dtype != torch.uint8 or tuple(image.shape) != (shard.rows, *shape):
        raise DatasetError(
            f"{name} holds {image.dtype} {list(image.shape)}, not uint8 {[shard.rows, *shape]}; convert again."
        )
    if label.dtype != torch.int64 or tuple(label.shape) != (shard.rows,):
        raise DatasetError(f"{name} holds {label.dtype} {list(label.shape)} labels, not int64 [{shard.rows}].")
    return image, label


def write_shard(
    file: Path, image: npt.NDArray[np.uint8], label: npt.NDArray[np.int64], metadata: dict[str, Any]
) -> str:
    """Write one shard whole or not at all: a temporary file beside it, fsync, rename.

    Returns:
        SHA-256 (hex) of the file.

    Raises:
        DatasetError: the disk is full or the folder cannot be written.
    """
    # A fixed name, so that what a killed run left is overwritten and never piles up.
    temporary = file.with_name(f".{file.name}.tmp")
    parts = (_head(image, label, metadata), image.reshape(-1).data)
    # Beside the writing: nobody decodes any more while the last shard is written.
    with ThreadPoolExecutor(1, thread_name_prefix="fastload-hash") as beside:
        digest = beside.submit(_sha256, parts)
        try:
            # Through the page cache, on purpose: training reads these shards next.
            with temporary.open("wb") as opened:
                for part in parts:
                    for start in range(0, len(part), _BLOCK_BYTES):
                        opened.write(part[start : start + _BLOCK_BYTES])
                opened.flush()
                os.fsync(opened.fileno())
            temporary.replace(file)
            sync(file.parent)
        except OSError as e:
            with suppress(OSError):
                temporary.unlink()
            raise DatasetError(
                f"{printable(file.name)} cannot be written ({printable(e)}); make room in {printable(file.parent)} "
                "and run the same command again: finished shards are kept."
            ) from e
        return digest.result()


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


def _head(image: npt.NDArray[np.uint8], label: npt.NDArray[np.int64], metadata: dict[str, Any]) -> bytes:
    """Return what stands before the images in a safetensors file: header and labels, a multiple of _ALIGNMENT bytes.

    By hand, since safetensors' save_file would copy the whole shard twice; it reads what this writes.
    """
    entries = {
        # One key: safetensors writes several in a random order, and the same shard must be the same bytes.
        "__metadata__": {"fastload": json.dumps(metadata, sort_keys=True)},
        "label": {"dtype": "I64", "shape": list(label.shape), "data_offsets": [0, label.nbytes]},
        "image": {
            "dtype": "U8",
            "shape": list(image.shape),
            "data_offsets": [label.nbytes, label.nbytes + image.nbytes],
        },
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text) + label.nbytes) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + label.tobytes()


def read_shard_metadata(file: Path) -> dict[str, Any] | None:
    """Return the metadata that `write_shard` put into a shard, or None where there is no whole shard."""
    try:
        with safe_open(file, framework="np") as opened:
            metadata = json.loads((opened.metadata() or {}).get("fastload", "null"))
    except (OSError, SafetensorError, ValueError):
        return None
    return metadata if isinstance(metadata, dict) else None


def sha256_of(file: Path, advance: Callable[[int], object] | None = None) -> str:
    """Return SHA-256 (hex) of a file, calling `advance(bytes)` as it goes."""
    sha = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            sha.update(block)
            if advance is not None:
                advance(len(block))
    return sha.hexdigest()


def find_damage(path: Path, manifest: Manifest, advance: Callable[[int], object] | None = None) -> Iterator[str]:
    """Yield one sentence for each shard of the dataset that is not what the manifest says."""
    for shards in manifest.splits.values():
        for shard in shards:
            try:
                _open_shard(path, shard, manifest.image_shape)
                if sha256_of(path / shard.file, advance) != shard.sha256:
                    yield f"{printable(path)}/{printable(shard.file)}: its bytes are not those that were written."
            except DatasetError as e:
                yield str(e)
