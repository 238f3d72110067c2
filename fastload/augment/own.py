"""Transforms that torchvision lacks; they go into a pipeline beside torchvision's.

Augment([v2.RandomCrop(32, padding=4), AlternatingFlip(), Cutout(8), v2.ToImage(), ...])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AlternatingFlip:
    """Mirror half of the images in the first epoch, and from then on every image in every other epoch.

    Source: Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024).
    """


@dataclass(frozen=True)
class Cutout:
    """Overwrite a square around a random pixel, cut off at the edges (DeVries and Taylor, 2017).

    Attributes:
        size: its side in pixels.
        p: share of the images.
        value: what is written, one number or one per channel, in the units of its place in the pipeline.
    """

    size: int | tuple[int, int]
    p: float = 1.0
    value: float | Sequence[float] = 0.0


@dataclass(frozen=True)
class RandomErasing:
    """torchvision's RandomErasing, which may also write the mean that the pipeline's Normalize takes off."""

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float | Sequence[float] | Literal["random", "mean"] = 0.0


@dataclass(frozen=True, kw_only=True)
class MixUp:
    """torchvision's MixUp; with `per_sample`, a share of its own for every image."""

    alpha: float = 1.0
    num_classes: int | None = None
    per_sample: bool = False


@dataclass(frozen=True, kw_only=True)
class CutMix:
    """torchvision's CutMix; with `per_sample`, a box of its own for every image."""

    alpha: float = 1.0
    num_classes: int | None = None
    per_sample: bool = False
