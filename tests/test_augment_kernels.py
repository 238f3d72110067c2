"""Triton's kernels beyond single transforms: what is written where, copied, measured and told."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2

from fastload.augment import Augment, cpu, fused, kernels
from fastload.augment.arithmetic import HostNumbers
from fastload.augment.fused import Fused
from fastload.augment.plan import Code, Pass
from fastload.augment.spec import parse, plan
from fastload.errors import TransformError
from tests.augment_help import FLAT, smooth
from tests.test_augment_fused import DEVICE, KEYS, PIPELINES, compare


@pytest.mark.kernels
def test_a_statistic_of_a_large_image_is_summed_up_in_a_few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MOST_SUMS", 2)  # three blocks of pixels, and one beyond the end
    compare(PIPELINES["two statistics"], 2, 37, 41)


class Filled:
    """A kernel whose `aside` holds no number before it is launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.asides = kernel, list[torch.Tensor]()

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            if options["ASIDE"]:
                self.asides.append(args[10].fill_(torch.nan))
            self.kernel[grid](*args, **options)

        return launch


@pytest.mark.kernels
def test_only_images_with_a_stencil_go_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    filled = Filled(kernels.apply)
    monkeypatch.setattr(kernels, "apply", filled)
    transforms = v2.RandomChoice([v2.RandomInvert(1), v2.RandomAdjustSharpness(2, 1)])
    compare(transforms, 6, 5, 7)
    (aside,) = filled.asides
    went = (~aside.isnan()).flatten(1).any(1)
    ids, parts = np.arange(6) * 77777777777, parse(transforms).parts
    made = plan(parts, HostNumbers(ids, KEYS), 5, 7, 3)  # type: ignore[arg-type]
    (node,) = made.nodes
    assert isinstance(node, Pass)
    assert went.tolist() == (node.steps[0].code == Code.SHARPNESS).tolist()
    assert 0 < went.sum() < 6


@pytest.mark.kernels
@pytest.mark.parametrize("way", ["kernels", "reference", "cpu"])
@pytest.mark.parametrize("name", FLAT)
def test_an_image_of_one_level_stays_one(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resampled area is even but for rounding."""
    monkeypatch.setattr("fastload.augment.can_fuse", lambda images: way == "kernels")
    transforms, level, expected = FLAT[name]
    images = torch.full((2, 15, 17, 3), level, dtype=torch.uint8, device=DEVICE)
    augment = Augment(transforms)
    made = augment.reference(images) if way == "reference" else augment(images)
    assert (made * 255 - expected).abs().max() < 0.02


@pytest.mark.kernels
@pytest.mark.parametrize("is_fused", [True, False])
def test_of_images_that_are_not_contiguous_only_rows_are_copied(
    is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of [N, C, H, W], permuted as the error message says."""
    images = smooth(9, 6, 5).to(DEVICE)
    ids = torch.tensor([7, 2])
    augment, rows = Augment(v2.RandomResizedCrop(4)), ids.to(DEVICE)
    monkeypatch.setattr("fastload.augment.can_fuse", lambda images: is_fused)
    expected = augment(images, rows=rows, ids=ids)
    lengths: list[int] = []
    for owner, at in ((Fused, 1), (cpu, 0)):

        def noting(*args: Any, whole: Any = owner.run, at: int = at) -> Any:
            lengths.append(len(args[at]))
            return whole(*args)

        monkeypatch.setattr(owner, "run", noting)
    permuted = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(augment(permuted, rows=rows, ids=ids), expected)
    assert lengths == [2]


@pytest.mark.kernels
def test_each_call_is_told_that_normalize_has_other_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastload.augment.can_fuse", lambda images: True)
    augment = Augment([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])
    augment(smooth(2, 3, 3).to(DEVICE))
    with pytest.raises(TransformError, match="Normalize has 3 channels, the images have 1"):
        augment(smooth(2, 3, 3, 1).to(DEVICE))
