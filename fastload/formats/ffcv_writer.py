"""Writing a `.beton` through ffcv's own writer, without what that writer lacks.

ffcv's DatasetWriter hands the dataset to worker processes and waits until they have counted up to the
end: one that meets a bad image, an image larger than a page, or a kill signal, and it waits for ever.
So its processes stay unused. Threads of ours decode, check and encode (with ffcv's RGBImageField), and
one thread places the results in sample order (with ffcv's MemoryAllocator) between the writer's own
`prepare` and `finalize`. Nothing can hang, and the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fastload.errors import ConfigError, DatasetError, printable
from fastload.files import Draft, draft_path, sync
from fastload.formats.beton import MAX_PIXELS, check_beton
from fastload.formats.resident import sha256_of
from fastload.machine import INSTALL_FFCV
from fastload.records import stable_rank

FORMAT = "fastload-beton"
VERSION = 1
Mode = Literal["raw", "jpg", "proportion"]
Sample = Callable[[int], tuple[npt.NDArray[np.uint8], int]]

JPEG_SHARE = 0.5  # of the samples in a beton of mode `proportion`
FIRST_PAGE_BYTES = 8 << 20  # ffcv's own choice; images that do not fit a page get a larger one
MAX_PAGE_BYTES = 1 << 30  # ffcv writes a page with one write(), and Linux cuts that just under 2 GiB
MAX_SIDE = {"raw": 65_535, "jpg": 65_500, "proportion": 65_500}  # 16 bits in the metadata; libjpeg's own limit


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images are stored in a beton.

    Attributes:
        mode: `raw` pixels, `jpg`, or `proportion`: a fixed, random-looking half of the samples as jpg.
        quality: of the JPEGs, 1 to 100.
        max_resolution: the longer side in pixels; larger images are shrunk to it. None leaves all as they are.
    """

    mode: Mode = "raw"
    quality: int = 90
    max_resolution: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode={printable(self.mode)!r}: not one of {', '.join(get_args(Mode))}.")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality={self.quality}: JPEG quality lies between 1 and 100; try 90.")
        if self.max_resolution is not None and not 1 <= self.max_resolution <= MAX_SIDE[self.mode]:
            raise ConfigError(
                f"max_resolution={self.max_resolution}: a side has 1 to {MAX_SIDE[self.mode]:,} pixels; try 256."
            )

    def is_jpg(self, index: int) -> bool:
        """Return whether sample `index` becomes a JPEG: by its number alone, where ffcv throws dice."""
        if self.mode == "proportion":
            return int.from_bytes(stable_rank(0, str(index))) < JPEG_SHARE * 2.0**128
        return self.mode == "jpg"


class _PageTooSmallError(Exception):
    """An image does not fit into a page; the argument is its size in bytes."""


def write_beton(
    out: Path,
    num_samples: int,
    sample: Sample,
    *,
    classes: Sequence[str],
    mode: Mode = "raw",
    quality: int = 90,
    max_resolution: int | None = None,
    workers: int,
    info: dict[str, Any],
    advance: Callable[[int], object],
) -> Path:
    """Write samples 0 .. num_samples - 1 to `out`, and what is to be known of them to a JSON beside it.

    Both come whole or not at all: each is written under a temporary name, flushed and renamed, the JSON
    last. The same samples and options give the same bytes, whatever the number of workers. An image
    larger than a page (8 MiB, or what `max_resolution` needs) makes the run begin again with larger pages.

    Args:
        out: the file, ending in `.beton`; the JSON gets the same name with `.json`.
        num_samples: at least 1.
        sample: index -> (uint8 [H, W, 3], label); called from several threads, not in order, and again
            for samples that came before an image larger than a page. What it raises ends the run.
        classes: class names, index = label; a label of -1 means none.
        mode, quality, max_resolution: see Encoding.
        workers: threads that call `sample` and encode.
        info: goes into the JSON as it is.
        advance: called with 1 for every finished sample, from the calling thread.

    Returns:
        `out`.

    Raises:
        ConfigError: an option cannot be right, or ffcv is not installed.
        DatasetError: the output exists, is being written by another process, or cannot be written; or
            `sample` gave something that is no image or no label of `classes`.
    """
    encoding = Encoding(mode=mode, quality=quality, max_resolution=max_resolution)
    if out.suffix != ".beton":
        raise ConfigError(f"{printable(out)}: the name of an FFCV file ends in .beton; add it.")
    if num_samples < 1 or workers < 1:
        raise ConfigError(f"num_samples={num_samples}, workers={workers}: both have to be at least 1.")
    _import_ffcv()
    with _unfinished(out) as (draft, about_temporary):
        begun_ns, temporary = os.fstat(draft.descriptor).st_mtime_ns, draft_path(out)
        counts = _fill(temporary, num_samples, sample, len(classes), encoding, workers, advance)
        written = check_beton(temporary)
        about = {
            "format": FORMAT,
            "version": VERSION,
            "file": out.name,
            "count": num_samples,
            "num_bytes": written.num_bytes,
            "sha256": sha256_of(temporary),
            "classes": list(classes),
            "counts": {str(label): counts[label] for label in sorted(counts)},
            "mode": mode,
            "quality": quality,
            "jpeg_share": JPEG_SHARE,
            "max_resolution": max_resolution,
            "ffcv": version("ffcv"),
            "info": info,
        }
        about_temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        # Not of now: an image that was changed after it was read has to be newer than its beton.
        os.utime(about_temporary, ns=(begun_ns, begun_ns))
        sync(about_temporary)
        draft.publish()
        about_temporary.replace(out.with_suffix(".json"))
        sync(out.parent)
    return out


def is_about_beton(file: Path) -> bool:
    """Tell whether a file is the JSON beside a beton of ours, cut or whole."""
    if not file.is_file():  # a pipe would wait for ever
        return False
    try:
        with file.open("rb") as opened:
            return FORMAT.encode() in opened.read(100)  # its first field; others' may be gigabytes
    except OSError:
        return False


def _import_ffcv() -> Any:
    try:
        import ffcv.fields
        import ffcv.memory_allocator
        import ffcv.writer
    except (ImportError, OSError) as e:  # OSError: a library of the system is missing
        raise ConfigError(f"Writing FFCV files needs ffcv ({printable(e)}); get it with: {INSTALL_FFCV}") from e
    return ffcv


@contextmanager
def _unfinished(out: Path) -> Iterator[tuple[Draft, Path]]:
    """Hold `out` for this process alone; yield its draft, and the temporary name of its JSON."""
    about = out.with_suffix(".json")
    mark = draft_path(about)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Draft(out)
    except BlockingIOError:
        raise DatasetError(
            f"{printable(out)} is being written by another process; wait for it, or pass another output path."
        ) from None
    except OSError as e:
        raise DatasetError(f"{printable(out)} cannot be made ({e.strerror}); pass another output path.") from e
    try:
        if about.exists() or (out.exists() and not mark.exists()):
            found = out if out.exists() else about
            or_not = ", or delete it first" if is_about_beton(about) else ", as it is not of fastload"
            raise DatasetError(f"{printable(found)} exists; pass another output path{or_not}.")
        yield draft, mark
    except OSError as e:
        raise DatasetError(
            f"{printable(out)} cannot be written ({printable(e.strerror or e)}); "
            f"make room in {printable(out.parent)} and run the same command again."
        ) from e
    finally:
        draft.discard()
        if not out.exists():  # else a beton whose JSON has its temporary name: ours, to be written anew
            mark.unlink(missing_ok=True)


def _fill(
    file: Path,
    num_samples: int,
    sample: Sample,
    num_classes: int,
    encoding: Encoding,
    workers: int,
    advance: Callable[[int], object],
) -> Counter[int]:
    """Write the whole beton, with pages that hold every image; return the count of each label."""
    page_bytes = FIRST_PAGE_BYTES
    if encoding.max_resolution is not None and encoding.mode != "jpg":
        page_bytes = _page_for(min(3 * encoding.max_resolution**2, MAX_PAGE_BYTES))
    num_told = 0

    def tell(num_done: int) -> None:
        nonlocal num_told
        if num_done > num_told:  # a second run over the same samples is no progress
            num_told = num_done
            advance(1)

    while True:
        encoder = _Encoder(sample, num_classes, encoding)
        with ThreadPoolExecutor(workers, thread_name_prefix="fastload-beton") as pool:
            try:
                return _write(file, num_samples, _in_order(pool, encoder, num_samples, 2 * workers), page_bytes, tell)
            except _PageTooSmallError as e:
                page_bytes = _page_for(e.args[0])
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _page_for(num_bytes: int) -> int:
    page_bytes = FIRST_PAGE_BYTES
    while page_bytes < num_bytes:
        page_bytes *= 2
    if page_bytes > MAX_PAGE_BYTES:
        raise ConfigError(
            f"an image of {num_bytes:,} bytes is larger than FFCV's largest page ({MAX_PAGE_BYTES:,} bytes); "
            "pass a smaller max_resolution, or mode jpg."
        )
    return page_bytes


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    row: npt.NDArray[np.void]  # [1], the image's metadata, its place still 0
    data: npt.NDArray[np.uint8]
    label: int


class _Encoder:
    """index -> the sample as it will lie in the file; called from several threads."""

    def __init__(self, sample: Sample, num_classes: int, encoding: Encoding) -> None:
        field = _import_ffcv().fields.RGBImageField
        self._sample = sample
        self._num_classes = num_classes
        self._encoding = encoding
        self._raw, self._jpg = field(write_mode="raw"), field(write_mode="jpg", jpeg_quality=encoding.quality)

    def __call__(self, index: int) -> _Encoded:
        try:
            image, label = self._checked(index, *self._sample(index))
            image = _shrink(image, self._encoding.max_resolution)
            is_jpg, (height, width, _) = self._encoding.is_jpg(index), image.shape
            if is_jpg and height * width > MAX_PIXELS:
                raise DatasetError(
                    f"sample {index:,} has {width}x{height} pixels; a JPEG in a beton has at most {MAX_PIXELS:,}, "
                    "so leave it out, or pass a smaller max_resolution."
                )
            field = self._jpg if is_jpg else self._raw
            row = np.zeros(1, field.metadata_type)
            kept: list[npt.NDArray[np.uint8]] = []

            def keep(num_bytes: int) -> tuple[int, npt.NDArray[np.uint8]]:
                kept.append(np.empty(num_bytes, np.uint8))
                return 0, kept[0]

            field.encode(row, image, keep)
        except MemoryError as e:
            raise DatasetError(f"sample {index:,}: out of memory; run again with fewer workers.") from e
        except OSError as e:  # of `sample`: nothing is written here
            raise DatasetError(f"sample {index:,} cannot be read ({printable(e.strerror or e)}); check it.") from e
        return _Encoded(row=row, data=kept[0], label=label)

    def _checked(self, index: int, image: object, label: object) -> tuple[npt.NDArray[np.uint8], int]:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise DatasetError(f"sample {index:,} is {found}; FFCV takes uint8 [H, W, 3].")
        sides, limit = image.shape[:2], MAX_SIDE[self._encoding.mode]
        if min(sides) < 1 or (self._encoding.max_resolution is None and max(sides) > limit):
            raise DatasetError(
                f"sample {index:,} has {sides[1]}x{sides[0]} pixels; FFCV takes sides of 1 to {limit:,}, "
                "so leave it out, or pass max_resolution."
            )
        if not isinstance(label, int | np.integer) or not -1 <= label < self._num_classes:
            found = printable(label)
            raise DatasetError(f"sample {index:,} has label {found}; there are {self._num_classes} classes, from 0.")
        return image, int(label)


def _shrink(image: npt.NDArray[np.uint8], longest: int | None) -> npt.NDArray[np.uint8]:
    """Shrink an image as ffcv does, but to the side that was asked for.

    ffcv cuts the product of side and ratio instead of rounding it: for one size in ten the longer side
    comes out a pixel short, and the shorter side of a narrow image may come out as 0.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    if longest is not None and side > longest:
        import cv2

        size = (max(1, round(width * longest / side)), max(1, round(height * longest / side)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.ascontiguousarray(image)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], _Encoded], count: int, num_ahead: int
) -> Iterator[_Encoded]:
    """Yield work(0), work(1), ... with at most `num_ahead` of them begun: that bounds the memory."""
    waiting: deque[Future[_Encoded]] = deque()
    for index in range(count):
        while len(waiting) < num_ahead and index + len(waiting) < count:
            waiting.append(pool.submit(work, index + len(waiting)))
        yield waiting.popleft().result()


def _write(
    file: Path, num_samples: int, encoded: Iterator[_Encoded], page_bytes: int, tell: Callable[[int], None]
) -> Counter[int]:
    ffcv = _import_ffcv()
    fields = {"image": ffcv.fields.RGBImageField(), "label": ffcv.fields.IntField()}
    writer = ffcv.writer.DatasetWriter(str(file), fields, page_size=page_bytes, num_workers=1)
    writer.num_samples = num_samples
    writer.prepare()
    # Its metadata lie in shared memory, for the processes that we do not start: where /dev/shm is small
    # (64 MB in a container), writing there ends the process with a bus error.
    writer.metadata_sm.close()
    writer.metadata_sm.unlink()
    metadata = np.zeros(num_samples, writer.metadata_type)
    writer.metadata_sm = SimpleNamespace(buf=metadata.view(np.uint8))
    counts: Counter[int] = Counter()
    allocator = ffcv.memory_allocator.MemoryAllocator(str(file), writer.data_region_start, page_bytes)
    allocator.__enter__()
    try:
        for index, one in enumerate(encoded):
            if one.data.nbytes > page_bytes:
                raise _PageTooSmallError(one.data.nbytes)
            allocator.set_current_sample(index)
            one.row["data_ptr"], place = allocator.malloc(one.data.nbytes)
            place[:] = one.data
            metadata[index] = (one.row[0], one.label)
            counts[one.label] += 1
            tell(index + 1)
        allocator.flush_page()
    finally:
        allocator.fp.close()
    wanted = allocator.offset + allocator.next_page_allocated.value * page_bytes
    if (found := file.stat().st_size) != wanted:
        # ffcv does not look at what write() returns, and a full disk takes a part of a page without an error.
        raise DatasetError(f"{printable(file)} took {found:,} of {wanted:,} bytes; make room there and run again.")
    writer.finalize(allocator.allocations)
    return counts
