"""Geometric transforms: torchvision's names, parameters and draws.

N images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastload.augment.arithmetic import Array, Numbers, below, between, rounded, uniform
from fastload.augment.maps import IDENTITY, Geometry, Matrix, affine_matrix, perspective_matrix
from fastload.augment.plan import Builder
from fastload.errors import TransformError

Fill = tuple[float, ...]


def _crops(geometry: Geometry) -> bool:
    return True


def _resizes(geometry: Geometry) -> bool:
    """Whether a resize may join: it reads across the edges of mirrored and hidden padding, which has no pixels."""
    return not geometry.fold and not geometry.hidden


def may_warp(geometry: Geometry) -> bool:
    """Whether a warp may join: there is none yet, and no mirrored or hidden padding, which has no pixels."""
    return geometry.matrix is None and not geometry.fold and not geometry.hidden


@dataclass(frozen=True, kw_only=True)
class Resize:
    """torchvision's Resize, bilinear and antialiased: both sides, the short side with the ratio kept, or max_size."""

    size: tuple[int, ...] | None
    max_size: int | None = None

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        height, width = builder.size
        new = self.new_size(height, width)
        if new != (height, width):
            box = (0.0, 0.0, float(height), float(width))
            builder.move(lambda g: g.resize(builder.xp, box, *new), joins=_resizes)

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after it; torchvision.transforms.functional._compute_resized_output_size."""
        if self.size is not None and len(self.size) == 2:
            return self.size[0], self.size[1]
        short, long = sorted((height, width))
        if self.size is None:
            new_short, new_long = int((self.max_size or long) * short / long), self.max_size or long
        else:
            new_short, new_long = self.size[0], int(self.size[0] * long / short)
            if self.max_size is not None and new_long > self.max_size:
                new_short, new_long = int(self.max_size * new_short / new_long), self.max_size
        return (new_short, new_long) if height <= width else (new_long, new_short)


@dataclass(frozen=True, kw_only=True)
class Pad:
    """torchvision's Pad by (left, top, right, bottom) pixels. `fill`: the stored value it pads with."""

    padding: tuple[int, int, int, int]
    mode: str = "constant"
    fill: Fill = (0.0,)

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        if min(self.padding) < 0:
            raise TransformError(f"padding {list(self.padding)} has a number below 0; crop instead.")
        if any(self.padding):
            builder.move(lambda g: g.pad(builder.xp, self.padding, self.mode, self.fill), joins=self.joins)

    def joins(self, geometry: Geometry) -> bool:
        """Whether it can be part of the resampling so far: one fill, one fold, nothing behind a warp."""
        if geometry.matrix is not None or geometry.fold:
            return False
        return not geometry.padded or (self.mode == "constant" and geometry.fill == self.fill)


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """torchvision's CenterCrop; pads where the image is smaller. `fill`: the stored value it pads with."""

    size: tuple[int, int]
    fill: Fill = (0.0,)

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        # torchvision pads first, (size - n) // 2 in front, and then rounds half to even.
        missing = [max(0, s - n) for s, n in zip(self.size, builder.size, strict=True)]
        (top, left), (bottom, right) = (m // 2 for m in missing), ((m + 1) // 2 for m in missing)
        Pad(padding=(left, top, right, bottom), fill=self.fill).add(builder, number)
        if builder.size == self.size:
            return
        y, x = (float(round((n - s) / 2)) for s, n in zip(self.size, builder.size, strict=True))
        builder.move(lambda g: g.crop(y, x, *self.size), joins=_crops)


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """torchvision's RandomCrop with padding (left, top, right, bottom)."""

    size: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_if_needed: bool = False
    mode: str = "constant"
    fill: Fill = (0.0,)

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        left, top, right, bottom = self.padding
        height, width = builder.size[0] + top + bottom, builder.size[1] + left + right
        if self.pad_if_needed:
            # Both sides by all that is missing, as torchvision does.
            down, across = max(0, self.size[0] - height), max(0, self.size[1] - width)
            left, top, right, bottom = left + across, top + down, right + across, bottom + down
            height, width = height + 2 * down, width + 2 * across
        if height < self.size[0] or width < self.size[1]:
            raise TransformError(
                f"RandomCrop({list(self.size)}) is larger than the images ({height} x {width} pixels with padding); "
                "crop less, pad more, or pass pad_if_needed=True."
            )
        Pad(padding=(left, top, right, bottom), mode=self.mode, fill=self.fill).add(builder, number)
        if (height, width) == self.size:
            return
        xp, words = builder.xp, builder.xp.words(number, 2)
        y = xp.number(below(words[0], height - self.size[0] + 1))
        x = xp.number(below(words[1], width - self.size[1] + 1))
        builder.move(lambda g: g.crop(y, x, *self.size), joins=_crops)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """torchvision's RandomResizedCrop: ten tries, log-uniform ratio, centre fallback."""

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        box = self.boxes(builder.xp, *builder.size, number)
        builder.move(lambda g: g.resize(builder.xp, box, *self.size), joins=_resizes)

    def boxes(self, xp: Numbers, height: int, width: int, number: int) -> tuple[Array, Array, Array, Array]:
        """Return (top, left, height, width) of each crop, as torchvision's get_params draws them."""
        words = xp.words(number, 22)
        found, chosen_h, chosen_w = try_boxes(xp, words, height, width, self.scale, self.ratio, erasing=False)
        top = below(words[20], height - chosen_h + 1)
        left = below(words[21], width - chosen_w + 1)
        back_h, back_w = self._fallback(height, width)
        return (
            xp.number(xp.where(found, top, (height - back_h) // 2)),
            xp.number(xp.where(found, left, (width - back_w) // 2)),
            xp.number(xp.where(found, chosen_h, back_h)),
            xp.number(xp.where(found, chosen_w, back_w)),
        )

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        ratio = width / height
        if ratio < min(self.ratio):
            return round(width / min(self.ratio)), width
        if ratio > max(self.ratio):
            return height, round(height * max(self.ratio))
        return height, width


def try_boxes(
    xp: Numbers, words: Any, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float],
    *, erasing: bool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Return (found, height, width) of the first of ten boxes that fits, out of 20 words.

    A box for RandomResizedCrop has width / height = ratio and may be as large as the image; one for
    RandomErasing has height / width = ratio and must be smaller. Where none fits, the sizes are those of the image.
    """
    area, low, high = float(height * width), math.log(ratio[0]), math.log(ratio[1])
    found: Array = False
    chosen_h: Array = height
    chosen_w: Array = width
    for i in reversed(range(10)):
        target = area * between(xp, words[2 * i], scale[0], scale[1])
        r = xp.exp(between(xp, words[2 * i + 1], low, high))
        w, h = rounded(xp, xp.sqrt(target * r)), rounded(xp, xp.sqrt(target / r))
        if erasing:
            w, h = h, w
            fits = (h < height) & (w < width)
        else:
            fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        # Backwards, so that the first one that fits is what remains.
        found = fits | found
        chosen_h, chosen_w = xp.where(fits, h, chosen_h), xp.where(fits, w, chosen_w)
    return found, chosen_h, chosen_w


@dataclass(frozen=True, kw_only=True)
class Flip:
    """torchvision's RandomHorizontalFlip and RandomVerticalFlip, or every image every other epoch.

    Attributes:
        p: how often.
        vertical: upside down instead of left to right.
        alternating: `p` is of the first epoch; then each image is mirrored in every other one.
    """

    p: float = 0.5
    vertical: bool = False
    alternating: bool = False

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        xp = builder.xp
        flipped = uniform(xp, xp.words(number, 1, every_epoch=not self.alternating)[0]) < self.p
        if self.alternating:
            flipped = xp.where(flipped, 1, 0) != xp.parity
        flips = (flipped, False) if self.vertical else (False, flipped)
        builder.move(lambda g: g.flip(xp, *flips), joins=_crops, mirror=True)


AXIS_MOVES = (Resize, Pad, CenterCrop, RandomCrop, RandomResizedCrop, Flip)  # no warp among them


@dataclass(frozen=True, kw_only=True)
class RandomRotation:
    """torchvision's RandomRotation; degrees, counter-clockwise, around `center` (x, y) or the middle."""

    degrees: tuple[float, float]
    nearest: bool = True
    center: tuple[float, float] | None = None
    fill: Fill | None = (0.0,)

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        xp = builder.xp
        angle = between(xp, xp.words(number, 1)[0], *self.degrees) * (-math.pi / 180)
        matrix = affine_matrix(xp, builder.size, angle=angle, center=centered(self.center, builder.size))
        builder.move(lambda g: g.warp(xp, matrix, nearest=self.nearest, fill=self.fill), joins=may_warp)


@dataclass(frozen=True, kw_only=True)
class RandomAffine:
    """torchvision's RandomAffine; degrees, shares of the sides, factors."""

    degrees: tuple[float, float]
    translate: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    shear: tuple[float, ...] | None = None
    nearest: bool = True
    center: tuple[float, float] | None = None
    fill: Fill | None = (0.0,)

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        matrix = self.matrix(builder.xp, builder.size, number)
        builder.move(lambda g: g.warp(builder.xp, matrix, nearest=self.nearest, fill=self.fill), joins=may_warp)

    def matrix(self, xp: Numbers, size: tuple[int, int], number: int) -> Matrix:
        """Return the map of each image."""
        words, radians = xp.words(number, 6), math.pi / 180
        shift: list[Array] = [0.0, 0.0]
        if self.translate is not None:
            for i, side in enumerate((size[1], size[0])):
                most = self.translate[i] * side
                shift[i] = xp.number(rounded(xp, between(xp, words[1 + i], -most, most)))
        scale: Array = 1.0 if self.scale is None else between(xp, words[3], *self.scale)
        shear: list[Array] = [0.0, 0.0]
        for i in range(len(self.shear or ()) // 2):
            low, high = (self.shear or ())[2 * i : 2 * i + 2]
            shear[i] = between(xp, words[4 + i], low, high) * radians
        return affine_matrix(
            xp, size, angle=between(xp, words[0], *self.degrees) * radians, translate=(shift[0], shift[1]),
            scale=scale, shear=(shear[0], shear[1]), center=centered(self.center, size),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RandomPerspective:
    """torchvision's RandomPerspective."""

    distortion_scale: float = 0.5
    p: float = 0.5
    nearest: bool = False
    fill: Fill | None = (0.0,)

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        height, width = builder.size
        if min(height, width) < 2:
            return  # its corners are one point
        xp = builder.xp
        chosen = uniform(xp, xp.words(number, 9)[8]) < self.p
        matrix = perspective_matrix(self.corners(xp, height, width, number), height, width)
        matrix = tuple(xp.where(chosen, a, b) for a, b in zip(matrix, IDENTITY, strict=True))
        builder.move(lambda g: g.warp(xp, matrix, nearest=self.nearest, fill=self.fill), joins=may_warp)

    def corners(self, xp: Numbers, height: int, width: int, number: int) -> list[tuple[Array, Array]]:
        """Return (x, y) of where the top left, top right, bottom right and bottom left corner go."""
        words = xp.words(number, 9)
        down, across = (int(self.distortion_scale * (n // 2)) + 1 for n in (height, width))
        left, right, top, bottom = 0, width - across, 0, height - down
        at = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return [
            (xp.number(below(words[2 * i], across) + x), xp.number(below(words[2 * i + 1], down) + y))
            for i, (x, y) in enumerate(at)
        ]


def centered(center: tuple[float, float] | None, size: tuple[int, int]) -> tuple[float, float]:
    """Return `center`, (x, y) in pixels, as seen from the middle of an image of (height, width)."""
    return (0.0, 0.0) if center is None else (center[0] - size[1] / 2, center[1] - size[0] / 2)
