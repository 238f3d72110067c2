"""A torchvision pipeline -> stages, and the draws: what is to be done, apart from doing it.

All geometry composes into one map per image and axis, so a chain of crops and resizes resamples once.
The map of an axis, in stored pixels: output pixel i covers [start + i * step, start + (i + 1) * step).

N images; H, W stored pixels; C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fastload.augment import philox
from fastload.errors import TransformError, printable

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


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What one batch's geometry came to: a map per axis, on the host, and the stored value of padding."""

    y: AxisMap
    x: AxisMap
    fill: tuple[float, ...] = (0.0,)

    @property
    def copies(self) -> bool:
        """Whether every output pixel is one whole stored pixel or padding, so that nothing is resampled."""
        return all(bool(np.all(np.abs(a.step) == 1) and np.all(a.start == np.floor(a.start))) for a in (self.y, self.x))


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


@dataclass(frozen=True, kw_only=True)
class Values:
    """What a stored pixel value becomes: `value * scale + offset`, per channel."""

    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)

    def then(self, scale: Sequence[float], offset: Sequence[float]) -> Values:
        """Return these values followed by another scale and offset."""
        count = max(len(self.scale), len(scale))
        s0, o0, s1, o1 = (
            tuple(v) * count if len(v) == 1 else tuple(v) for v in (self.scale, self.offset, scale, offset)
        )
        if not len(s0) == len(s1) == count:
            raise TransformError(f"Normalize for {len(scale)} channels after one for {len(self.scale)}; use one count.")
        return Values(
            scale=tuple(a * b for a, b in zip(s0, s1, strict=True)),
            offset=tuple(a * b + c for a, b, c in zip(o0, s1, o1, strict=True)),
        )

    def stored(self, fill: Sequence[float]) -> tuple[float, ...]:
        """Return the stored value that becomes `fill` here."""
        count = max(len(self.scale), len(fill))
        s, o, f = (tuple(v) * count if len(v) == 1 else tuple(v) for v in (self.scale, self.offset, fill))
        return tuple((c - b) / a for a, b, c in zip(s, o, f, strict=True))


@dataclass(frozen=True)
class Spec:
    """A pipeline as stages: one geometric map, then one scale and offset.

    Attributes:
        geometry: (number in the pipeline, operation): the number keys the draws.
        values: from stored 0..255 to the output.
        converted: how the pipeline itself made numbers of pixels: `scaled` to 0..1, `raw`, or not at all.
    """

    geometry: tuple[tuple[int, GeometricOp], ...] = ()
    values: Values = field(default_factory=Values)
    converted: str = ""

    def draw(self, ids: Ints, *, seed: int, epoch: int, height: int, width: int) -> Draws:
        """Draw for the samples `ids` [N] and compose the maps from images of `height` x `width`.

        Raises:
            TransformError: the operations do not fit images of that size.
        """
        y, x = AxisMap.identity(len(ids), height), AxisMap.identity(len(ids), width)
        fills = []
        for number, op in self.geometry:
            if isinstance(op, RandomCrop | CenterCrop) and op.pads(y.size, x.size):
                fills.append(op.fill)
            words = philox.draw_words(ids, seed=seed, epoch=epoch, transform=number, count=op.num_words)
            try:
                y, x = op.apply(y, x, words)
            except TransformError as e:
                raise TransformError(f"transform {number}: {e}") from None
        if len(set(fills)) > 1:
            raise TransformError(f"two crops pad with different values ({fills[0]} and {fills[1]}); use one fill.")
        return Draws(y=y, x=x, fill=fills[0] if fills else (0.0,))


def parse(transforms: Any) -> Spec:
    """Turn a torchvision v1 or v2 `Compose` (or Sequential, list, single transform) into a Spec.

    Raises:
        TransformError: a transform or one of its options is not known; names it and its position.
    """
    spec = Spec()
    for number, transform in enumerate(_flatten(transforms)):
        name = type(transform).__name__
        known = _KNOWN.get(name)
        if known is None or not type(transform).__module__.startswith("torchvision."):
            raise TransformError(
                f"transform {number} ({printable(name)}) is not one that fastload knows; it knows "
                f"{', '.join(sorted(_KNOWN))}."
            )
        try:
            parsed = known(transform, spec)
        except TransformError as e:
            raise TransformError(f"transform {number} ({name}): {e}") from None
        spec = parsed if isinstance(parsed, Spec) else replace(spec, geometry=(*spec.geometry, (number, parsed)))
    return spec


def _flatten(transforms: Any) -> Iterable[Any]:
    if transforms is None:
        return
    if isinstance(transforms, list | tuple | torch.nn.Sequential):
        for inner in transforms:
            yield from _flatten(inner)
    elif type(transforms).__name__ == "Compose" and hasattr(transforms, "transforms"):
        yield from _flatten(transforms.transforms)
    else:
        yield transforms


def _stored_fill(fill: Any, values: Values) -> tuple[float, ...]:
    """Return the stored value that a transform at this place of the pipeline pads with."""
    if isinstance(fill, dict):
        raise TransformError("a fill per kind of input is not supported; pass one fill.")
    return values.stored(tuple(fill) if isinstance(fill, Sequence) else (float(fill or 0),))


def _pair(size: Any) -> tuple[int, int]:
    numbers = [int(n) for n in size] if isinstance(size, Sequence) else [int(size)]
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise TransformError(f"size {size!r} is not one or two numbers of at least 1.")
    return numbers[0], numbers[-1]


def _check_bilinear(transform: Any) -> None:
    interpolation = getattr(transform.interpolation, "value", transform.interpolation)
    if interpolation != "bilinear":
        raise TransformError(f"interpolation {interpolation} is not supported; use bilinear.")
    if getattr(transform, "antialias", True) is False:
        raise TransformError("antialias=False is not supported; leave it at True.")


def _resize(transform: Any, spec: Spec) -> Resize:
    _check_bilinear(transform)
    if transform.size is None:
        raise TransformError("size=None is not supported; give a size.")
    size = [transform.size] if isinstance(transform.size, int) else list(transform.size)
    if len(size) not in (1, 2) or min(size) < 1:
        raise TransformError(f"size {transform.size!r} is not one or two numbers of at least 1.")
    return Resize(size=tuple(size), max_size=transform.max_size)


def _random_crop(transform: Any, spec: Spec) -> RandomCrop:
    if transform.padding_mode != "constant" and (transform.padding or transform.pad_if_needed):
        raise TransformError(f"padding_mode={transform.padding_mode!r} is not supported; use constant.")
    p = transform.padding or 0
    if isinstance(p, int) or len(p) <= 2:
        horizontal, vertical = (p, p) if isinstance(p, int) else (p[0], p[-1])
        left, top, right, bottom = horizontal, vertical, horizontal, vertical
    elif ".v2." in type(transform).__module__:
        left, right, top, bottom = p  # v2 keeps it in another order than its argument
    else:
        left, top, right, bottom = p
    return RandomCrop(
        size=_pair(transform.size), padding=(left, top, right, bottom), pad_if_needed=transform.pad_if_needed,
        fill=_stored_fill(transform.fill, spec.values),
    )  # fmt: skip


def _random_resized_crop(transform: Any, spec: Spec) -> RandomResizedCrop:
    _check_bilinear(transform)
    return RandomResizedCrop(size=_pair(transform.size), scale=tuple(transform.scale), ratio=tuple(transform.ratio))


def _to_float(transform: Any, spec: Spec) -> Spec:
    if spec.converted:
        return spec
    return replace(spec, values=spec.values.then((1 / 255,), (0.0,)), converted="scaled")


def _to_dtype(transform: Any, spec: Spec) -> Spec:
    dtype = transform.dtype
    if isinstance(dtype, dict):
        raise TransformError("a dtype per kind of input is not supported; pass one dtype.")
    if not dtype.is_floating_point:
        if dtype == torch.uint8 and not spec.converted:
            return spec
        raise TransformError(f"{dtype} is not supported; use a floating point dtype.")
    if type(transform).__name__ == "ToDtype" and not transform.scale:
        return replace(spec, converted=spec.converted or "raw")
    return _to_float(transform, spec)


def _normalize(transform: Any, spec: Spec) -> Spec:
    if not spec.converted:
        raise TransformError("there is no ToTensor or ToDtype before it; put one in front of it.")
    mean, std = [float(m) for m in transform.mean], [float(s) for s in transform.std]
    if min(std) <= 0:
        raise TransformError(f"std {std} has a value that is not above 0.")
    return replace(
        spec, values=spec.values.then([1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)])
    )


def _keep(transform: Any, spec: Spec) -> Spec:
    return spec


# torchvision's class name (the same in v1 and v2) -> how its options become an operation or a new Spec.
_KNOWN: dict[str, Callable[[Any, Spec], Spec | GeometricOp]] = {
    "Resize": _resize,
    "CenterCrop": lambda t, s: CenterCrop(size=_pair(t.size), fill=_stored_fill(0, s.values)),
    "RandomCrop": _random_crop,
    "RandomResizedCrop": _random_resized_crop,
    "RandomHorizontalFlip": lambda t, s: RandomHorizontalFlip(p=float(t.p)),
    "ToTensor": _to_float,
    "ToImage": _keep,
    "PILToTensor": _keep,
    "ToDtype": _to_dtype,
    "ConvertImageDtype": _to_dtype,
    "Normalize": _normalize,
}
