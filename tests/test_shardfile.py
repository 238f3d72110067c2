"""Image shards written row by row: the bytes are those of a shard that is written in one piece."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from fastload.errors import DatasetError
from fastload.files import Draft, draft_path, write_at
from fastload.formats.resident import read_shard_metadata
from fastload.formats.shardfile import Rows, memory_file, publish, send, write_shard
from fastload.places import as_place
from fastload.urls import Url

SHAPE = (3, 5, 3)


@pytest.mark.parametrize(
    ("num_rows", "bad", "said"),
    [
        (7, (), 30),
        (1, (), 0),
        (7, (0, 3, 6), 30),
        (7, (1,), 5000),
        (2000, (1,), 9000),  # the header grows by two pages, which is many rows
        (2000, range(0, 2000, 2), 0),  # the labels shrink by two pages
        (2000, range(5, 2000), 9000),
        (5, range(5), 100),
    ],
)
def test_rows_in_any_order_make_the_shard_that_one_piece_makes(
    tmp_path: Path, num_rows: int, bad: tuple[int, ...], said: int
) -> None:
    image = np.random.default_rng(num_rows).integers(0, 256, (num_rows, *SHAPE), dtype=np.uint8)
    good = [row for row in range(num_rows) if row not in set(bad)]
    label = np.arange(len(good), dtype=np.int64)
    metadata = {"plan": "p", "skipped": "s" * said}
    sha256 = write_shard(tmp_path / "expected", {"label": label, "image": image[good]}, metadata)
    expected = (tmp_path / "expected").read_bytes()
    assert sha256 == hashlib.sha256(expected).hexdigest()

    rows = Rows.behind({"plan": "p", "skipped": "s" * 20}, num_rows, SHAPE)
    assert rows.first_byte % 4096 == 0
    draft, memory = Draft(tmp_path / "shard"), memory_file()
    for descriptor in (draft.descriptor, memory):
        for row in reversed(good):
            rows.write(descriptor, row, image[row])
        rows.finish(descriptor, good, label, metadata)
    assert not (tmp_path / "shard").exists()
    assert publish(draft) == sha256
    assert (tmp_path / "shard").read_bytes() == expected
    assert {f.name for f in tmp_path.iterdir()} == {"expected", "shard"}
    url = as_place("memory://bucket/shard")
    assert isinstance(url, Url)
    assert send(memory, url) == sha256
    assert url.read_bytes() == expected
    assert read_shard_metadata(url) == read_shard_metadata(tmp_path / "shard") == metadata
    os.close(memory)
    url.unlink()


def test_what_a_killed_run_left_is_replaced_and_not_written_to(tmp_path: Path) -> None:
    """A process of the killed run may still be at its last sample, with the old file open."""
    left = draft_path(tmp_path / "a")
    left.write_bytes(b"old")
    orphan = os.open(left, os.O_WRONLY)
    draft = Draft(tmp_path / "a")
    write_at(draft.descriptor, b"new", 0)
    write_at(orphan, b"late", 1)
    os.close(orphan)
    draft.publish()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_a_draft_that_somebody_took_away_gets_no_name(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "a")
    draft_path(tmp_path / "a").unlink()
    draft_path(tmp_path / "a").write_bytes(b"another process's")
    with pytest.raises(BlockingIOError):
        draft.publish()
    draft.discard()
    assert [f.name for f in tmp_path.iterdir()] == [".a.tmp"]


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="check that files can be written to"):
        write_shard(tmp_path / "none" / "a.safetensors", {"label": np.zeros(1, np.int64)}, {})
    assert list(tmp_path.iterdir()) == []
