"""AutoAugment, RandAugment, TrivialAugmentWide and AugMix: torchvision's tables and draws.

Each slot of a policy is one operation for each image: a warp, or a colour step.

N images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastload.augment.arithmetic import GAMMA_WORDS, Array, Numbers, below, gamma, uniform
from fastload.augment.geometry import may_warp
from fastload.augment.maps import IDENTITY, Geometry, affine_matrix
from fastload.augment.plan import Builder, Code, Mixture, Pass

Space = dict[str, tuple[Any, bool]]

# What becomes of a magnitude: the code of the colour step, and its value.
_COLOURS: dict[str, Code] = {
    "Brightness": Code.BRIGHTNESS, "Color": Code.SATURATION, "Contrast": Code.CONTRAST, "Sharpness": Code.SHARPNESS,
    "Posterize": Code.POSTERIZE, "Solarize": Code.SOLARIZE, "AutoContrast": Code.AUTOCONTRAST,
    "Equalize": Code.EQUALIZE, "Invert": Code.INVERT,
}  # fmt: skip
_WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a policy warps: nearest pixel or bilinear, and the stored value outside the image (None: 0)."""

    nearest: bool = True
    fill: tuple[float, ...] | None = None


def table(space: Space, bins: int, height: int, width: int) -> dict[str, tuple[list[float] | None, bool]]:
    """Return for each operation its magnitudes and whether they have a sign, from torchvision's own table."""
    found = {}
    for name, (magnitudes, signed) in space.items():
        values = magnitudes(bins, height, width)
        found[name] = (None if values is None else [float(v) for v in values], signed)
    return found


def add_slot(builder: Builder, names: Sequence[str], picked: dict[str, Array], magnitude: Array, look: Look) -> None:
    """Add one slot: operation `name` where `picked[name]` holds, with torchvision's magnitude (sign included)."""
    xp = builder.xp
    warps = [n for n in _WARPS if n in names]
    if warps:
        _add_warp(builder, warps, picked, magnitude, look)
    code: Array = 0
    value: Array = 0.0
    kinds = set()
    for name in names:
        if name not in _COLOURS or (name == "Color" and builder.channels == 1):
            continue
        kind = _COLOURS[name]
        # 1 + magnitude is a factor; posterize keeps so many bits; solarize has a threshold.
        meant = magnitude if name == "Solarize" else 1.0 + magnitude
        if name == "Posterize":
            bits = xp.maximum(xp.minimum(magnitude, 8.0), 0.0)
            meant = xp.floor(xp.exp(math.log(2) * xp.floor(bits)) + 0.5)
        code, value = xp.where(picked[name], int(kind), code), xp.where(picked[name], meant, value)
        kinds.add(kind)
    if kinds:
        builder.colour(code, [value], kinds=kinds)


def _add_warp(builder: Builder, warps: list[str], picked: dict[str, Array], magnitude: Array, look: Look) -> None:
    xp, (height, width) = builder.xp, builder.size
    amount: dict[str, Array] = {n: xp.where(picked[n], magnitude, 0.0) if n in warps else 0.0 for n in _WARPS}
    # A shear of `magnitude`, not of an angle; around the corner, as the policies were published.
    matrix = affine_matrix(
        xp, (height, width), angle=amount["Rotate"] * (-math.pi / 180),
        translate=(_toward_zero(xp, amount["TranslateX"]), _toward_zero(xp, amount["TranslateY"])),
    )  # fmt: skip
    sheared: Array = False
    for name in ("ShearX", "ShearY"):
        if name in warps:
            sheared = picked[name] | sheared
    if sheared is not False:
        shear_x, shear_y = amount["ShearX"], amount["ShearY"]
        # affine_matrix of shear atan(m): [1, m, 0, 0, 1, 0] and [1, 0, 0, m, 1, 0], inverted, about (0, 0).
        corner = (1.0, shear_x, 0.0, shear_y, 1.0, 0.0, 0.0, 0.0, 1.0)
        matrix = tuple(xp.where(sheared, a, b) for a, b in zip(corner, matrix, strict=True))
    warped: Array = False
    for name in warps:
        warped = picked[name] | warped
    matrix = tuple(xp.where(warped, a, b) for a, b in zip(matrix, IDENTITY, strict=True))

    builder.move(
        lambda g: g.warp(xp, matrix, nearest=look.nearest, fill=look.fill),
        joins=may_warp,
    )


def _toward_zero(xp: Numbers, x: Array) -> Array:
    """Return Python's int(x), as a number: torchvision moves by whole pixels."""
    return xp.where(x < 0, -1.0 * xp.floor(-1.0 * x), xp.floor(x))


def _pick(xp: Numbers, index: Array, values: Sequence[float]) -> Array:
    """Return values[index]; a chain of choices, for a table that every backend can have."""
    result: Array = values[0]
    for i, value in enumerate(values[1:], start=1):
        if value != values[i - 1]:
            result = xp.where(index >= i, value, result)
    return result


def _add_uniform_slot(
    builder: Builder, space: Space, bins: int, words: Sequence[Array], level: Array | None, look: Look,
    limit: int | None = None,
) -> None:  # fmt: skip
    """Add a slot whose operation is any of the space; `level` indexes its magnitudes, or is drawn below `limit`."""
    xp = builder.xp
    entries = table(space, bins, *builder.size)
    which = below(words[0], len(entries))
    at: Array = below(words[1], limit or bins) if level is None else level
    negative = uniform(xp, words[2]) < 0.5
    magnitude: Array = 0.0
    picked = {}
    for i, (name, (values, signed)) in enumerate(entries.items()):
        picked[name] = which == i
        if values is not None:
            amount = _pick(xp, at, values) if level is None else values[at]
            amount = xp.where(negative, -1.0 * amount, amount) if signed else amount
            magnitude = xp.where(picked[name], amount, magnitude)
    add_slot(builder, [n for n in entries if n != "Identity"], picked, magnitude, look)


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """torchvision's RandAugment: `num_ops` slots, all of one magnitude."""

    space: Space
    num_ops: int = 2
    magnitude: int = 9
    bins: int = 31
    look: Look

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        words = builder.xp.words(number, 3 * self.num_ops) if self.num_ops else []
        for i in range(self.num_ops):
            _add_uniform_slot(builder, self.space, self.bins, words[3 * i :], self.magnitude, self.look)


@dataclass(frozen=True, kw_only=True)
class TrivialAugmentWide:
    """torchvision's TrivialAugmentWide: one slot, any magnitude."""

    space: Space
    bins: int = 31
    look: Look

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        _add_uniform_slot(builder, self.space, self.bins, builder.xp.words(number, 3), None, self.look)


@dataclass(frozen=True, kw_only=True)
class AutoAugment:
    """torchvision's AutoAugment: one of the policy's pairs; each of its two operations has its own probability."""

    space: Space
    pairs: Sequence[tuple[tuple[str, float, int | None], ...]]
    look: Look

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        xp, words = builder.xp, builder.xp.words(number, 5)
        entries = table(self.space, 10, *builder.size)
        which = below(words[0], len(self.pairs))
        for place in range(2):
            u, negative = uniform(xp, words[1 + place]), uniform(xp, words[3 + place]) < 0.5
            picked: dict[str, Array] = {}
            magnitude: Array = 0.0
            for i, pair in enumerate(self.pairs):
                name, probability, level = pair[place]
                here = (which == i) & (u <= probability)
                picked[name] = here | picked[name] if name in picked else here
                values, signed = entries[name]
                if values is not None and level is not None:
                    amount: Array = values[level]
                    amount = xp.where(negative, -1.0 * amount, amount) if signed else amount
                    magnitude = xp.where(here, amount, magnitude)
            add_slot(builder, list(picked), picked, magnitude, self.look)


@dataclass(frozen=True, kw_only=True)
class AugMix:
    """torchvision's AugMix: a weighted sum of the image and of `width` chains of operations."""

    space: Space
    severity: int = 3
    width: int = 3
    depth: int = -1
    alpha: float = 1.0
    look: Look

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        xp = builder.xp
        slots = self.depth if self.depth > 0 else 3
        per_chain = 1 + 3 * slots
        words = xp.words(number, self.width * per_chain + (2 + self.width) * GAMMA_WORDS)
        shares = [gamma(xp, words[i * GAMMA_WORDS :], self.alpha) for i in range(2 + self.width)]
        rest = words[(2 + self.width) * GAMMA_WORDS :]
        own = shares[0] / xp.maximum(shares[0] + shares[1], 1e-300)
        total: Array = 1e-300
        for share in shares[2:]:
            total = total + share
        weights = [own, *((1.0 - own) * share / total for share in shares[2:])]
        if builder.gate is not None:
            weights = [xp.where(builder.gate, w, 1.0 if i == 0 else 0.0) for i, w in enumerate(weights)]
        builder.flush()
        chains = []
        for i in range(self.width):
            mine = rest[i * per_chain : (i + 1) * per_chain]
            chain = Builder(xp=xp, geometry=Geometry.identity(*builder.size), channels=builder.channels)
            deep = below(mine[0], 3) + 1
            for slot in range(slots):
                chain.gate = None if self.depth > 0 or slot == 0 else deep > slot
                _add_uniform_slot(chain, self.space, 10, mine[1 + 3 * slot :], None, self.look, limit=self.severity)
            chains.append(tuple(n for n in chain.finish().nodes if isinstance(n, Pass)))
        builder.nodes.append(Mixture(weights=tuple(weights), chains=tuple(chains)))
