"""Geometric transforms as maps: where each output pixel lies in the stored image.

A chain of crops and resizes composes into one map per image and axis, so it resamples once. The map of an
axis, in stored pixels: output pixel i covers [start + i * step, start + (i + 1) * step).

N images; words: 32 random bits each, in uint64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from fastload.augment import philox
from fastload.errors import TransformError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class AxisMap:
    """Where each output pixel of one axis lies in the stored image, per image.

    Attributes:
        start: stored coordinate of the first output pixel's outer edge, [N].
        step: stored pixels per output pixel, [N]; negative where mirrored.
        low, high: stored coordinates that resampling may read, [N]: a crop before a resize must not
            let its surroundings bleed in. Outside the stored image they mean padding.
        size: output pixels.
    """

    start: Floats
    step: Floats
    low: Floats
    high: Floats
    size: int

    @staticmethod
    def identity(num_images: int, size: int) -> AxisMap:
        """Return the map that copies `size` pixels."""
        zeros, ones = np.zeros(num_images), np.ones(num_images)
        return AxisMap(start=zeros, step=ones, low=zeros, high=ones * size, size=size)

    def crop(self, offset: Ints, size: int) -> AxisMap:
        """Keep `size` pixels from `offset` on; a negative offset, or a size beyond the end, pads."""
        return replace(self, start=self.start + offset * self.step, size=size)

    def resize(self, size: int) -> AxisMap:
        """Bring all pixels to `size` pixels."""
        end = self.start + self.size * self.step
        low, high = np.minimum(self.start, end), np.maximum(self.start, end)
        return replace(self, step=self.step * (self.size / size), low=low, high=high, size=size)

    def flip(self, flipped: npt.NDArray[np.bool_]) -> AxisMap:
        """Mirror the images where `flipped`."""
        end = self.start + self.size * self.step
        return replace(self, start=np.where(flipped, end, self.start), step=np.where(flipped, -self.step, self.step))


class GeometricOp(Protocol):
    """One geometric transform: how many random words it takes, and what it does to the maps."""

    @property
    def num_words(self) -> int:
        """Random words per image."""
        ...

    def apply(self, y: AxisMap, x: AxisMap, words: philox.UInt) -> tuple[AxisMap, AxisMap]:
        """Return the maps after this transform; `words` is [num_words, N]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Resize:
    """torchvision's Resize, bilinear and antialiased: both sides, or the short side with the ratio kept."""

    size: tuple[int, ...]
    max_size: int | None = None
    num_words: ClassVar[int] = 0

    def apply(self, y: AxisMap, x: AxisMap, words: philox.UInt) -> tuple[AxisMap, AxisMap]:
        """See GeometricOp."""
        if len(self.size) == 2:
            return y.resize(self.size[0]), x.resize(self.size[1])
        # torchvision.transforms.functional._compute_resized_output_size
        short, long = sorted((y.size, x.size))
        new_short, new_long = self.size[0], int(self.size[0] * long / short)
        if self.max_size is not None and new_long > self.max_size:
            new_short, new_long = int(self.max_size * new_short / new_long), self.max_size
        height, width = (new_short, new_long) if y.size <= x.size else (new_long, new_short)
        return y.resize(height), x.resize(width)


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """torchvision's CenterCrop; pads where the image is smaller. `fill`: the stored value it pads with."""

    size: tuple[int, int]
    fill: tuple[float, ...] = (0.0,)
    num_words: ClassVar[int] = 0

    def pads(self, height: int, width: int) -> bool:
        """Whether an image of this size gets padding."""
        return height < self.size[0] or width < self.size[1]

    def apply(self, y: AxisMap, x: AxisMap, words: philox.UInt) -> tuple[AxisMap, AxisMap]:
        """See GeometricOp."""
        return self._axis(y, self.size[0]), self._axis(x, self.size[1])

    @staticmethod
    def _axis(axis: AxisMap, size: int) -> AxisMap:
        # torchvision pads first, (size - n) // 2 in front, and then rounds half to even.
        padded_front = max(0, size - axis.size) // 2
        offset = round((max(axis.size, size) - size) / 2) - padded_front
        return axis.crop(np.full(len(axis.start), offset), size)


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """torchvision's RandomCrop with constant padding (left, top, right, bottom) of the stored value `fill`."""

    size: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_if_needed: bool = False
    fill: tuple[float, ...] = (0.0,)
    num_words: ClassVar[int] = 2

    def pads(self, height: int, width: int) -> bool:
        """Whether an image of this size may get padding."""
        return any(self.padding) or height < self.size[0] or width < self.size[1]

    def apply(self, y: AxisMap, x: AxisMap, words: philox.UInt) -> tuple[AxisMap, AxisMap]:
        """See GeometricOp."""
        left, top, right, bottom = self.padding
        return self._axis(y, self.size[0], top, bottom, words[0]), self._axis(x, self.size[1], left, right, words[1])

    def _axis(self, axis: AxisMap, size: int, before: int, after: int, words: philox.UInt) -> AxisMap:
        if axis.size + before + after < size and self.pad_if_needed:
            missing = size - axis.size - before - after
            before, after = before + missing, after + missing  # both sides, as torchvision does
        room = axis.size + before + after - size
        if room < 0:
            raise TransformError(
                f"RandomCrop({list(self.size)}) is larger than the images ({axis.size} pixels with "
                f"{before + after} of padding); crop less, pad more, or pass pad_if_needed=True."
            )
        return axis.crop(philox.below(words, room + 1) - before, size)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """torchvision's RandomResizedCrop: ten tries, log-uniform ratio, centre fallback."""

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    num_words: ClassVar[int] = 22

    def apply(self, y: AxisMap, x: AxisMap, words: philox.UInt) -> tuple[AxisMap, AxisMap]:
        """See GeometricOp."""
        top, left, height, width = self.boxes(y.size, x.size, words)
        return self._axis(y, top, height, self.size[0]), self._axis(x, left, width, self.size[1])

    def boxes(self, height: int, width: int, words: philox.UInt) -> tuple[Ints, Ints, Ints, Ints]:
        """Return (top, left, height, width) of each crop, as torchvision's get_params draws them."""
        u = philox.uniform(words[:20]).reshape(10, 2, -1)
        area = height * width * (self.scale[0] + u[:, 0] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = np.exp(low + u[:, 1] * (high - low))
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        tried = fits.argmax(0)[None]
        chosen_h = np.take_along_axis(h, tried, 0)[0]
        chosen_w = np.take_along_axis(w, tried, 0)[0]
        top = philox.below(words[20], height - np.minimum(chosen_h, height) + 1)
        left = philox.below(words[21], width - np.minimum(chosen_w, width) + 1)
        back_h, back_w = self._fallback(height, width)
        found = fits.any(0)
        return (
            np.where(found, top, (height - back_h) // 2),
            np.where(found, left, (width - back_w) // 2),
            np.where(found, chosen_h, back_h),
            np.where(found, chosen_w, back_w),
        )

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        ratio = width / height
        if ratio < min(self.ratio):
            return round(width / min(self.ratio)), width
        if ratio > max(self.ratio):
            return height, round(height * max(self.ratio))
        return height, width

    @staticmethod
    def _axis(axis: AxisMap, offset: Ints, extent: Ints, size: int) -> AxisMap:
        # crop() and resize() in one, for extents that differ from image to image.
        start = axis.start + offset * axis.step
        end = start + extent * axis.step
        return AxisMap(
            start=start, step=axis.step * (extent / size), low=np.minimum(start, end), high=np.maximum(start, end),
            size=size,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RandomHorizontalFlip:
    """torchvision's RandomHorizontalFlip."""

    p: float = 0.5
    num_words: ClassVar[int] = 1

    def apply(self, y: AxisMap, x: AxisMap, words: philox.UInt) -> tuple[AxisMap, AxisMap]:
        """See GeometricOp."""
        return y, x.flip(philox.uniform(words[0]) < self.p)
