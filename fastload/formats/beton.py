"""FFCV's `.beton`: how it is laid out, and whether a file is whole. ffcv is not needed for it.

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

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fastload.errors import DatasetError, printable
from fastload.places import exists

BETON_VERSION = 2
MIN_PAGE_BYTES = 1 << 21
JPG, RAW = 0, 1
MAX_PIXELS = 178_000_000  # of a JPEG, which a few bytes may say to be any size; what is raw is there
BLOCK_BYTES = 4 << 20  # what one step of a check reads

HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("table_start", "<u8")]
)
FIELD = np.dtype([("kind", "u1"), ("name", "S16"), ("arguments", "V1024")])
TABLE_ENTRY = np.dtype([("sample", "<u8"), ("start", "<u8"), ("size", "<u8")])
IMAGE_ROW = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("start", "<u8")])
BYTES_ROW = np.dtype([("start", "<u8"), ("size", "<u8")])
Numbers = npt.NDArray[np.uint64]
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
    bytes that are really there: under 100 per sample.

    Raises:
        DatasetError: missing, no beton, unfinished, cut, or its numbers contradict each other.
    """
    return inspect(Path(path))[0]


def damaged(path: Path, found: str) -> DatasetError:
    """Return the error for a file in which `found` is wrong."""
    return DatasetError(f"{printable(path)} {found}; convert it again, or copy it anew.")


def inspect(path: Path) -> tuple[BetonInfo, Numbers]:
    """Return what the file says and, for each sample and paged field, (start, size): uint64 [N, K, 2]."""
    if not exists(path, DatasetError) or not path.is_file():  # a pipe or a device would wait for ever, or never end
        found = "is no file" if path.exists() else "does not exist"
        raise DatasetError(f"{printable(path)} {found}; pass a .beton file.")
    try:
        with path.open("rb") as file:
            info = _read_head(file, path)
            places_NK2 = _read_table(file, info)
            _check_rows(file, info, places_NK2)
    except OSError as e:
        raise DatasetError(f"{printable(path)} cannot be read ({e.strerror}); check its permissions.") from e
    return info, places_NK2


def _read_head(file: BinaryIO, path: Path) -> BetonInfo:
    num_bytes = path.stat().st_size
    if num_bytes < HEADER.itemsize:
        raise damaged(path, f"has {num_bytes} bytes, too few for a .beton's header")
    header = np.frombuffer(_exactly(file, HEADER.itemsize, path), HEADER)[0]
    version, num_fields, page_size, num_samples, table_start = (int(n) for n in header)
    if version != BETON_VERSION:
        raise damaged(path, f"is no .beton of version {BETON_VERSION} (its header says {version})")
    if num_fields < 1 or num_samples < 1:
        raise damaged(path, f"holds {num_samples:,} samples of {num_fields} fields, so nothing")
    if page_size < MIN_PAGE_BYTES or page_size & (page_size - 1):
        raise damaged(path, f"has pages of {page_size:,} bytes, not a power of 2 from {MIN_PAGE_BYTES:,} on")
    if table_start == 0:
        raise damaged(path, "is unfinished: whoever wrote it was stopped, or is still at it")
    if HEADER.itemsize + num_fields * FIELD.itemsize > num_bytes:
        raise damaged(path, f"was cut: it has {num_bytes:,} bytes, and its {num_fields} fields alone need more")
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
        found = f"{info.num_bytes:,} bytes, metadata to {info.metadata_end:,}, a table from {info.table_start:,} on"
        raise damaged(info.path, f"was cut or changed: it has {found}")
    wanted = info.num_samples * len(info.paged) * TABLE_ENTRY.itemsize
    if table_bytes != wanted:
        raise damaged(info.path, f"was cut or changed: its table has {table_bytes:,} bytes, not {wanted:,}")
    page_bytes = info.table_start - info.data_start
    if info.paged and (page_bytes <= 0 or page_bytes % info.page_size):
        raise damaged(info.path, "was cut or changed: its data do not fill whole pages")


def _read_fields(data: bytes, path: Path) -> tuple[BetonField, ...]:
    fields = []
    for number, row in enumerate(np.frombuffer(data, FIELD)):
        name = bytes(row["name"]).split(b"\0")[0]
        if not name or not name.isascii():
            raise damaged(path, f"has no readable name for field {number}")
        kind = KINDS.get(int(row["kind"]))
        if kind is None:
            shown = printable(name.decode())
            raise damaged(path, f"has a field {shown!r} of kind {row['kind']}, which only its writer can read")
        fields.append(BetonField(name=name.decode(), kind=kind[0]))
    if len({field.name for field in fields}) < len(fields):
        # ffcv keeps fields by name: one of the two would vanish, and every later one be read from the wrong place.
        raise damaged(path, "has two fields of one name (FFCV cuts names after 16 letters)")
    return tuple(fields)


def _read_table(file: BinaryIO, info: BetonInfo) -> Numbers:
    """Check every entry of the allocation table and return them by sample: (start, size), uint64 [N, K, 2]."""
    K = len(info.paged)
    if K == 0:
        return np.empty((info.num_samples, 0, 2), np.uint64)
    samples: list[Numbers] = []
    places: list[Numbers] = []
    # Block by block, nothing reserved ahead: in a file with holes a made-up count reads as zeros, and those fail.
    for block in blocks(file, info.path, info.table_start, np.dtype((TABLE_ENTRY, (K,))), info.num_samples):
        sample, start, size = block["sample"], block["start"], block["size"]
        inside = (start >= info.data_start) & (start <= info.table_start)
        inside &= size <= np.where(inside, info.table_start - start, 0)
        inside &= start % info.page_size + size <= info.page_size
        known = (sample == sample[:, :1]) & (sample < info.num_samples)
        if not (inside & known).all():
            number, at, count = (int(n) for n in block.flat[int(np.argmin(inside & known))])
            raise damaged(info.path, f"was changed: its table puts {count:,} bytes of sample {number:,} at {at:,}")
        # ffcv allocates field by field, so a sample's entries stand together and in field order.
        samples.append(sample[:, 0].copy())
        places.append(np.stack([start, size], -1))
    sample_N = np.concatenate(samples)
    seen = np.zeros(info.num_samples, bool)
    seen[sample_N] = True
    if not seen.all():
        raise damaged(info.path, f"was changed: sample {int(np.argmin(seen)):,} has no data")
    places_NK2 = np.empty((info.num_samples, K, 2), np.uint64)
    places_NK2[sample_N] = np.concatenate(places)
    return places_NK2


def _check_rows(file: BinaryIO, info: BetonInfo, places_NK2: Numbers) -> None:
    """Check that every row of the metadata names the place, and an image the size, of its data."""
    if not info.paged:
        return
    first = 0
    for rows in blocks(file, info.path, info.metadata_start, info.metadata_type, info.num_samples):
        for column, k in info.paged.items():
            good = _fits(rows[column], *places_NK2[first : first + len(rows), k].T)
            if not good.all():
                bad = int(np.argmin(good))
                said, names = rows[column][bad].item(), rows.dtype[column].names or ("start",)
                found = ", ".join(f"{name} {n}" for name, n in zip(names, np.atleast_1d(said), strict=True))
                at, size = (int(n) for n in places_NK2[first + bad, k])
                name = printable(info.fields[int(column[1:])].name)
                raise damaged(
                    info.path, f"has a broken {name}: sample {first + bad:,} has {found}, with {size:,} bytes at {at:,}"
                )
        first += len(rows)


def _fits(rows: npt.NDArray[Any], start: Numbers, size: Numbers) -> npt.NDArray[Any]:
    names = rows.dtype.names
    if names is None:
        good = rows == start
    elif "mode" not in names:
        good = (rows["start"] == start) & (rows["size"] == size)
    else:
        raw_bytes = rows["width"].astype(np.uint64) * rows["height"] * 3
        is_jpg = (rows["mode"] == JPG) & (size > 0) & (raw_bytes <= 3 * MAX_PIXELS)
        as_its_mode = np.where(rows["mode"] == RAW, size == raw_bytes, is_jpg)
        good = (rows["start"] == start) & (raw_bytes > 0) & as_its_mode
    return np.asarray(good)


def blocks(file: BinaryIO, path: Path, start: int, row: np.dtype[Any], num_rows: int) -> Iterator[npt.NDArray[Any]]:
    """Yield `num_rows` rows from `start` on, some at a time."""
    file.seek(start)
    step = max(1, BLOCK_BYTES // row.itemsize)
    for first in range(0, num_rows, step):
        count = min(step, num_rows - first)
        yield np.frombuffer(_exactly(file, count * row.itemsize, path), row.base).reshape(count, *row.shape)


def _exactly(file: BinaryIO, num_bytes: int, path: Path) -> bytes:
    data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise damaged(path, "was cut while it was read")
    return data
