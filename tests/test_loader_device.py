"""Loading where tensors are made on another device than the CPU unless told otherwise (torch.set_default_device)."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as v2

from fastload import Augment, Loader, open_dataset

SHARE = {"rank": 1, "world_size": 2}
# `meta` has no memory: whatever is made there by mistake can neither be read nor mixed with what lies elsewhere.
ELSEWHERE = torch.device("meta")


class Listed(torch.utils.data.Dataset[Any]):
    """A map-style dataset of arrays, whose labels only its samples know."""

    def __init__(self, path: Path) -> None:
        self._opened = open_dataset(path)

    def __len__(self) -> int:
        return len(self._opened)

    def __getitem__(self, index: int) -> Any:
        image, label = self._opened[index]
        return image.numpy(), label


def passes(dataset: Path, place: AbstractContextManager[Any], **options: Any) -> list[torch.Tensor]:
    """Return images and labels of two passes over a dataset that is opened within `place`."""
    with place:
        source: Any = Listed(dataset) if options["placement"] == "folder" else open_dataset(dataset)
        if "augment" in options:
            options["augment"] = Augment(options["augment"])
        loader = Loader(source, 3, device="cpu", drop_last=False, seed=5, **options)
        return [tensor for _ in range(2) for batch in loader for tensor in (*batch, loader.batch_ids)]


@pytest.mark.parametrize(
    "options",
    [
        {"placement": "host"},
        {"placement": "mapped", "shuffle": False},
        {"placement": "gpu_sharded", **SHARE},
        {"placement": "gpu_sharded", "shuffle": False, **SHARE},
        {"placement": "folder", "workers": 0},
        {"placement": "host", "augment": [v2.RandomResizedCrop(9), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4)]},
        {"placement": "mapped", "augment": [v2.RandomCrop(17, padding=2), v2.ToDtype(torch.float32, scale=True),
                                            v2.Normalize([0.5] * 3, [0.2] * 3)]},
        {"placement": "host", "augment": [v2.RandomRotation(30), v2.GaussianBlur(3), v2.RandomEqualize(),
                                          v2.RandomErasing(), v2.MixUp(num_classes=3)]},
    ],
)  # fmt: skip
def test_a_default_device_changes_nothing(dataset: Path, options: dict[str, Any]) -> None:
    expected = passes(dataset, nullcontext(), **options)
    got = passes(dataset, ELSEWHERE, **options)
    assert len(expected) == len(got) >= 12
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)
