"""What the tests of augmentation share: images, our draws as torchvision's parameters, and the tolerances."""

from __future__ import annotations

import math

import numpy as np
import torch
import torchvision.transforms.v2 as v2

from fastload.augment import Augment, philox
from fastload.augment.arithmetic import HostNumbers, Keys
from fastload.augment.plan import Plan
from fastload.augment.spec import parse, plan

SEED, EPOCH = 3, 4

# Transforms that take an image of one level (the first) to another of one (the second).
FLAT = {
    "resize and autocontrast": ([v2.Resize((13, 11)), v2.RandomAutocontrast(1.0)], 200, 200),
    "warp and autocontrast": (
        [v2.RandomAffine(9, None, (2, 2), interpolation=v2.InterpolationMode.BILINEAR), v2.RandomAutocontrast(1.0)],
        200,
        200,
    ),
    "sharpness and autocontrast": ([v2.RandomAdjustSharpness(1.7, 1.0), v2.RandomAutocontrast(1.0)], 77, 77),
    "resize and solarize": ([v2.Resize((13, 11)), v2.RandomSolarize(255, 1.0)], 255, 0),
}


def batch(num_images: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Noise: what geometry and statistics find hardest."""
    generator = torch.Generator().manual_seed(num_images * height + width)
    return torch.randint(0, 256, (num_images, height, width, channels), dtype=torch.uint8, generator=generator)


def smooth(num_images: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Like photographs: neighbouring pixels are alike."""
    coarse = batch(num_images, 5, 6, channels).permute(0, 3, 1, 2).float()
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    return fine.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def unit(images_NHWC: torch.Tensor) -> torch.Tensor:
    """float32 [N, C, H, W], 0..1: what torchvision gets."""
    return images_NHWC.permute(0, 3, 1, 2).float() / 255


def words(number: int, count: int, num: int) -> np.ndarray:
    """Our random words, [count, N]."""
    return philox.draw_words(np.arange(num), seed=SEED, epoch=EPOCH, transform=number, count=count)


def uniforms(number: int, count: int, num: int) -> np.ndarray:
    return words(number, count, num) * 2.0**-32


def assert_like_torchvision(got: torch.Tensor, expected: torch.Tensor, *, mean: float = 0.5, high: float = 4.0) -> None:
    """Values 0..1: mean absolute error and 99.9th percentile, in grey levels."""
    assert got.shape == expected.shape
    error = (got.double() - expected.double()).abs().flatten() * 255
    assert error.mean().item() <= mean
    assert error.kthvalue(max(1, math.ceil(0.999 * len(error)))).values.item() <= high


def assert_same(got: torch.Tensor, expected: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> None:
    """The tolerance between two ways of doing the same, values 0..1: rounding, far below one grey level.

    A value on the very edge of a step (posterize, solarize, equalize, the nearest pixel) may fall to either
    side: one in a thousand.
    """
    assert got.shape == expected.shape
    atol = {torch.float32: 0.02, torch.float16: 0.2, torch.bfloat16: 1.1}[dtype] / 255
    error = (got.double() - expected.double()).abs()
    assert (error > atol).double().mean().item() <= 1e-3, error.max().item() * 255


def ks(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov statistic over its value at p = 0.001: below 1 is fine."""
    grid = np.sort(np.concatenate([a, b]))
    cdfs = [np.searchsorted(np.sort(s), grid, side="right") / len(s) for s in (a, b)]
    return float(np.abs(cdfs[0] - cdfs[1]).max() / (1.95 * math.sqrt(1 / len(a) + 1 / len(b))))


def augmented(transforms: object, images: torch.Tensor, **options: object) -> torch.Tensor:
    made = Augment(transforms, **options).reference(images, seed=SEED, epoch=EPOCH)  # type: ignore[arg-type]
    assert isinstance(made, torch.Tensor)
    return made


def plan_of(
    transforms: object, num_images: int, height: int, width: int, channels: int = 3, *, seed: int = 0, epoch: int = 0
) -> Plan:
    """What happens to samples 0 .. num_images - 1 of this size, draws included."""
    (ops,) = parse(transforms).segments()
    assert isinstance(ops, list)
    return plan(ops, HostNumbers(np.arange(num_images), Keys(seed, epoch)), height, width, channels)
