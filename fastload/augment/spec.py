"""A torchvision pipeline -> what is to be done, apart from doing it.

N images; H, W stored pixels; C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastload.augment import own
from fastload.augment.arithmetic import Numbers
from fastload.augment.maps import Geometry
from fastload.augment.plan import Builder, Numbered, Op, Plan, add_all
from fastload.errors import TransformError, printable


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
class PerSample:
    """A transform that fastload does not know: run image by image, by itself.

    Attributes:
        number: its place in the pipeline.
        transform: called with one image.
        sees: `PIL`, `uint8` or `float32` (0..1) images, as in its pipeline.
    """

    number: int
    transform: Callable[[Any], Any]
    sees: str


@dataclass(frozen=True)
class Spec:
    """A pipeline: segments of known transforms with unknown ones between them, then one scale and offset.

    Attributes:
        parts: (number in the pipeline, operation), or a PerSample.
        values: from stored 0..255 to the output.
        converted: how the pipeline itself made numbers of pixels: `scaled` to 0..1, `raw`, or not at all.
    """

    parts: tuple[Numbered | PerSample, ...] = ()
    values: Values = field(default_factory=Values)
    converted: str = ""

    def segments(self) -> Iterator[list[Numbered] | PerSample]:
        """Yield runs of known transforms, and the unknown ones between them."""
        run: list[Numbered] = []
        for part in self.parts:
            if isinstance(part, PerSample):
                yield run
                yield part
                run = []
            else:
                run.append(part)
        yield run


def plan(ops: Sequence[Numbered], xp: Numbers, height: int, width: int, channels: int) -> Plan:
    """Return what known transforms do to images of `height` x `width` x `channels`; `xp` makes the draws.

    Raises:
        TransformError: they do not fit images of that size.
    """
    builder = Builder(xp=xp, geometry=Geometry.identity(height, width), channels=channels)
    add_all(builder, ops)
    return builder.finish()


class Parser:
    """Reads a pipeline front to back; `spec` is what it has come to."""

    def __init__(self, *, per_sample: bool) -> None:
        self.spec = Spec()
        self._per_sample = per_sample
        self._next = 0
        self.mean: tuple[float, ...] | None = None
        self.becomes_tensor = False

    def read(self, transforms: Any) -> list[Numbered | PerSample]:
        """Return the transforms as numbered operations; conversions change `spec.values` on the way."""
        found: list[Numbered | PerSample] = []
        for transform in flatten(transforms):
            number, name = self._next, type(transform).__name__
            self._next += 1
            known = _reader(transform)
            before = self.spec
            try:
                if known is None:
                    raise UnknownTransformError(f"is not one that fastload knows; it knows {', '.join(known_names())}.")
                op = known(transform, self)
            except TransformError as e:
                if not self._per_sample or (known is not None and not isinstance(e, UnknownTransformError)):
                    if str(e).startswith("transform "):
                        raise
                    said = str(e) if isinstance(e, UnknownTransformError) else f": {e}"
                    joint = " " if isinstance(e, UnknownTransformError) else ""
                    raise type(e)(f"transform {number} ({printable(name)}){joint}{said}") from None
                self.spec, self._next = before, number + 1
                found.append(PerSample(number, transform, self._sees(number)))
                continue
            if op is not None:
                found.append((number, op))
        return found

    def branch(self, transforms: Any) -> tuple[Numbered, ...]:
        """Return one branch of a container.

        Raises:
            TransformError: a conversion or Normalize in it.
        """
        before, inner = self.spec, Parser(per_sample=False)
        inner.spec, inner._next, inner.mean = self.spec, self._next, self.mean
        # An unknown transform in a container: the container as a whole is then unknown.
        found = inner.read(transforms)
        if inner.spec != before:
            raise TransformError("conversions and Normalize hold for every image; take them out of it.")
        self._next = inner._next
        return tuple(part for part in found if not isinstance(part, PerSample))

    def _sees(self, number: int) -> str:
        if self.spec.converted == "scaled" and self.spec.values == Values().then((1 / 255,), (0.0,)):
            return "float32"
        if self.spec.converted:
            raise TransformError(
                f"transform {number} is run per sample, and stands behind Normalize or an unscaled conversion; "
                "put it in front."
            )
        return "PIL" if self.becomes_tensor else "uint8"


class UnknownTransformError(TransformError):
    """A transform, or an option of one, that fastload does not know."""


def parse(transforms: Any, *, on_unknown: str = "error") -> Spec:
    """Turn a torchvision v1 or v2 `Compose` (or Sequential, list, single transform) into a Spec.

    Args:
        transforms: the pipeline, or None.
        on_unknown: `error`, or `per_sample` to run what is not known image by image.

    Raises:
        TransformError: a transform or one of its options is not known; names it and its position.
    """
    if on_unknown not in ("error", "per_sample"):
        raise TransformError(f"on_unknown={on_unknown!r} is not known; use error or per_sample.")
    flat = list(flatten(transforms))
    parser = Parser(per_sample=on_unknown == "per_sample")
    means = [t.mean for t in flat if type(t).__name__ == "Normalize"]
    parser.mean = numbers_of(means[0]) if means else None
    names = [type(t).__name__ for t in flat]
    converters = ("ToTensor", "PILToTensor", "ToImage")
    parser.becomes_tensor = any(name in converters for name in names)
    parts: list[Numbered | PerSample] = []
    for transform, name in zip(flat, names, strict=True):
        parts += parser.read([transform])
        if name in converters:
            parser.becomes_tensor = False
    return replace(parser.spec, parts=tuple(parts))


def numbers_of(value: Any) -> tuple[float, ...]:
    """Return what torchvision takes as one number or several."""
    return tuple(torch.as_tensor(value, dtype=torch.float64, device="cpu").reshape(-1).tolist())


def flatten(transforms: Any) -> Iterable[Any]:
    """Yield the transforms of nested Composes, Sequentials and lists."""
    if transforms is None:
        return
    if isinstance(transforms, list | tuple | torch.nn.Sequential | torch.nn.ModuleList):
        for inner in transforms:
            yield from flatten(inner)
    elif type(transforms).__name__ == "Compose" and hasattr(transforms, "transforms"):
        yield from flatten(transforms.transforms)
    else:
        yield transforms


def _reader(transform: Any) -> Callable[[Any, Parser], Op | None] | None:
    from fastload.augment.readers import KNOWN

    kind = type(transform)
    if not (kind.__module__.startswith("torchvision.") or kind.__module__ == own.__name__):
        return None
    return KNOWN.get(kind.__name__)


def known_names() -> list[str]:
    """Return the names of all transforms that are known."""
    from fastload.augment.readers import KNOWN

    return sorted(KNOWN)
