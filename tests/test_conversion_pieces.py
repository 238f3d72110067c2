"""Images, shards and files that are done in pieces: rows by several processes, pixels and bytes by blocks."""

import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from fastload import convert, files, open_dataset, pool
from fastload.filling import Filler
from fastload.formats.manifest import read_manifest
from fastload.formats.resident import find_damage
from tests.conftest import write_image
from tests.test_conversion import contents


@pytest.mark.parametrize("workers", [2, 16])
def test_the_same_bytes_from_any_number_of_workers(folder: Path, tmp_path: Path, workers: int) -> None:
    one = convert(folder, tmp_path / "one", size=19, workers=1)
    (tmp_path / "worked").mkdir()
    work = Filler.__call__

    def told(filler: Filler, number: int, row: int) -> bytes:
        (tmp_path / "worked" / str(os.getpid())).touch()
        return work(filler, number, row)

    # Forked processes have both patches: 13 images are 7 tasks then, of which each process gets some.
    with mock.patch.object(Filler, "__call__", told), mock.patch.object(pool, "TASK_ROWS", 2):
        many = convert(folder, tmp_path / "many", size=19, workers=workers)
    assert len(list((tmp_path / "worked").iterdir())) == (min(workers, 7) if sys.platform == "linux" else 1)
    assert contents(one) == contents(many)


def test_a_tall_image_counts_whole_in_mean_and_std(tmp_path: Path) -> None:
    """Moments are added by 256 rows at a time."""
    write_image(tmp_path / "set" / "ant" / "0.jpg", 0)
    opened = open_dataset(convert(tmp_path / "set", tmp_path / "out", size=300))
    pixels = opened[0][0].numpy().reshape(-1, 3) / 255
    assert np.allclose(opened.mean, pixels.mean(0), atol=1e-9)
    assert np.allclose(opened.std, pixels.std(0), atol=1e-9)


def test_every_block_of_a_shard_counts_in_its_checksum(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 1000)
    out = convert(folder, tmp_path / "out", size=20)
    assert (out / "train-00000.safetensors").stat().st_size > 10_000
    assert not list(find_damage(out, read_manifest(out)))
