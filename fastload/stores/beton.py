"""Images of a `.beton`, decoded and cut by ffcv's own compiled functions, on threads of ours.

ffcv's Loader is left aside, and with it what it does badly: nothing is compiled (its first epoch takes 5 to 25
seconds), a decoder that fails is an error and not a wait for ever, every batch is new memory, any number of threads
will do, and they end with the pass. Letters: B samples, H W stored pixels, S T of the batch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastload.errors import ConfigError, DatasetError, printable
from fastload.machine import INSTALL_FFCV
from fastload.recycling import Blocks
from fastload.stores import Served, Wanted

BATCHES_AHEAD = 2
JPG = 0
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class BetonFile:
    """Where the images of a checked beton lie.

    Attributes:
        path: the file.
        modes: uint8 [N]; JPG or raw.
        places: int64 [N, 2], (start, size) in bytes.
        sizes: int64 [N, 2], (H, W).
    """

    path: Path
    modes: Bytes
    places: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


class BetonStore:
    """Images of a beton, decoded a few batches ahead.

    Args:
        file: where they lie.
        size: (S, T) of the batches: that of all images where none is cut.
        threads: that read and decode during a pass.
        pinned: give batches in page-locked RAM.

    Raises:
        ConfigError: ffcv is not installed, or a library that it needs is missing.
    """

    def __init__(self, file: BetonFile, size: tuple[int, int], *, threads: int, pinned: bool = False) -> None:
        self._file, self._size, self._threads, self._pinned = file, size, threads, pinned
        self._library = load_library()
        self._blocks = Blocks()

    def serve(self, steps: Iterator[Wanted]) -> Generator[Served, None, None]:
        """See Store.

        Raises:
            DatasetError: an image cannot be read or decoded; names it.
        """
        under_way: deque[tuple[Wanted, torch.Tensor, list[Future[None]]]] = deque()
        try:
            descriptor = os.open(self._file.path, os.O_RDONLY)
        except OSError as e:
            raise DatasetError(
                f"{printable(self._file.path)} cannot be read ({e.strerror}); check that it is still there."
            ) from e
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="fastload-decode")
        try:
            for wanted in steps:
                under_way.append(self._begin(pool, descriptor, wanted))
                if len(under_way) > BATCHES_AHEAD:
                    yield _finished(*under_way.popleft())
            while under_way:
                yield _finished(*under_way.popleft())
        finally:
            # Waits for the few images in hand: nobody writes into memory, or reads the file, after this.
            pool.shutdown(wait=True, cancel_futures=True)
            os.close(descriptor)

    def _begin(
        self, pool: ThreadPoolExecutor, descriptor: int, wanted: Wanted
    ) -> tuple[Wanted, torch.Tensor, list[Future[None]]]:
        shape = (len(wanted.ids), *self._size, 3)
        images = (
            torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=True) if self._pinned
            else self._blocks.empty(shape, torch.uint8)
        )  # fmt: skip
        rows = np.array_split(np.arange(len(wanted.ids)), self._threads)
        parts = [pool.submit(self._decode, descriptor, wanted, images.numpy(), part) for part in rows if len(part)]
        return wanted, images, parts

    def _decode(self, descriptor: int, wanted: Wanted, images: Bytes, rows: npt.NDArray[np.int64]) -> None:
        """Decode some rows of a batch into `images`, uint8 [B, S, T, 3]."""
        file, pixels = self._file, np.empty(0, np.uint8)
        ids = wanted.ids.numpy()[rows]
        boxes = None if wanted.boxes is None else wanted.boxes(file.sizes[ids], ids)
        for number, row in enumerate(rows):
            index = int(ids[number])
            start, num_bytes = (int(n) for n in file.places[index])
            height, width = (int(n) for n in file.sizes[index])
            if pixels.size < height * width * 3 and boxes is not None:
                pixels = np.empty(height * width * 3, np.uint8)
            target = images[row].reshape(-1) if boxes is None else pixels[: height * width * 3]
            if file.modes[index] == JPG:
                data = np.empty(num_bytes, np.uint8)
                self._read(descriptor, data, start, index)
                self._decode_jpeg(data, target, height, width, index)
            else:
                self._read(descriptor, target, start, index)
            if boxes is not None:
                top, left, box_height, box_width = (int(n) for n in boxes[number])
                self._library.resize(
                    0, target.ctypes.data, height, width, top, top + box_height, left, left + box_width,
                    images[row].ctypes.data, *self._size,
                )  # fmt: skip

    def _read(self, descriptor: int, target: Bytes, start: int, index: int) -> None:
        # Read, not mapped: a file that is cut under a mapping ends the process, here it is an error.
        if os.preadv(descriptor, [target.data], start) != target.size:
            raise DatasetError(
                f"{printable(self._file.path)} was cut: sample {index:,} is not whole; convert it again, or copy it "
                "anew."
            )

    def _decode_jpeg(self, data: Bytes, target: Bytes, height: int, width: int, index: int) -> None:
        found: object = jpeg_size(data.data)
        # Held against the file's own number first: ffcv would shrink a larger image, and tear a smaller one.
        if found == (height, width):
            status = self._library.imdecode(
                data.ctypes.data, data.size, height, width, target.ctypes.data, height, width, 0, 0, 1, 1, False, False
            )
            if status == 0:
                return
            found = "not whole"
        raise DatasetError(
            f"{printable(self._file.path)} was changed: sample {index:,} is no JPEG of {height}x{width} ({found}); "
            "convert it again, or copy it anew."
        )


def _finished(wanted: Wanted, images: torch.Tensor, parts: list[Future[None]]) -> Served:
    for part in parts:
        part.result()
    return Served(wanted=wanted, samples=images)


def jpeg_size(data: Any) -> tuple[int, int] | None:
    """Return (height, width) that a JPEG's header names; None where it has none."""
    at, end = 2, len(data)
    while at + 9 <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def can_decode() -> bool:
    """Whether ffcv's functions are here."""
    try:
        load_library()
    except ConfigError:
        return False
    return True


@lru_cache(maxsize=1)
def load_library() -> Any:
    """Return ffcv's compiled functions. Importing ffcv itself would take seconds, most of it numba's.

    Raises:
        ConfigError: ffcv is not installed, or a library that it needs is missing.
    """
    spec = importlib.util.find_spec("ffcv")
    folders = spec.submodule_search_locations if spec is not None else None
    files = [file for folder in folders or () for file in Path(folder).glob("_libffcv*.so")]
    try:
        library = ctypes.CDLL(str(files[0]))
    except (IndexError, OSError) as e:
        found = "it is not installed" if isinstance(e, IndexError) else printable(e)
        raise ConfigError(
            f'placement="ffcv" needs ffcv ({found}); get it with: {INSTALL_FFCV}; or use placement="folder".'
        ) from e
    address, number = ctypes.c_void_p, ctypes.c_uint32
    library.imdecode.argtypes = [
        address, ctypes.c_uint64, number, number, address, *[number] * 6, ctypes.c_bool, ctypes.c_bool,
    ]  # fmt: skip
    library.resize.argtypes = [ctypes.c_int64] * 11
    library.resize.restype = None
    # OpenCV would start threads of its own under ours, and keep them; one that lacks the name is slower, and right.
    with suppress(AttributeError):
        library["_ZN2cv13setNumThreadsEi"](0)
    return library
