"""The plan of a conversion: which sample goes to which shard and row, before anything is decoded.

A pure function of source and settings, so the same source and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from fastload.decode import MAX_PIXELS, Fit, check_size_and_fit
from fastload.errors import ConfigError
from fastload.formats.resident import VERSION
from fastload.records import Record, Source, stable_rank

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
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed}: seeds lie between 0 and 2**63 - 1.")
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
