"""Writing shards of the resident format: a header of safetensors, the labels, then the samples.

A table's shard comes in one piece. An image shard is far larger than the nearer caches, so its rows are written by
those who make them, straight into the file that will be the shard: no second copy in memory, and nothing left to
write when the last row is made. The header says how long the labels are and which samples were left out, so it
comes last, into the room that was kept for it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastload.errors import DatasetError, printable
from fastload.files import Draft, Part, blocks_of, write_at, write_whole
from fastload.formats.manifest import DTYPES
from fastload.places import Place
from fastload.urls import Url

# Images begin at a multiple of it in the file: a page, so that mapped shards share no page with the header.
_ALIGNMENT = 4096
_BLOCK_BYTES = 1 << 20


def write_shard(file: Place, fields: dict[str, npt.NDArray[Any]], metadata: dict[str, Any]) -> str:
    """Write one shard that is in memory, whole or not at all.

    Args:
        file: where to.
        fields: `label`, then `image` or `features`, as in `resident`'s docstring; contiguous.
        metadata: what the shard says of itself, fit for JSON.

    Returns:
        SHA-256 (hex) of the file.

    Raises:
        DatasetError: the disk is full, the folder cannot be written, or another process writes this shard.
    """
    parts: list[Part] = [_head({name: (f.dtype.name, f.shape) for name, f in fields.items()}, metadata)]
    parts += [field.reshape(-1).view(np.uint8).data for field in fields.values()]
    try:
        write_whole(file, (part[i : i + _BLOCK_BYTES] for part in parts for i in range(0, len(part), _BLOCK_BYTES)))
    except OSError as e:
        raise unwritten(file, e) from e
    return _sha256(parts)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where the rows of an image shard lie in its file while they come in.

    Attributes:
        num_rows: of the shard, bad ones included.
        image_shape: (H, W, C) of each.
        first_byte: where the first row begins: behind as much room as header and labels most likely take.
    """

    num_rows: int
    image_shape: tuple[int, int, int]
    first_byte: int

    @classmethod
    def behind(cls, metadata: dict[str, Any], num_rows: int, image_shape: tuple[int, int, int]) -> Rows:
        """Return rows that leave room for labels and for a header about as long as `metadata` makes it."""
        first_byte = len(_head(_fields(num_rows, image_shape), metadata)) + 8 * num_rows
        return cls(num_rows=num_rows, image_shape=image_shape, first_byte=first_byte)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.image_shape)

    def write(self, descriptor: int, row: int, image_HWC: npt.NDArray[np.uint8]) -> None:
        """Write a row into the shard's file; OSError where the disk is full."""
        write_at(descriptor, image_HWC.reshape(-1).data, self.first_byte + row * self.row_bytes)

    def finish(
        self, descriptor: int, good: Sequence[int], label: npt.NDArray[np.int64], metadata: dict[str, Any]
    ) -> None:
        """Make a whole shard of what was written, with the rows `good` (ascending), their labels and a header."""
        head = _head(_fields(len(good), self.image_shape), metadata) + label.tobytes()
        num_bytes, start = self.row_bytes, self.first_byte
        if len(good) < self.num_rows:
            for place, row in enumerate(good):
                _move(descriptor, start + row * num_bytes, start + place * num_bytes, num_bytes)
        if len(head) != start:  # the header took a page more or less than was thought
            places = range(len(good)) if len(head) < start else range(len(good) - 1, -1, -1)
            for place in places:
                _move(descriptor, start + place * num_bytes, len(head) + place * num_bytes, num_bytes)
        os.ftruncate(descriptor, len(head) + len(good) * num_bytes)
        write_at(descriptor, head, 0)


def publish(draft: Draft) -> str:
    """Give the whole shard in `draft` its name; return SHA-256 (hex) of it. OSError where that fails."""
    # Beside flushing it to the disk: nobody decodes any more while the last shard is written.
    with ThreadPoolExecutor(1, thread_name_prefix="fastload-hash") as beside:
        digest = beside.submit(_sha256, blocks_of(draft.descriptor))
        os.fsync(draft.descriptor)
        sha256 = digest.result()
    draft.publish(flushed=True)
    return sha256


def send(descriptor: int, file: Url) -> str:
    """Write the whole shard in an open file to a URL; return SHA-256 (hex) of it. OSError where that fails."""
    sha = hashlib.sha256()

    def blocks() -> Iterator[Part]:
        for block in blocks_of(descriptor):
            sha.update(block)
            yield block

    file.write(blocks())
    return sha.hexdigest()


def memory_file() -> int:
    """Return the descriptor of an empty file in memory, which processes forked from now on share."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fastload")
    with tempfile.TemporaryFile() as opened:  # macOS has none: on the disk, and without a name
        return os.dup(opened.fileno())


def unwritten(file: Place, e: OSError) -> DatasetError:
    """Return the error that says why a file of a dataset could not be written, and what to do."""
    if isinstance(e, BlockingIOError):
        return DatasetError(
            f"{printable(file)} is being written by another process; wait for it, and run the same command again."
        )
    full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "make room in" if full else "check that files can be written to"
    return DatasetError(
        f"{printable(file.name)} cannot be written ({printable(e.strerror)}); {advice} {printable(file.parent)} "
        "and run the same command again: finished shards are kept."
    )


def _fields(num_rows: int, image_shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {"label": ("int64", (num_rows,)), "image": ("uint8", (num_rows, *image_shape))}


def _head(fields: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, Any]) -> bytes:
    """Return the header of a safetensors file, so long that the last field begins at a multiple of _ALIGNMENT.

    By hand, since safetensors' save_file would copy the whole shard twice; it reads what this writes.
    """
    # One key: safetensors writes several in a random order, and the same shard must be the same bytes.
    entries: dict[str, Any] = {"__metadata__": {"fastload": json.dumps(metadata, sort_keys=True)}}
    start = stop = 0
    for name, (dtype, shape) in fields.items():
        start, stop = stop, stop + np.dtype(dtype).itemsize * prod(shape)
        entries[name] = {"dtype": DTYPES[dtype][0], "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text) + start) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _move(descriptor: int, source: int, target: int, num_bytes: int) -> None:
    if source != target:
        write_at(descriptor, os.pread(descriptor, num_bytes, source), target)


def _sha256(parts: Iterable[Part]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()
