"""The layout of WebDataset: tars whose members share a key, `0007.jpg` beside `0007.cls` or `0007.json`.

Nothing is extracted: the tars are listed once, and an image is read from its place in the tar.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastload.errors import ConfigError, DecodeError, SourceError, printable
from fastload.places import Place, as_place, each, exists
from fastload.records import Record, Source
from fastload.sources.labels import from_texts
from fastload.sources.scan import has_image_suffix, walk
from fastload.sources.splits import split_of_name
from fastload.urls import Url, is_url

MAX_TARS = 1_000_000
MAX_LABEL_BYTES = 1 << 20  # a .json tells of one image
JSON_KEYS = ("label", "cls", "class")


def read_webdataset(spec: str) -> Source:
    """List the samples of the tars that `spec` names: a tar, a folder of tars, or `shards/{000..099}.tar`.

    A key is a member's name up to the first dot after its last slash. The label is the text of KEY.cls, or
    `label` (`cls`, `class`) in KEY.json; a key without one is unlabelled. The split is told by the tar's folders or
    name (`val/000.tar`, `cc3m-train-0001.tar`), else it is `train`. Links and other special members are left out.

    Raises:
        ConfigError: the pattern makes no sense.
        SourceError: a tar is missing or damaged, or no image is in them.
    """
    root, tars = find_tars(spec)
    places: dict[str, tuple[int, int, int]] = {}  # path -> tar, offset, bytes
    found: list[tuple[str, str, str | None]] = []
    num_ignored = 0
    listings = each(lambda tar: _list_tar(root / tar), tars, root)
    for number, (tar, (images, label_of, num_others)) in enumerate(zip(tars, listings, strict=True)):
        split = split_of_name(tar)
        num_ignored += num_others
        for name, (offset, size) in images.items():
            path = f"{tar}/{name}"
            places[path] = (number, offset, size)
            found.append((split, path, label_of.get(_key(name))))
    if not found:
        raise SourceError(f"{printable(spec)}: {len(tars):,} tars, and no images in them; expected KEY.jpg, KEY.cls.")
    classes, records = from_texts(found)
    paths = sorted(places)
    # Absolute: a worker of a cluster has another working folder.
    reader = TarReader(root=root.absolute(), tars=tars, paths=paths,
                       places=np.array([places[p] for p in paths], np.int64))  # fmt: skip
    return Source(root=root, layout="webdataset", classes=classes, records=records, num_ignored=num_ignored,
                  name=root.resolve().name, reader=reader)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class TarReader:
    """Reads members by their offsets. Any number of threads may call it; it can be sent to other processes.

    Attributes:
        root, tars: where the tars lie.
        paths: every record's path, sorted; 8 bytes each, as the records hold the same strings.
        places: int64 [N, 3], for each path the number of its tar, the offset and the bytes.
    """

    root: Place
    tars: list[str]
    paths: list[str]
    places: npt.NDArray[np.int64]

    def __call__(self, record: Record) -> bytes:
        """Return the bytes of one member.

        Raises:
            DecodeError: the tar cannot be read there.
        """
        tar, offset, size = (int(n) for n in self.places[bisect_left(self.paths, record.path)])
        try:
            file = self.root / self.tars[tar]
            if isinstance(file, Url):
                data = file.read_range(offset, size)
            else:
                # Opened anew for each: 10 us against a decode of 1 ms, and nothing to share, close or run out of.
                with file.open("rb", buffering=0) as opened:
                    data = os.pread(opened.fileno(), size, offset)
        except OSError as e:
            raise DecodeError(record.path, f"cannot be read ({e.strerror})") from e
        if len(data) != size:
            raise DecodeError(record.path, "the tar was cut since it was listed")
        return data

    def file_of(self, record: Record) -> Place:
        """Return the tar that holds a record."""
        return self.root / self.tars[int(self.places[bisect_left(self.paths, record.path), 0])]


def find_tars(spec: str) -> tuple[Place, list[str]]:
    """Return (root, paths of the tars relative to it, in order).

    Raises:
        ConfigError: a pattern that makes no sense.
        SourceError: a tar that the pattern names is missing.
    """
    if is_url(spec) and "{" in "/".join(spec.split("/", 3)[:3]):
        raise ConfigError(f"{printable(spec)}: a pattern comes after the bucket or host; pass one of these.")
    path = as_place(spec)
    if exists(path, SourceError) and path.is_dir():
        return path, sorted(name for name, _ in walk(path) if name.endswith(".tar"))
    if path.is_file() or "{" not in spec:
        return path.parent, [path.name]
    parts = spec.split("/")
    first = next(i for i, part in enumerate(parts) if "{" in part)
    root = as_place("/".join(parts[:first]) or ("/" if spec.startswith("/") else "."))
    tars = list(expand("/".join(parts[first:])))
    found = each(lambda tar: (root / tar).is_file(), tars, root)
    missing = [tar for tar, there in zip(tars, found, strict=True) if not there]
    if missing:
        raise SourceError(
            f"{printable(spec)}: {len(missing):,} of {len(tars):,} tars do not exist (first: {printable(missing[0])})."
        )
    return root, tars


def expand(pattern: str) -> Iterator[str]:
    """Yield what a brace pattern stands for: `{000..099}` counts, keeping the zeros, and `{train,val}` lists.

    Raises:
        ConfigError: a brace that is neither, or more than MAX_TARS names.
    """
    choices: list[list[str]] = []
    count = 1
    for piece in re.split(r"(\{[^{}]*\})", pattern):
        if (numbers := re.fullmatch(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}", piece)) is not None:
            first, last = numbers.groups()
            span = range(int(first), int(last) + 1)
            count *= len(span)
            options = [f"{n:0{len(first)}d}" for n in span] if 0 < count <= MAX_TARS else []
        elif piece.startswith("{") and piece.endswith("}") and "," in piece:
            options = piece[1:-1].split(",")
            count *= len(options)
        else:
            options = [piece]
        if not 0 < count <= MAX_TARS or (len(options) == 1 and ("{" in options[0] or "}" in options[0])):
            raise ConfigError(f"{printable(pattern)}: write a pattern like {{000..099}}.tar, the smaller number first.")
        choices.append(options)
    return ("".join(parts) for parts in itertools.product(*choices))


def _list_tar(file: Place) -> tuple[dict[str, tuple[int, int]], dict[str, str], int]:
    """Return ({image: (offset, bytes)}, {key: label}, number of other members)."""
    images: dict[str, tuple[int, int]] = {}
    label_of: dict[str, str] = {}
    num_others = 0
    try:
        with file.open("rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            read_to = -1
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= read_to:  # else a made-up size leads back, for ever
                    raise tarfile.ReadError(f"the size of {printable(member.name)} is {member.size:,}")
                read_to = tar.offset
                tar.members = []  # type: ignore[attr-defined]  # or it keeps a million of them
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or name.rpartition("/")[2].startswith("."):
                    num_others += 1
                elif has_image_suffix(name):
                    images[name] = (member.offset_data, member.size)  # named twice: the later one counts
                elif name.endswith((".cls", ".json")) and member.size <= MAX_LABEL_BYTES:
                    text = tar.extractfile(member)
                    label = _label_in(name, text.read() if text is not None else b"")
                    if label is not None and (name.endswith(".cls") or _key(name) not in label_of):
                        label_of[_key(name)] = label
                else:
                    num_others += 1
            # tarfile takes a header that is cut off or no header at all for the end.
            opened.seek(tar.offset)
            if opened.read(512) != bytes(512):
                raise tarfile.ReadError(f"it ends or is damaged at byte {tar.offset:,}, before its end mark")
    except (OSError, tarfile.TarError, ValueError, RecursionError, MemoryError, OverflowError) as e:
        raise SourceError(
            f"{printable(file)} is no whole, uncompressed tar ({printable(e) or type(e).__name__}); mend or unpack it."
        ) from e
    return images, label_of, num_others


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _label_in(name: str, data: bytes) -> str | None:
    if name.endswith(".cls"):
        return data.decode("utf-8", "surrogateescape").strip() or None
    content = json.loads(data)
    if isinstance(content, dict):
        for key in JSON_KEYS:
            if isinstance(content.get(key), str | int):
                return str(content[key]).strip() or None
    return None
