"""The layout of parquet: files whose rows hold an encoded image and its label, as Hugging Face writes them."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import threading
import weakref
from array import array
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastload.errors import ConfigError, DatasetError, FastloadError, SourceError, printable
from fastload.files import write_at
from fastload.places import Place, each
from fastload.records import Record, Source
from fastload.sources.extras import need
from fastload.sources.labels import from_numbers, from_texts
from fastload.sources.lists import LABEL_NAMES
from fastload.sources.scan import walk
from fastload.sources.splits import split_of_name

BATCH_ROWS = 8  # of images of 10 MB, 80 MB


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns hold what; `image` is the path of a leaf, e.g. `image.bytes`."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def read_parquet(path: Place, *, label_column: str | None = None) -> Source:
    """List the rows of a parquet file, or of every one below a folder.

    The image column is binary, or a struct with a binary field `bytes`. Labels are whole numbers or texts;
    class names come from the metadata that Hugging Face datasets leave. The split is told by the file's
    folders or name (`data/validation-00000-of-00001.parquet`), else it is `train`.

    Raises:
        ConfigError: pyarrow is missing, or there is no column `label_column`.
        SourceError: no images, a damaged file, or files that disagree.
    """
    root = path if path.is_dir() else path.parent
    files = sorted(n for n, _ in walk(path) if n.endswith(".parquet")) if path.is_dir() else [path.name]
    columns: Columns | None = None
    found: list[tuple[str, str, Any]] = []
    listings = each(lambda file: _labels_of(root / file, label_column), files, root)
    for file, (here, labels) in zip(files, listings, strict=True):
        if columns is not None and here != columns:
            raise SourceError(f"{printable(root / file)} has other columns or classes than {printable(files[0])}.")
        columns = here
        split = split_of_name(file)
        found.extend((split, f"{file}/{row:08d}", label) for row, label in enumerate(labels))
    if columns is None or not found:
        raise SourceError(f"{printable(path)} holds no parquet file with rows; expected an image and a label in each.")
    if columns.classes is not None:
        classes, records = columns.classes, from_numbers(found, columns.classes, str(path))
    else:
        classes, records = from_texts((s, p, None if v is None else str(v).strip() or None) for s, p, v in found)
    reader = ParquetReader(root.absolute(), columns.image)  # a worker of a cluster has another working folder
    return Source(root=root, layout="parquet", classes=classes, records=records, name=path.stem, reader=reader)


class ParquetReader:
    """Reads single rows of parquet files, in any order.

    A row of parquet cannot be read without its whole row group, which may be gigabytes. So the images of all
    files are written once, one after the other, to a temporary file without a name (TMPDIR decides where), and
    read from there. Threads and forked processes share it; it is gone when the last of them ends.
    """

    def __init__(self, root: Place, column: str) -> None:
        self.root, self.column = root, column
        self._unpacked: dict[str, tuple[int, npt.NDArray[np.int64]]] = {}
        self._writes = -1, -1  # which process, into which temporary file
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> bytes:
        """Return the image of one row.

        Raises:
            SourceError: its file cannot be read.
            DatasetError: there is no room to unpack it.
        """
        file, _, row = record.path.rpartition("/")
        descriptor, starts = self._unpacked_file(file)
        first, stop = (int(n) for n in starts[int(row) : int(row) + 2])
        return os.pread(descriptor, stop - first, first)

    def prepare(self, records: Iterable[Record]) -> None:
        """Unpack what these records need: a process that is forked later shares it, else each would do it again.

        Raises:
            SourceError, DatasetError: as when a record is read.
        """
        for file in dict.fromkeys(record.path.rpartition("/")[0] for record in records):
            self._unpacked_file(file)

    def file_of(self, record: Record) -> Place:
        """Return the parquet file that holds a record."""
        return self.root / record.path.rpartition("/")[0]

    def _unpacked_file(self, file: str) -> tuple[int, npt.NDArray[np.int64]]:
        """Return (descriptor, where each row begins in it, and the last one's end)."""
        with self._lock:
            if file not in self._unpacked:
                self._unpacked[file] = self._unpack(self.root / file)
            return self._unpacked[file]

    def _unpack(self, file: Place) -> tuple[int, npt.NDArray[np.int64]]:
        # A process forked since writes into a file of its own: behind the same end, others may be writing.
        process, descriptor = self._writes
        if process != os.getpid():
            try:
                descriptor, name = tempfile.mkstemp(prefix="fastload-")
            except OSError as e:
                raise _no_room(file, e) from e
            weakref.finalize(self, os.close, descriptor)
            Path(name).unlink()
            self._writes = os.getpid(), descriptor
        num_bytes = os.fstat(descriptor).st_size
        try:
            return descriptor, self._copy(file, descriptor)
        except BaseException:
            os.ftruncate(descriptor, num_bytes)
            raise

    def _copy(self, file: Place, descriptor: int) -> npt.NDArray[np.int64]:
        """Write the images of a file one after the other; return where each begins, and the last one's end."""
        arrow, parquet = _arrow()
        starts = array("q", [os.fstat(descriptor).st_size])
        try:
            # Buffered, arrow holds one page at a time; else, all pages of a row group. (A file that was written in
            # one go may still have a single page.)
            with _opened(file) as stored, parquet.ParquetFile(stored, buffer_size=1 << 20) as opened:
                for batch in opened.iter_batches(BATCH_ROWS, columns=[self.column]):
                    column = batch.column(0)
                    for value in column.field(0) if column.type.num_fields else column:
                        data = memoryview(value.as_buffer() if value.is_valid else b"")
                        try:
                            write_at(descriptor, data, starts[-1])
                        except OSError as e:
                            raise _no_room(file, e) from e
                        starts.append(starts[-1] + len(data))
        except (OSError, arrow.ArrowException) as e:
            raise _not_whole(file, e) from e
        return np.array(starts, np.int64)

    def __getstate__(self) -> tuple[Place, str]:
        return self.root, self.column

    def __setstate__(self, state: tuple[Place, str]) -> None:
        ParquetReader.__init__(self, *state)


def _opened(file: Place) -> AbstractContextManager[Any]:
    # A path arrow opens itself, without Python at each read.
    return nullcontext(file) if isinstance(file, Path) else file.open("rb")


def _labels_of(file: Place, label_column: str | None) -> tuple[Columns, list[Any]]:
    arrow, parquet = _arrow()
    try:
        with _opened(file) as stored, parquet.ParquetFile(stored) as opened:
            columns = _find_columns(file, opened.schema_arrow, label_column)
            return columns, opened.read(columns=[columns.label]).column(0).to_pylist()
    except (OSError, arrow.ArrowException) as e:
        raise _not_whole(file, e) from e


def _not_whole(file: Place, e: Exception) -> FastloadError:
    if (few := _too_few(file, e)) is not None:
        return few
    return SourceError(f"{printable(file)} is no whole parquet file ({printable(e)}); mend or leave it out.")


def _too_few(file: Place, e: Exception) -> DatasetError | None:
    if getattr(e, "errno", None) not in (errno.EMFILE, errno.ENFILE):
        return None
    return DatasetError(
        f"{printable(file)} cannot be opened beside all that is open (too many open files); raise the limit, "
        "e.g. ulimit -n 4096, and run the same command again."
    )


def _no_room(file: Place, e: OSError) -> DatasetError:
    if (few := _too_few(file, e)) is not None:
        return few
    # Not tempfile.gettempdir(), which raises where no folder can be written.
    folder = printable(tempfile.tempdir or "a temporary folder")
    return DatasetError(
        f"{printable(file)} cannot be unpacked to {folder} ({printable(e.strerror or e)}); "
        "set TMPDIR to a folder with room for it, and run the same command again."
    )


def _find_columns(file: Place, schema: Any, label_column: str | None) -> Columns:
    types = _arrow()[0].types

    def binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    images = [field.name for field in schema if binary(field.type)]
    images += [
        f"{field.name}.bytes"
        for field in schema
        if types.is_struct(field.type) and any(f.name == "bytes" and binary(f.type) for f in field.type)
    ]
    fit = [
        f.name for f in schema if types.is_integer(f.type) or types.is_string(f.type) or types.is_large_string(f.type)
    ]
    has = printable(", ".join(schema.names))
    if len(images) != 1:
        raise SourceError(
            f"{printable(file)} has {len(images)} columns of bytes ({has}); expected one, with encoded images."
        )
    if label_column is not None and label_column not in fit:
        raise ConfigError(
            f"--label-column {printable(label_column)}: {printable(file)} has no such column of numbers or texts "
            f"({has})."
        )
    known = [name for name in LABEL_NAMES if name in fit]
    labels = [label_column] if label_column is not None else known[:1] or fit
    if len(labels) != 1:
        raise SourceError(f"{printable(file)}: no column is plainly that of the labels ({has}); pass --label-column.")
    label = labels[0]
    return Columns(image=images[0], label=label, classes=_class_names(schema, label))


def _arrow() -> tuple[Any, Any]:
    what = "reading parquet files"
    return need("pyarrow", "parquet", what), need("pyarrow.parquet", "parquet", what)


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"null"))
        return tuple(str(name) for name in info["info"]["features"][label]["names"])
    except (ValueError, KeyError, TypeError):
        return None
