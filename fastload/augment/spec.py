"""A torchvision pipeline -> stages, and the draws: what is to be done, apart from doing it.

N images; H, W stored pixels; C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fastload.augment import philox
from fastload.augment.geometry import (
    AxisMap,
    CenterCrop,
    GeometricOp,
    Ints,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from fastload.errors import TransformError, printable


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
