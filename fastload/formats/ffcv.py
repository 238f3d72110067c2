"""FFCV's `.beton`, checked and read without ffcv.

ffcv trusts its file: a wrong number becomes gigabytes, or a write past the end of a buffer. So every
number is checked here before ffcv, or we, follow it.

    header            24 bytes: version, fields, page size, samples, where the allocation table begins
    field             1041 bytes each: kind, name (16 bytes, cut), arguments
    metadata          one row per sample: numbers themselves; width, height, mode and place of an image
    pages             from the next multiple of the page size on; every page is written in full
    allocation table  sample, place and size of every piece of data; to the end of the file

Source: types.py, writer.py, memory_allocator.py and fields/ of ffcv 1.0.2. Letters: N samples, K fields
that keep data in pages.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fastload.errors import DatasetError, printable
from fastload.formats.resident import sha256_of

FORMAT = "fastload-beton"
VERSION = 1
BETON_VERSION = 2
MIN_PAGE_BYTES = 1 << 21
JPG, RAW = 0, 1
BLOCK_BYTES = 4 << 20  # what one step of a check reads

HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("table_start", "<u8")]
)
FIELD = np.dtype([("kind", "u1"), ("name", "S16"), ("arguments", "V1024")])
TABLE_ENTRY = np.dtype([("sample", "<u8"), ("start", "<u8"), ("size", "<u8")])
IMAGE_ROW = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("start", "<u8")])
BYTES_ROW = np.dtype([("start", "<u8"), ("size", "<u8")])
KINDS: dict[int, tuple[str, np.dtype[Any]]] = {
    0: ("float", np.dtype("<f8")),
    1: ("int", np.dtype("<i8")),
    2: ("image", IMAGE_ROW),
    3: ("bytes", BYTES_ROW),
    4: ("ndarray", np.dtype("<u8")),
    5: ("json", BYTES_ROW),
    6: ("tensor", np.dtype("<u8")),
}
PAGED_KINDS = ("image", "bytes", "ndarray", "json", "tensor")


@dataclass(frozen=True, kw_only=True)
class BetonField:
    """One field of a beton: its name as stored, and its kind as KINDS calls it."""

    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class BetonInfo:
    """What a beton says of itself, checked.

    Attributes:
        path: the file.
        num_samples: N, at least 1.
        fields: in file order, names distinct.
        page_size: bytes; a power of 2.
        num_bytes: size of the file.
        table_start: offset of the allocation table; ffcv calls it alloc_table_ptr.
    """

    path: Path
    num_samples: int
    fields: tuple[BetonField, ...]
    page_size: int
    num_bytes: int
    table_start: int

    @property
    def metadata_start(self) -> int:
        """Offset of the metadata."""
        return HEADER.itemsize + len(self.fields) * FIELD.itemsize

    @property
    def metadata_end(self) -> int:
        """Offset behind the metadata."""
        return self.metadata_start + self.num_samples * self.metadata_type.itemsize

    @property
    def data_start(self) -> int:
        """Offset of the first page."""
        return -(-self.metadata_end // self.page_size) * self.page_size

    @cached_property
    def metadata_type(self) -> np.dtype[Any]:
        """A row of the metadata: fields `f0`, `f1`, ... in file order."""
        types = dict(KINDS.values())
        return np.dtype([("", types[field.kind]) for field in self.fields], align=True)

    @cached_property
    def paged(self) -> dict[str, int]:
        """The K fields that keep data in pages: their column in the metadata -> their place among the K."""
        columns = [f"f{i}" for i, field in enumerate(self.fields) if field.kind in PAGED_KINDS]
        return {column: k for k, column in enumerate(columns)}

    def columns(self, kind: str) -> dict[str, BetonField]:
        """Return the fields of one kind: column in the metadata -> field."""
        return {f"f{i}": field for i, field in enumerate(self.fields) if field.kind == kind}


def check_beton(path: str | Path) -> BetonInfo:
    """Check a `.beton` file, ours or foreign, before anything follows its numbers.

    Header, fields, sizes, every entry of the allocation table and every image's size and place are
    checked against each other and against the file's size. No pixel is read. Memory is bounded by the
    bytes that are really there: about 50 per sample.

    Raises:
        DatasetError: missing, no beton, unfinished, cut, or its numbers contradict each other.
    """
    return _inspect(Path(path))[0]


def _damaged(path: Path, found: str) -> DatasetError:
    return DatasetError(f"{printable(path)} {found}; convert it again, or copy it anew.")


def _inspect(path: Path) -> tuple[BetonInfo, npt.NDArray[np.uint64]]:
    """Return what the file says and, for each sample and paged field, (start, size): uint64 [N, K, 2]."""
    if not path.is_file():  # a pipe or a device would wait for ever, or never end
        found = "is no file" if path.exists() else "does not exist"
        raise DatasetError(f"{printable(path)} {found}; pass a .beton file.")
    try:
        with path.open("rb") as file:
            info = _read_head(file, path)
            places_NK2 = _read_table(file, info)
            _check_images(file, info, places_NK2)
    except OSError as e:
        raise DatasetError(f"{printable(path)} cannot be read ({e.strerror}); check its permissions.") from e
    return info, places_NK2


def _read_head(file: BinaryIO, path: Path) -> BetonInfo:
    num_bytes = path.stat().st_size
    if num_bytes < HEADER.itemsize:
        raise _damaged(path, f"has {num_bytes} bytes, too few for a .beton's header")
    header = np.frombuffer(_exactly(file, HEADER.itemsize, path), HEADER)[0]
    version, num_fields, page_size, num_samples, table_start = (int(n) for n in header)
    if version != BETON_VERSION:
        raise _damaged(path, f"is no .beton of version {BETON_VERSION} (its header says {version})")
    if num_fields < 1 or num_samples < 1:
        raise _damaged(path, f"holds {num_samples:,} samples of {num_fields} fields, so nothing")
    if page_size < MIN_PAGE_BYTES or page_size & (page_size - 1):
        raise _damaged(path, f"has pages of {page_size:,} bytes, not a power of 2 from {MIN_PAGE_BYTES:,} on")
    if table_start == 0:
        raise _damaged(path, "is unfinished: whoever wrote it was stopped, or is still at it")
    if HEADER.itemsize + num_fields * FIELD.itemsize > num_bytes:
        raise _damaged(path, f"was cut: it has {num_bytes:,} bytes, and its {num_fields} fields alone need more")
    info = BetonInfo(
        path=path,
        num_samples=num_samples,
        fields=_read_fields(_exactly(file, num_fields * FIELD.itemsize, path), path),
        page_size=page_size,
        num_bytes=num_bytes,
        table_start=table_start,
    )
    _check_sizes(info)
    return info


def _check_sizes(info: BetonInfo) -> None:
    table_bytes = info.num_bytes - info.table_start
    if table_bytes < 0 or info.metadata_end > info.table_start:
        raise _damaged(
            info.path,
            f"was cut or changed: it has {info.num_bytes:,} bytes, the metadata of its {info.num_samples:,} samples "
            f"end at {info.metadata_end:,} and its allocation table begins at {info.table_start:,}",
        )
    wanted = info.num_samples * len(info.paged) * TABLE_ENTRY.itemsize
    if table_bytes != wanted:
        raise _damaged(
            info.path,
            f"was cut or changed: its allocation table has {table_bytes:,} bytes, "
            f"its {info.num_samples:,} samples need {wanted:,}",
        )
    page_bytes = info.table_start - info.data_start
    if info.paged and (page_bytes <= 0 or page_bytes % info.page_size):
        raise _damaged(info.path, "was cut or changed: its data do not fill whole pages")


def _read_fields(data: bytes, path: Path) -> tuple[BetonField, ...]:
    fields = []
    for number, row in enumerate(np.frombuffer(data, FIELD)):
        name = bytes(row["name"]).split(b"\0")[0]
        if not name or not name.isascii():
            raise _damaged(path, f"has no readable name for field {number}")
        kind = KINDS.get(int(row["kind"]))
        if kind is None:
            raise _damaged(
                path, f"has a field {printable(name.decode())!r} of kind {row['kind']}, which only its writer can read"
            )
        fields.append(BetonField(name=name.decode(), kind=kind[0]))
    if len({field.name for field in fields}) < len(fields):
        # ffcv keeps fields by name: one of the two would vanish, and every later one be read from the wrong place.
        raise _damaged(path, "has two fields of one name (FFCV cuts names after 16 letters)")
    return tuple(fields)


def _read_table(file: BinaryIO, info: BetonInfo) -> npt.NDArray[np.uint64]:
    """Check every entry of the allocation table and return them by sample: (start, size), uint64 [N, K, 2]."""
    K = len(info.paged)
    if K == 0:
        return np.empty((info.num_samples, 0, 2), np.uint64)
    samples: list[npt.NDArray[np.uint64]] = []
    places: list[npt.NDArray[np.uint64]] = []
    # Block by block, nothing reserved ahead: in a file with holes a made-up count reads as zeros, and those fail.
    for block in _blocks(file, info.path, info.table_start, np.dtype((TABLE_ENTRY, (K,))), info.num_samples):
        sample, start, size = block["sample"], block["start"], block["size"]
        inside = (start >= info.data_start) & (start <= info.table_start)
        inside &= size <= np.where(inside, info.table_start - start, 0)
        inside &= start % info.page_size + size <= info.page_size
        known = (sample == sample[:, :1]) & (sample < info.num_samples)
        if not (inside & known).all():
            row, k = np.unravel_index(np.argmin(inside & known), sample.shape)
            raise _damaged(
                info.path,
                f"was changed: its allocation table puts {size[row, k]:,} bytes of sample {sample[row, k]:,} "
                f"at {start[row, k]:,}",
            )
        # ffcv allocates field by field, so a sample's entries stand together and in field order.
        samples.append(sample[:, 0])
        places.append(np.stack([start, size], -1))
    sample_N = np.concatenate(samples)
    seen = np.zeros(info.num_samples, bool)
    seen[sample_N] = True
    if not seen.all():
        raise _damaged(info.path, f"was changed: sample {int(np.argmin(seen)):,} has no data")
    places_NK2 = np.empty((info.num_samples, K, 2), np.uint64)
    places_NK2[sample_N] = np.concatenate(places)
    return places_NK2


def _check_images(file: BinaryIO, info: BetonInfo, places_NK2: npt.NDArray[np.uint64]) -> None:
    columns = info.columns("image")
    if not columns:
        return
    first = 0
    for rows in _blocks(file, info.path, info.metadata_start, info.metadata_type, info.num_samples):
        for column in columns:
            image, (start, size) = rows[column], places_NK2[first : first + len(rows), info.paged[column]].T
            raw_bytes = image["width"].astype(np.uint64) * image["height"] * 3
            good = (raw_bytes > 0) & (image["start"] == start)
            good &= np.where(image["mode"] == RAW, size == raw_bytes, (image["mode"] == JPG) & (size > 0))
            if not good.all():
                bad = int(np.argmin(good))
                raise _damaged(
                    info.path,
                    f"has a broken image: sample {first + bad:,} is {image['width'][bad]}x{image['height'][bad]}, "
                    f"mode {image['mode'][bad]}, {size[bad]:,} bytes at {image['start'][bad]:,}",
                )
        first += len(rows)


def _blocks(
    file: BinaryIO, path: Path, start: int, row: np.dtype[Any], num_rows: int
) -> Iterator[npt.NDArray[np.void]]:
    """Yield `num_rows` rows from `start` on, some at a time."""
    file.seek(start)
    step = max(1, BLOCK_BYTES // row.itemsize)
    for first in range(0, num_rows, step):
        count = min(step, num_rows - first)
        yield np.frombuffer(_exactly(file, count * row.itemsize, path), row.base).reshape(count, *row.shape)


def _exactly(file: BinaryIO, num_bytes: int, path: Path) -> bytes:
    data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise _damaged(path, "was cut while it was read")
    return data


class Beton(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """The images and labels of a beton, one by one; `open_beton` makes it.

    Attributes:
        info: what the file says of itself.
        about: what the JSON beside it says; empty where there is none of ours.
        labels: int64 [N], in memory.
        classes: class names, index = label; empty where no JSON names them.
        sizes: int64 [N, 2], (H, W) of every image.
    """

    def __init__(self, path: Path) -> None:
        self.info, places_NK2 = _inspect(path)
        image, label = _column(self.info, "image", "image"), _column(self.info, "label", "int")
        with path.open("rb") as file:
            blocks = _blocks(file, path, self.info.metadata_start, self.info.metadata_type, self.info.num_samples)
            rows = np.concatenate([block[[image, label]] for block in blocks])
        self._modes = rows[image]["mode"].copy()
        self._places_N2 = places_NK2[:, self.info.paged[image]].copy()
        sizes_N2 = np.stack([rows[image]["height"], rows[image]["width"]], -1)
        self.sizes = torch.from_numpy(sizes_N2.astype(np.int64))
        self.labels = torch.from_numpy(rows[label].astype(np.int64))
        self.about = _read_about(self.info)
        self.classes = tuple(str(c) for c in self.about.get("classes", ()))
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        if self.classes and not -1 <= lowest <= highest < len(self.classes):
            raise _damaged(path, f"has labels from {lowest} to {highest}, outside of its {len(self.classes)} classes")

    def __len__(self) -> int:
        return self.info.num_samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return (uint8 [H, W, 3], label).

        Raises:
            DatasetError: the sample's bytes are gone, or are no JPEG of the size that the file names.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        height, width = (int(n) for n in self.sizes[index])
        start, size = (int(n) for n in self._places_N2[index])
        data = bytearray(size)
        # Read, not mapped: a file that is cut under a mapping ends the process, here it is an error.
        with self.info.path.open("rb") as file:
            file.seek(start)
            if file.readinto(data) != size:
                raise _damaged(self.info.path, f"was cut: sample {index:,} is not whole")
        if self._modes[index] == RAW:
            pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        else:
            pixels = self._decode(data, index, height, width)
        return torch.from_numpy(pixels), int(self.labels[index])

    def _decode(self, data: bytearray, index: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of large images; the size is checked here
                with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                    if image.size == (width, height):
                        return np.array(image.convert("RGB"))
                    found = f"{image.size[0]}x{image.size[1]}, not {width}x{height}"
        except Exception as e:  # Pillow raises a dozen kinds on damaged data: OSError, SyntaxError, struct.error
            found = f"not a whole JPEG ({printable(e)})"
        raise _damaged(self.info.path, f"was changed: sample {index:,} is {found}")


def open_beton(path: str | Path) -> Beton:
    """Check a `.beton` file, ours or foreign, and open it: `len`, `[i] -> (uint8 [H, W, 3], label)`.

    The image is the field `image`, or the first one of images; the label is `label`, or the first one of
    whole numbers. ffcv is not needed for it.

    Raises:
        DatasetError: as `check_beton`; or no image or label field; or the JSON beside it is of another file.
    """
    return Beton(Path(path))


def find_beton_damage(path: str | Path, advance: Callable[[int], object] | None = None) -> Iterator[str]:
    """Yield one sentence if the file is not what the JSON beside it says, calling `advance(bytes)` as it reads."""
    path = Path(path)
    try:
        about = _read_about(check_beton(path))
        if not about:
            yield f"{printable(path)}: no {printable(path.with_suffix('.json').name)} beside it holds its checksum."
        elif sha256_of(path, advance) != about["sha256"]:
            yield f"{printable(path)}: its bytes are not those that were written."
    except DatasetError as e:
        yield str(e)


def _column(info: BetonInfo, name: str, kind: str) -> str:
    columns = info.columns(kind)
    if not columns:
        has = ", ".join(f"{printable(field.name)} ({field.kind})" for field in info.fields[:8])
        raise DatasetError(f"{printable(info.path)} has no field of kind {kind}; it has: {has}.")
    return next((column for column, field in columns.items() if field.name == name), next(iter(columns)))


def _read_about(info: BetonInfo) -> dict[str, Any]:
    """Return the JSON beside a beton; empty where there is none, or it is not of our making."""
    file = info.path.with_suffix(".json")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise DatasetError(
            f"{printable(file)} cannot be read ({printable(e)}); convert again, or move it away to go without it."
        ) from e
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        return {}
    if about.get("version") != VERSION:
        found = printable(about.get("version"))
        raise DatasetError(f"{printable(file)} has version {found}, not {VERSION}; convert again.")
    if not isinstance(about.get("classes"), list) or not isinstance(about.get("sha256"), str):
        raise DatasetError(f"{printable(file)} is damaged: no classes or no sha256; convert again.")
    if (about.get("count"), about.get("num_bytes")) != (info.num_samples, info.num_bytes):
        raise DatasetError(
            f"{printable(file)} is of another file: it names {printable(about.get('count'))} samples in "
            f"{printable(about.get('num_bytes'))} bytes, {printable(info.path.name)} has {info.num_samples:,} in "
            f"{info.num_bytes:,}; convert again, or copy both."
        )
    return about
