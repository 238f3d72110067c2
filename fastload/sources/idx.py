"""The layout of MNIST's own files: `train-images-idx3-ubyte.gz` beside `train-labels-idx1-ubyte.gz`, `t10k-...`.

An idx file is two zero bytes, a number for the type (8: uint8), the number of axes, each axis as a big-endian
int32, and the numbers: http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Mapping
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from fastload.errors import SourceError, printable
from fastload.places import Place
from fastload.records import Record, Source
from fastload.sources.labels import from_texts
from fastload.sources.scan import files_in
from fastload.sources.splits import split_of_name

NAME = re.compile(r"(.*)images[-.]idx3-ubyte(\.gz)?")
MAX_BYTES = 4 << 30  # of one file, unpacked: it is held in memory


def looks_like_idx(root: Place) -> bool:
    """Tell whether `root` holds images in an idx file, by its name."""
    return any(NAME.fullmatch(name) for name in files_in(root))


def read_idx(root: Place) -> Source:
    """List the pairs of idx files of images and of labels right in `root`.

    The split is told by the name (`t10k` is `test`); a lone pair is `train`, to cut a split from. Record paths
    are `FILE/NUMBER`. The pixels stand in the source as they do in the file, one channel.

    Raises:
        SourceError: no such files, labels missing, two pairs of one split, or a file that is no whole idx file.
    """
    names = files_in(root)
    pairs: dict[str, str] = {}  # split -> file of images
    for name in names:
        # torchvision's raw folder holds each file packed and unpacked: one of the two is enough.
        if not NAME.fullmatch(name) or name.removesuffix(".gz") in pairs.values():
            continue
        split = "test" if name.startswith("t10k") else split_of_name(name)
        if split in pairs:
            raise SourceError(
                f"{printable(root)} holds two idx files of images for {split}, {printable(pairs[split])} and "
                f"{printable(name)}; give each set a folder of its own."
            )
        pairs[split] = name
    if not pairs:
        raise SourceError(f"{printable(root)} holds no idx file of images; expected e.g. train-images-idx3-ubyte.gz.")
    notes: tuple[str, ...] = ()
    if len(pairs) == 1:
        only = next(iter(pairs.values()))
        notes = (f"one pair of idx files, {only}: taken as train; cut a split from it with --split valid=0.2",)
        pairs = {"train": only}
    found: list[tuple[str, str, str | None]] = []
    images: dict[str, npt.NDArray[np.uint8]] = {}
    for split, name in pairs.items():
        images[name] = _read(root, name, num_axes=3)
        labels = _read(root, _labels_name(root, name, names), num_axes=1)
        if len(labels) != len(images[name]):
            raise SourceError(
                f"{printable(root / name)} holds {len(images[name]):,} images, and beside it are {len(labels):,} "
                "labels; copy both files anew."
            )
        found += [(split, f"{name}/{row:08d}", str(label)) for row, label in enumerate(labels.tolist())]
    classes, records = from_texts(found)
    return Source(root=root, layout="idx", classes=classes, records=records, num_channels=1, notes=notes,
                  num_ignored=len(names) - 2 * len(pairs), reader=IdxReader(root, images))  # fmt: skip


class IdxReader:
    """Reads image NUMBER of the file that the rest of a record's path names."""

    def __init__(self, root: Place, images: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        self.root, self.images = root, images

    def __call__(self, record: Record) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 [H, W, 1]."""
        name, _, row = record.path.rpartition("/")
        image: npt.NDArray[np.uint8] = self.images[name][int(row)]
        return image[..., None]

    def file_of(self, record: Record) -> Place:
        """Return the idx file that holds a record."""
        return self.root / record.path.rpartition("/")[0]


def _labels_name(root: Place, images: str, names: list[str]) -> str:
    plain = images.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for name in (plain, f"{plain}.gz"):
        if name in names:
            return name
    raise SourceError(f"{printable(root / images)} has no labels beside it; add {printable(plain)} (or .gz).")


def _read(root: Place, name: str, *, num_axes: int) -> npt.NDArray[np.uint8]:
    """Return what an idx file of uint8 holds, with that many axes."""
    file = root / name
    try:
        with file.open("rb") as raw:
            opened = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if name.endswith(".gz") else raw
            head = opened.read(4 + 4 * num_axes)
            shape = tuple(int(n) for n in np.frombuffer(head[4:], ">i4")) if len(head) == 4 + 4 * num_axes else ()
            if head[:4] != bytes([0, 0, 8, num_axes]) or min(shape, default=0) < 1 or math.prod(shape) > MAX_BYTES:
                raise SourceError(
                    f"{printable(file)} does not begin like an idx file of uint8 with {num_axes} axes; copy it anew."
                )
            # A byte more than there should be: a file that is too long is no whole file either.
            data = opened.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as e:
        raise SourceError(f"{printable(file)} cannot be read ({printable(e)}); copy it anew.") from e
    if len(data) != math.prod(shape):
        raise SourceError(
            f"{printable(file)} is no whole idx file: it says {'x'.join(map(str, shape))} and holds "
            f"{'more' if len(data) > math.prod(shape) else f'{len(data):,} bytes'}; copy it anew."
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
