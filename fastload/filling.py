"""Decoding samples into shards: memory that the pool fills, written while it fills the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from fastload.decode import decode, fit_pixels
from fastload.errors import DecodeError
from fastload.formats.resident import read_shard_metadata, write_shard
from fastload.places import Place
from fastload.plan import Plan
from fastload.pool import Pool, shared_bytes
from fastload.records import Record, Source

# What the pool tells of each row: the length of a reason, which is 0 where the image is good, the moments,
# and the reason itself, cut to a fixed length since every row has the same number of bytes.
_REASON_BYTES = 240


def read_image(source: Source, record: Record, plan: Plan) -> npt.NDArray[np.uint8]:
    """Read and decode one sample, uint8 [H, W, C].

    Raises:
        DecodeError: it cannot be read, or is no whole image.
    """
    s, content = plan.settings, source.read(record)
    if isinstance(content, bytes):
        return decode(
            content, record.path, size=s.size, fit=s.fit, max_pixels=s.max_pixels, num_channels=source.num_channels
        )
    return fit_pixels(content, size=s.size, fit=s.fit, num_channels=source.num_channels)


class Filler:
    """Decodes samples into the memory that the pool's processes share.

    Args:
        plan: what to convert.
        numbers: the shards to convert.
        num_buffers: shards that are in memory at a time; one is filled while the others are written.
        skip_bad: tell of a bad image instead of raising.
    """

    def __init__(self, plan: Plan, numbers: Sequence[int], num_buffers: int, *, skip_bad: bool = False) -> None:
        self.plan = plan
        # The smallest last: while it is written nobody decodes any more.
        self.numbers = tuple(sorted(numbers, key=lambda n: -len(plan.shards[n].records)))
        self.skip_bad = skip_bad
        most = max((len(plan.shards[n].records) for n in numbers), default=0)
        self.num_buffers = min(num_buffers, max(1, len(self.numbers)))
        self._buffers = [shared_bytes(most * math.prod(plan.image_shape)) for _ in range(self.num_buffers)]
        self.slots = {number: place % self.num_buffers for place, number in enumerate(self.numbers)}
        channels = plan.image_shape[2]
        self._told = np.dtype([("length", "<i8"), ("moments", "<u8", (2, channels)), ("reason", f"S{_REASON_BYTES}")])

    def image(self, number: int) -> npt.NDArray[np.uint8]:
        """Return the memory of a shard's images, uint8 [n, H, W, C]."""
        shape = (len(self.plan.shards[number].records), *self.plan.image_shape)
        return self._buffers[self.slots[number]][: math.prod(shape)].reshape(shape)

    def path(self, number: int, row: int) -> str:
        """Return the path of one sample."""
        return self.plan.shards[number].records[row].path

    def __call__(self, number: int, row: int) -> bytes:
        """Decode one sample into its row; return what is to be told of it."""
        told = np.zeros((), self._told)
        try:
            image_HWC = read_image(self.plan.source, self.plan.shards[number].records[row], self.plan)
        except DecodeError as e:
            if not self.skip_bad:
                raise
            reason = e.reason.encode("utf-8", "replace")[:_REASON_BYTES]
            told["length"], told["reason"] = len(reason), reason
        else:
            self.image(number)[row] = image_HWC
            told["moments"] = _moments(image_HWC)
        return told.tobytes()

    def write(self, number: int, folder: Place, told: bytes) -> str:
        """Write one filled shard, its bad rows left out; return SHA-256 (hex) of the file."""
        shard = self.plan.shards[number]
        rows = np.frombuffer(told, self._told)
        good = np.flatnonzero(rows["length"] == 0)
        image = self.image(number)
        if len(good) < len(rows):
            for place, row in enumerate(good):  # upwards, one by one: no second shard in memory
                image[place] = image[row]
        # Whole numbers, so that mean and std do not depend on the order of adding.
        total = rows["moments"].sum(0)
        skipped = [
            {"path": shard.records[row].path, "reason": rows["reason"][row].decode("utf-8", "replace")}
            for row in np.flatnonzero(rows["length"])
        ]
        metadata: dict[str, Any] = {"plan": self.plan.digest, "skipped": skipped}
        metadata |= {"sum": [int(n) for n in total[0]], "square": [int(n) for n in total[1]]}
        label = np.array([shard.records[row].label for row in good], np.int64)
        return write_shard(folder / shard.file, {"label": label, "image": image[: len(good)]}, metadata)


def finished_shard(plan: Plan, number: int, folder: Place) -> dict[str, Any] | None:
    """Return the metadata of a shard that stands there whole and belongs to this plan, else None."""
    metadata = read_shard_metadata(folder / plan.shards[number].file)
    return metadata if metadata is not None and metadata.get("plan") == plan.digest else None


def convert_shards(filler: Filler, folder: Place, pool: Pool, advance: Callable[[int], object]) -> dict[str, str]:
    """Write the shards of `filler`, unless they already stand there whole. Idempotent.

    Each is written while the pool decodes the next ones.

    Returns:
        SHA-256 (hex) of each file that was written now.

    Raises:
        DecodeError: a bad image, where these are not skipped.
        DatasetError: a shard cannot be written.
    """
    plan = filler.plan
    writing: dict[int, tuple[str, Future[str]]] = {}
    digests: dict[str, str] = {}

    def finish(slot: int) -> None:
        if slot in writing:
            name, task = writing.pop(slot)
            digests[name] = task.result()

    with ThreadPoolExecutor(max(1, filler.num_buffers - 1), thread_name_prefix="fastload-write") as writers:
        for number in filler.numbers:
            shard, slot = plan.shards[number], filler.slots[number]
            if (metadata := finished_shard(plan, number, folder)) is not None:
                # An earlier run may have skipped what this one must stop at.
                for bad in metadata["skipped"] if not filler.skip_bad else ():
                    raise DecodeError(bad["path"], bad["reason"])
                advance(len(shard.records))
                continue
            finish(slot)
            told = b"".join(pool.run(number, len(shard.records), advance))
            writing[slot] = shard.file, writers.submit(filler.write, number, folder, told)
        for slot in list(writing):
            finish(slot)
    return digests


def num_writers(workers: int) -> int:
    """Return how many shards to write at a time: one for four processes that decode, a rule of thumb."""
    return -(-workers // 4)


def _moments(image_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return [sum, sum of squares] per channel, exact, uint64 [2, C]."""
    height, width, channels = image_HWC.shape
    moments = np.zeros((2, channels), np.uint64)
    # Down the rows first: numpy adds long contiguous rows an order of magnitude faster than groups of 3. In
    # float32, the fastest, and exact: 256 squares of at most 255 stay below 2**24.
    for first in range(0, height, 256):
        rows = image_HWC[first : first + 256].reshape(-1, width * channels).astype(np.float32)
        for which, added in enumerate((rows.sum(0), np.einsum("ij,ij->j", rows, rows))):
            moments[which] += added.astype(np.uint64).reshape(width, channels).sum(0)
    return moments
