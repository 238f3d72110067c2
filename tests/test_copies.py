"""Loaders of one split in one process: one copy in memory, gone with the last of them."""

import gc
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision.transforms.v2 as v2

from fastload import Augment, Loader, open_dataset, placement, storing
from fastload.stores import copies

GIB = 2**30


def make(dataset: Path, split: str = "train", **options: Any) -> Loader:
    options = {"placement": "host", "device": "cpu", **options}
    return Loader(open_dataset(dataset, split), 4, **options)


def memory(loader: Loader) -> torch.Tensor:
    return loader._store.samples  # type: ignore[union-attr]


def test_loaders_of_one_split_share_one_copy_that_goes_with_the_last(dataset: Path, tmp_path: Path) -> None:
    small = make(dataset, augment=Augment([v2.Resize(8)]))
    large = make(dataset, seed=5, shuffle=False)
    assert memory(small) is memory(large)
    expected = [open_dataset(dataset)[i][0] for i in range(13)]
    images = torch.cat([images for images, _ in large])
    assert torch.equal((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1), torch.stack(expected))
    # Another split, another memory, another place on the disk: copies of their own.
    elsewhere = shutil.copytree(dataset, tmp_path / "copy.fastload")
    others = [make(dataset, "valid"), make(elsewhere), make(dataset, placement="gpu_sharded")]
    held = memory(small).data_ptr()
    assert all(loader._store.samples.data_ptr() != held for loader in (others[0], others[1]))  # type: ignore[union-attr]
    assert others[2]._store._samples.data_ptr() != held  # type: ignore[union-attr]
    del small
    gc.collect()
    assert memory(large).data_ptr() == held == memory(make(dataset)).data_ptr()
    del large, others
    gc.collect()
    assert not [name for name in copies._copies if name.path == dataset.resolve()]


def test_four_loaders_take_the_memory_of_two(dataset: Path) -> None:
    with mock.patch.object(storing, "host_tensor", wraps=storing.host_tensor) as made:
        loaders = [make(dataset, split, seed=s) for s in range(2) for split in ("train", "valid")]
    assert [sum(map(len, call.args[0])) for call in made.call_args_list] == [13, 7]
    del loaders


@pytest.mark.parametrize(("asked", "chosen"), [("auto", "host"), ("host", "host"), ("mapped", "mapped")])
def test_a_copy_that_is_there_takes_no_more_room(dataset: Path, asked: str, chosen: str) -> None:
    first = make(dataset)
    with mock.patch.object(placement, "free_host_bytes", return_value=0):
        second = make(dataset, placement=asked)
    assert second.placement.kind == chosen
    assert ("the copy of another loader" in str(second.placement)) == (chosen == "host")
    assert first.placement.kind == "host"


def test_on_a_gpu_the_copy_is_found_before_what_is_free(dataset: Path) -> None:
    """Of a GPU that is not here: only the choice of memory is asked."""
    opened, device = open_dataset(dataset), torch.device("cuda", 1)
    wish = storing.Wish(
        kind="auto", device=device, batch_size=4, rank=0, world_size=1, together=False, reserve_bytes=None,
        workers=None, cut=None, in_place=False, progress=False,
    )  # fmt: skip
    samples = copies.keep(storing._name(opened, wish, "gpu"), torch.zeros(13))
    with mock.patch.object(placement, "_free_gpu_bytes", return_value=1000):
        assert storing.place(opened, wish).kind == "gpu"
        del samples
        assert storing.place(opened, wish).kind == "host"
