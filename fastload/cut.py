"""Images of their own sizes -> one size: which box of each image is cut out and resized, as it is decoded.

Batches hold images of one size, files do not. So one crop comes before the batch, on the CPU; it is drawn by the
same generator as all others, from a number that no pipeline reaches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastload.augment.philox import draw_words
from fastload.errors import TransformError, printable

TRANSFORM_NUMBER = 1 << 30  # in the place of a transform's number in its pipeline
TRIES = 10  # torchvision's

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How one box is chosen in each image.

    Attributes:
        size: (S, T) that every box is resized to.
        scale, ratio: of a random box, as RandomResizedCrop has them; None takes the box in the middle.
        short: the short side that images are thought to be resized to before the middle [S, T] is taken;
            0: they are not resized; None: the box is the whole image.
    """

    size: tuple[int, int]
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    short: int | None = None

    def boxes(self, sizes_N2: Ints, ids: Ints, *, seed: int, epoch: int) -> Ints:
        """Return (top, left, height, width) in stored pixels, int64 [N, 4].

        Args:
            sizes_N2: (H, W) of each image.
            ids: sample ids [N], which with seed and epoch key the draws.

        Raises:
            TransformError: an image is smaller than what is to be cut out of it.
        """
        self.check(sizes_N2)
        if self.scale is not None:
            return self._random(sizes_N2, ids, seed, epoch)
        height, width = sizes_N2.T
        if self.short is None:
            return np.stack([np.zeros_like(height), np.zeros_like(width), height, width], 1)
        shrink = np.minimum(height, width) / self.short if self.short else np.ones(len(height))
        h = np.clip(np.rint(self.size[0] * shrink), 1, height).astype(np.int64)
        w = np.clip(np.rint(self.size[1] * shrink), 1, width).astype(np.int64)
        return np.stack([(height - h) // 2, (width - w) // 2, h, w], 1)

    def check(self, sizes_N2: Ints) -> None:
        """Raise TransformError where an image (H, W) is smaller than a CenterCrop, which torchvision fills up."""
        small = (sizes_N2 < self.size).any(1) if self.short == 0 else np.zeros(1, bool)
        if small.any():
            found, wanted = ("x".join(map(str, size)) for size in (sizes_N2[small.argmax()], self.size))
            raise TransformError(
                f"cut: CenterCrop takes {wanted}, and an image has {found}; pass Resize(n) and CenterCrop."
            )

    def _random(self, sizes_N2: Ints, ids: Ints, seed: int, epoch: int) -> Ints:
        assert self.scale is not None
        words = draw_words(ids, seed=seed, epoch=epoch, transform=TRANSFORM_NUMBER, count=2 * TRIES + 2)
        u = words.astype(np.float64) * 2.0**-32
        height, width = sizes_N2.T
        area = height * width * (self.scale[0] + u[:TRIES] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = np.exp(low + u[TRIES : 2 * TRIES] * (high - low))
        w, h = (np.rint(np.sqrt(a)).astype(np.int64) for a in (area * ratio, area / ratio))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        tried = fits.argmax(0)[None]
        h, w = (np.take_along_axis(a, tried, 0)[0] for a in (h, w))
        # torchvision's way out: the middle, as much of it as the ratio allows.
        own = width / height
        back_h = np.where(own < self.ratio[0], np.rint(width / self.ratio[0]), height).astype(np.int64)
        back_w = np.where(own > self.ratio[1], np.rint(height * self.ratio[1]), width).astype(np.int64)
        found = fits.any(0)
        h, w = np.where(found, h, np.minimum(back_h, height)), np.where(found, w, np.minimum(back_w, width))
        top = np.where(found, (u[-2] * (height - h + 1)).astype(np.int64), (height - h) // 2)
        left = np.where(found, (u[-1] * (width - w + 1)).astype(np.int64), (width - w) // 2)
        return np.stack([top, left, h, w], 1)


def parse_cut(transform: Any) -> Cut:
    """Turn torchvision's RandomResizedCrop, Resize((S, T)), CenterCrop, or Resize(n) and CenterCrop into a Cut.

    Raises:
        TransformError: another transform, or one that leaves images of different sizes.
    """
    steps = list(getattr(transform, "transforms", transform if isinstance(transform, list | tuple) else [transform]))
    names = [type(step).__name__ for step in steps]
    for step, name in zip(steps, names, strict=True):
        way = getattr(step, "interpolation", "bilinear")
        if getattr(way, "value", way) not in ("bilinear", 2) or getattr(step, "max_size", None) is not None:
            raise TransformError(
                f"cut: {printable(name)} asks for another interpolation than bilinear, or for max_size, which is not "
                "supported; leave it out."
            )
    sizes = [_numbers(getattr(step, "size", ())) for step in steps]
    if names == ["RandomResizedCrop"]:
        scale, ratio = steps[0].scale, steps[0].ratio
        return Cut(size=_pair(sizes[0]), scale=(scale[0], scale[1]), ratio=(ratio[0], ratio[1]))
    if names == ["Resize"] and len(sizes[0]) == 2:
        return Cut(size=_pair(sizes[0]))
    if names == ["CenterCrop"]:
        return Cut(size=_pair(sizes[0]), short=0)
    if names == ["Resize", "CenterCrop"] and len(sizes[0]) == 1:
        size, short = _pair(sizes[1]), sizes[0][0]
        if max(size) > short:
            raise TransformError(
                f"cut: CenterCrop takes {size[0]}x{size[1]} of images whose short side is {short}, which torchvision "
                f"fills up and this does not; pass Resize({max(size)}) or more."
            )
        return Cut(size=size, short=short)
    raise TransformError(
        f"cut={printable(', '.join(names))}: images of their own sizes become one size by RandomResizedCrop, "
        "Resize((height, width)), CenterCrop, or Resize(n) and CenterCrop; pass one of these."
    )


def _numbers(size: Any) -> list[int]:
    return [int(n) for n in size] if isinstance(size, list | tuple) else [int(size)]


def _pair(size: list[int]) -> tuple[int, int]:
    if not size or min(size) < 1:
        raise TransformError(f"cut: size {size} is not one or two numbers of at least 1.")
    return size[0], size[-1]
