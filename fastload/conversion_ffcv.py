"""source -> `.beton` files, one per split, through ffcv's own writer."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastload import __version__
from fastload.conversion import OnBad, checked_workers, listed, progress_bar
from fastload.decode import MAX_PIXELS, decode_whole
from fastload.errors import ConfigError, DatasetError, DecodeError, SourceError, printable
from fastload.files import draft_path, write_table
from fastload.filling import changed_since, reason_to_skip
from fastload.formats.ffcv import Mode, is_about_beton, write_beton
from fastload.formats.manifest import BAD_NAME
from fastload.formats.shardfile import unwritten
from fastload.output import alone_in
from fastload.places import Place, as_place, exists
from fastload.records import SPLITS, Record, Source
from fastload.urls import Url


def convert_to_ffcv(
    source: str | Place | Source,
    out: str | Place,
    *,
    mode: Mode = "raw",
    quality: int = 90,
    max_resolution: int | None = None,
    split: Mapping[str, float] | None = None,
    on_bad: OnBad = "stop",
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Path:
    """Write `OUT/SPLIT.beton` and `OUT/SPLIT.json` for every split of a source; what is left out is in `OUT/bad.csv`.

    Images keep their own sizes. A split that already stands there whole is kept: the same command again
    finishes a run that was stopped. One of another source, or with other options, is refused.

    Args:
        source: as `fastload.convert`.
        out: the folder to write.
        mode: `raw` pixels, `jpg`, or `proportion`: half of them as jpg.
        quality: of the JPEGs, 1 to 100.
        max_resolution: the longer side in pixels; larger images are shrunk to it.
        split, on_bad, max_pixels, seed, workers, progress: as `fastload.convert`; `skip` decodes everything
            once more beforehand, since ffcv must know the number of samples first.

    Returns:
        `out`.

    Raises:
        ConfigError: an option cannot be right, or ffcv is not installed.
        SourceError, DecodeError, DatasetError: as `fastload.convert`.
    """
    out = _local(as_place(out))
    workers = checked_workers(on_bad, workers)
    found = listed(source, split, seed)
    if found.num_channels != 3:
        raise ConfigError(f"{printable(found.name)} holds grey images, which ffcv cannot store; use --format resident.")
    digest = _digest(found, mode, quality, max_resolution, max_pixels)
    with alone_in(out), _no_list_alone(out):
        todo = _left_to_do(out, found, digest, on_bad, progress)
        bad = {name: _bad(found, todo[name], max_pixels) if on_bad == "skip" else [] for name in todo}
        _list_bad(out, [*skipped_in(out), *(entry for entries in bad.values() for entry in entries)])
        for name, records in todo.items():
            left_out = {entry["path"] for entry in bad[name]}
            records = [r for r in records if r.path not in left_out]

            def sample(index: int, records: list[Record] = records) -> tuple[npt.NDArray[np.uint8], int]:
                return _read_whole(found, records[index], max_pixels), records[index].label

            info: dict[str, Any] = {"source": found.name, "layout": found.layout, "fastload": __version__,
                                    "plan": digest, "skipped": bad[name]}  # fmt: skip
            with progress_bar(name, len(records), progress) as advance:
                write_beton(
                    out / f"{name}.beton", len(records), sample, classes=found.classes, mode=mode, quality=quality,
                    max_resolution=max_resolution, workers=workers, info=info, advance=advance,
                )  # fmt: skip
    return out


def skipped_in(folder: Path) -> list[dict[str, str]]:
    """Return path and reason of every image that the whole splits in `folder` leave out.

    Raises:
        DatasetError: the JSON of a split cannot be read.
    """
    return [entry for split in SPLITS for entry in _info(folder / f"{split}.json").get("skipped", ())]


def _whole_splits(folder: Path) -> list[str]:
    """Return the splits whose JSON stands there; DatasetError where one is somebody else's."""
    whole = [split for split in SPLITS if exists(folder / f"{split}.json", DatasetError)]
    for file in (folder / f"{split}.json" for split in whole):
        if not is_about_beton(file):
            raise DatasetError(f"{printable(file)} exists and is not of fastload; pass another output path.")
    return whole


def _digest(source: Source, *options: object) -> str:
    """Return SHA-256 (hex) of what decides the betons."""
    return hashlib.sha256(json.dumps([source.digest(), *options]).encode()).hexdigest()


def _local(out: Place) -> Path:
    if isinstance(out, Url):
        raise ConfigError(f"{printable(out)} is a URL, and ffcv writes local files; pass a path.")
    return out


@contextmanager
def _no_list_alone(out: Path) -> Iterator[None]:
    try:
        yield
    finally:
        if not any(out.glob("*.beton")):
            (out / BAD_NAME).unlink(missing_ok=True)


def _left_to_do(out: Path, found: Source, digest: str, on_bad: OnBad, progress: bool) -> dict[str, list[Record]]:
    """Return the records of each split that an earlier run has not written, or of images that were changed since."""
    todo = {name: [r for r in found.records if r.split == name] for name in found.counts()}
    whole = {split: out / f"{split}.json" for split in _whole_splits(out)}
    if todo.keys() <= whole.keys():
        raise DatasetError(f"{printable(out)} exists; pass another output path, or delete it first.")
    _refuse_other(list(whole.values()), digest, on_bad)
    outdated = [name for name, file in whole.items() if changed_since(found, todo[name], file.stat())]
    for name in outdated:  # under its temporary name it says that the beton beside it is ours, to be written anew
        whole[name].replace(draft_path(whole.pop(name)))
    if progress and whole:
        print(f"note: {', '.join(whole)}: stands already", file=sys.stderr)
    if progress and outdated:
        print(f"note: {', '.join(outdated)}: written anew, since its images have changed", file=sys.stderr)
    return {name: records for name, records in todo.items() if name not in whole}


def _refuse_other(files: list[Path], digest: str, on_bad: OnBad) -> None:
    """Raise DatasetError where the JSON of a split that stands there is of another conversion than this one."""
    for file in files:
        info = _info(file)
        if info.get("plan") != digest:
            raise DatasetError(
                f"{printable(file)} is of a conversion with another source or other options; "
                "pass another output path, or delete that folder."
            )
        if info["skipped"] and on_bad == "stop":
            raise DatasetError(
                f"{printable(file)} names {len(info['skipped']):,} bad images that were left out (first: "
                f"{printable(info['skipped'][0]['path'])}); pass --on-bad skip again, or delete that split's files."
            )


def _info(file: Path) -> dict[str, Any]:
    """Return what the JSON of a split says of its conversion; nothing where there is none, or none of ours."""
    try:
        info = json.loads(file.read_bytes())["info"]
        own = isinstance(info["plan"], str) and all(e["path"] and e["reason"] for e in info["skipped"])
    except (FileNotFoundError, KeyError, TypeError):
        return {}
    except (OSError, ValueError) as e:
        raise DatasetError(f"{printable(file)} cannot be read ({printable(e)}); delete it and convert again.") from e
    return info if own else {}


def _list_bad(folder: Path, entries: list[dict[str, str]]) -> None:
    """Write `bad.csv`, before the betons: no whole beton is without the list of what it leaves out."""
    file = folder / BAD_NAME
    try:
        if entries:
            write_table(file, ("path", "reason"), ((e["path"], e["reason"]) for e in entries))
        else:
            file.unlink(missing_ok=True)
    except OSError as e:
        raise unwritten(file, e) from e


def _bad(source: Source, records: list[Record], max_pixels: int) -> list[dict[str, str]]:
    """Return path and reason of the images that cannot be read; SourceError where none of a split can."""
    reasons = ((r.path, _reason(source, r, max_pixels)) for r in records)
    bad = [{"path": path, "reason": reason} for path, reason in reasons if reason is not None]
    if len(bad) == len(records):
        first = f"{printable(bad[0]['path'])}: {printable(bad[0]['reason'])}"
        raise SourceError(f"none of the {len(bad):,} images of {records[0].split} could be read (first: {first}).")
    return bad


def _read_whole(source: Source, record: Record, max_pixels: int) -> npt.NDArray[np.uint8]:
    try:
        content = source.read(record)
        if isinstance(content, bytes):
            return decode_whole(content, record.path, max_pixels=max_pixels)
    except DecodeError as e:
        reason_to_skip(e)  # raises where the machine failed, not the image
        raise
    # Of a source with colours, single images may be grey.
    return np.repeat(content, 3, axis=2) if content.shape[2] == 1 else content


def _reason(source: Source, record: Record, max_pixels: int) -> str | None:
    try:
        _read_whole(source, record, max_pixels)
    except DecodeError as e:
        return reason_to_skip(e)
    return None
