"""source -> `.beton` files, one per split, through ffcv's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastload import __version__
from fastload.conversion import OnBad, checked_workers, listed, progress_bar
from fastload.decode import MAX_PIXELS, decode_whole
from fastload.errors import ConfigError, DatasetError, DecodeError, printable
from fastload.formats.ffcv import Mode, write_beton
from fastload.places import Place, as_place
from fastload.records import Record, Source
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
    """Write `OUT/SPLIT.beton` and `OUT/SPLIT.json` for every split of a source.

    Images keep their own sizes. A split that already stands there whole is kept: the same command again
    finishes a run that was stopped.

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
    out = as_place(out)
    if isinstance(out, Url):
        raise ConfigError(f"{printable(out)} is a URL, and ffcv writes local files; pass a path.")
    workers = checked_workers(on_bad, workers)
    found = listed(source, split, seed)
    if found.num_channels != 3:
        raise ConfigError(f"{printable(found.name)} holds grey images, which ffcv cannot store; use --format resident.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DatasetError(f"{printable(out)} cannot be made ({e.strerror}); pass another output path.") from e
    todo = {name: [r for r in found.records if r.split == name] for name in found.counts()}
    if whole := [name for name in todo if (out / f"{name}.json").exists()]:
        if len(whole) == len(todo):
            raise DatasetError(f"{printable(out)} exists; pass another output path, or delete it first.")
        todo = {name: records for name, records in todo.items() if name not in whole}
    try:
        for name, records in todo.items():
            if on_bad == "skip":
                records = [r for r in records if _reason(found, r, max_pixels) is None]

            def sample(index: int, records: list[Record] = records) -> tuple[npt.NDArray[np.uint8], int]:
                return _read_whole(found, records[index], max_pixels), records[index].label

            info: dict[str, Any] = {"source": found.name, "layout": found.layout, "fastload": __version__}
            with progress_bar(name, len(records), progress) as advance:
                write_beton(
                    out / f"{name}.beton", len(records), sample, classes=found.classes, mode=mode, quality=quality,
                    max_resolution=max_resolution, workers=workers, info=info,
                    advance=advance,
                )  # fmt: skip
    finally:
        if not any(out.iterdir()):
            out.rmdir()
    return out


def _read_whole(source: Source, record: Record, max_pixels: int) -> npt.NDArray[np.uint8]:
    content = source.read(record)
    return decode_whole(content, record.path, max_pixels=max_pixels) if isinstance(content, bytes) else content


def _reason(source: Source, record: Record, max_pixels: int) -> str | None:
    try:
        _read_whole(source, record, max_pixels)
    except DecodeError as e:
        return e.reason
    return None
