"""A table -> standardized features in shards -> manifest."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from fastload import __version__
from fastload.conversion import close, free_output
from fastload.formats.manifest import VERSION, Field, Manifest, Shard
from fastload.formats.shardfile import write_shard
from fastload.places import Place, num_bytes_of
from fastload.plan import SHARD_BYTES
from fastload.records import stable_rank
from fastload.sources import Table


def convert_table(table: Table, out: Place, *, seed: int = 0) -> Place:
    """Turn a table into a dataset of float32 `features` [n, D] and labels.

    Small enough to be converted in one go: a run that was stopped begins again.

    Args:
        table: what `read_table` made of a file.
        out: the dataset to write.
        seed: that the table was read with, and of the one permutation of `train`.

    Returns:
        Path of the dataset.

    Raises:
        DatasetError: the output exists, is being written by another process, or cannot be written.
    """
    output = free_output(out, table.path)
    num_features = len(table.feature_names)
    rows_per_shard = max(1, SHARD_BYTES // (4 * num_features))
    metadata = {"plan": _digest(table, seed, rows_per_shard), "skipped": []}
    splits: dict[str, tuple[Shard, ...]] = {}
    samples: list[tuple[object, ...]] = []
    with output.held() as folder:
        for name in table.counts():
            order = _order(table.rows[name], seed if name == "train" else None)
            shards = []
            for number, first in enumerate(range(0, len(order), rows_per_shard)):
                which = order[first : first + rows_per_shard]
                file = folder / f"{name}-{number:05d}.safetensors"
                label = table.labels[name][which]
                sha256 = write_shard(file, {"label": label, "features": table.features[name][which]}, metadata)
                shards.append(Shard(file=file.name, rows=len(which), bytes=num_bytes_of(file), sha256=sha256))
                for row, (place, value) in enumerate(zip(which, label.tolist(), strict=True)):
                    shown = " ".join(str(v) for v in value) if isinstance(value, list) else value
                    samples.append((name, file.name, row, shown, f"{table.path.name}/{table.rows[name][place]}"))
            splits[name] = tuple(shards)
        close(output, _manifest(table, splits, seed), samples)
    return output.path


def _manifest(table: Table, splits: dict[str, tuple[Shard, ...]], seed: int) -> Manifest:
    label = next(iter(table.labels.values()))
    return Manifest(
        sample=Field(name="features", shape=(len(table.feature_names),), dtype="float32"),
        label=Field(name="label", shape=label.shape[1:], dtype=label.dtype.name),
        classes=table.classes,
        display_names=table.classes,
        splits=splits,
        mean=(),
        std=(),
        settings={"seed": seed},
        source={"name": table.path.name, "layout": "table", "digest": table.digest()},
        skipped=(),
        fastload=__version__,
        table={
            "feature_names": list(table.feature_names), "target_names": list(table.target_names),
            "columns": table.columns,
        },
    )  # fmt: skip


def _order(rows: npt.NDArray[np.int64], seed: int | None) -> npt.NDArray[np.int64]:
    """Return the places of a split's rows in the order they are stored in; `train` is permuted."""
    if seed is None:
        return np.arange(len(rows))
    return np.array(sorted(range(len(rows)), key=lambda i: stable_rank(seed, str(rows[i]))), np.int64)


def _digest(table: Table, seed: int, rows_per_shard: int) -> str:
    parts: list[Any] = [VERSION, "table", table.digest(), seed, rows_per_shard]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
