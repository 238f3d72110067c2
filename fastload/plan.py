"""The plan of a conversion: which sample goes to which shard and row, before anything is decoded.

A pure function of source and settings, so the same source and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from fastload.decode import MAX_PIXELS, Fit, check_size_and_fit
from fastload.errors import ConfigError, DatasetError, printable
from fastload.formats.manifest import VERSION
from fastload.places import Place
from fastload.records import Record, Source, check_seed, stable_rank

PLAN_NAME = "plan.json"
# Large enough to read at the disk's speed, small enough that a killed run repeats little.
SHARD_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the bytes of a dataset, beside its source.

    Attributes:
        size: side of the stored images in pixels.
        fit: how a picture becomes square.
        seed: of the one permutation of `train`.
        max_pixels: images of more are bad ones.
        shard_bytes: images of one shard, at most.
    """

    size: int = 256
    fit: Fit = "stretch"
    seed: int = 0
    max_pixels: int = MAX_PIXELS
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        check_size_and_fit(self.size, self.fit)
        check_seed(self.seed)
        if self.max_pixels < 1:
            raise ConfigError(
                f"max_pixels={self.max_pixels}: an image has at least 1 pixel; the default is {MAX_PIXELS:,}."
            )


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """The records that one shard will hold, in row order."""

    file: str
    split: str
    records: tuple[Record, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which sample goes to which shard and row."""

    source: Source
    settings: Settings

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every stored image."""
        return self.settings.size, self.settings.size, self.source.num_channels

    @property
    def rows_per_shard(self) -> int:
        """Images in a full shard."""
        height, width, channels = self.image_shape
        return max(1, self.settings.shard_bytes // (height * width * channels))

    @cached_property
    def shards(self) -> tuple[PlannedShard, ...]:
        """All shards, split by split. `train` is permuted once, so that any shard is a fair sample."""
        shards = []
        for split in self.source.counts():
            records = [r for r in self.source.records if r.split == split]
            if split == "train":
                records.sort(key=lambda r: stable_rank(self.settings.seed, r.path))
            for number, first in enumerate(range(0, len(records), self.rows_per_shard)):
                rows = tuple(records[first : first + self.rows_per_shard])
                shards.append(PlannedShard(file=f"{split}-{number:05d}.safetensors", split=split, records=rows))
        return tuple(shards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides the bytes; each shard carries it."""
        s = self.settings
        parts = (VERSION, self.source.digest(), s.size, s.fit, s.seed, s.max_pixels, self.rows_per_shard)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to_json(self) -> Iterator[str]:
        """Yield the text of `plan.json`, all that `from_json` needs; for millions of records, so in pieces."""
        source = self.source
        head = {
            "digest": self.digest, "version": VERSION, "settings": asdict(self.settings),
            "source": {
                "name": source.name, "layout": source.layout, "classes": source.classes,
                "display_names": source.display_names, "num_channels": source.num_channels,
            },
        }  # fmt: skip
        yield json.dumps(head)[:-1] + ', "records": [\n'
        for number, r in enumerate(source.records):
            yield f"{',' if number else ''}{json.dumps([r.split, r.label, r.path])}\n"
        yield "]}\n"


def is_plan_of(file: Place, digest: str) -> bool:
    """Tell whether `file` is a plan with that digest, which stands at its beginning: a plan may have millions of lines.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return opened.read(200).startswith(f'{{"digest": "{digest}"'.encode())
    except OSError as e:
        raise DatasetError(f"{printable(file)} cannot be read ({e.strerror}); check its permissions.") from e


def read_plan(file: Place) -> Plan:
    """Return the plan in `file`, whose source knows its records and can read none of them.

    Raises:
        DatasetError: there is none, or it is damaged.
    """
    shown = printable(file)
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
        about = content["source"]
        source = Source(
            root=file.parent, layout=about["layout"], classes=tuple(about["classes"]), name=about["name"],
            records=tuple(Record(split=s, label=label, path=p) for s, label, p in content["records"]),
            display_names=tuple(about["display_names"]), num_channels=about["num_channels"],
        )  # fmt: skip
        plan = Plan(source=source, settings=Settings(**content["settings"]))
    except FileNotFoundError:
        raise DatasetError(
            f"{shown} does not exist: no tasks have run there; run `fastload convert ... --task 1/N` first."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as e:
        raise DatasetError(f"{shown} cannot be read ({printable(e)}); delete it and run a task again.") from e
    if plan.digest != content["digest"]:
        raise DatasetError(f"{shown} was changed, or written by another version; delete it and run a task again.")
    return plan
