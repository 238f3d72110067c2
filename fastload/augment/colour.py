"""Colour transforms and containers: torchvision's names, parameters and draws.

N images. Values in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastload.augment.arithmetic import Array, below, beta, between, permutation, uniform
from fastload.augment.geometry import try_boxes
from fastload.augment.plan import Builder, Code, Mixing, Noise, Numbered
from fastload.errors import TransformError


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """torchvision's ColorJitter: factors from ranges, in an order that is drawn, too. None: left out."""

    brightness: tuple[float, float] | None = None
    contrast: tuple[float, float] | None = None
    saturation: tuple[float, float] | None = None
    hue: tuple[float, float] | None = None

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        xp, words = builder.xp, builder.xp.words(number, 8)
        ranges = {
            Code.BRIGHTNESS: self.brightness, Code.CONTRAST: self.contrast, Code.SATURATION: self.saturation,
            Code.HUE: self.hue,
        }  # fmt: skip
        used = {code: limits for code, limits in ranges.items() if limits is not None}
        factors = {code: between(xp, words[code - 1], *limits) for code, limits in used.items()}
        group = builder.new_group()
        # The order of those that are left is as random as the order of all four.
        for place in permutation(xp, [words[4 + i] for i in range(len(used))]):
            code: Array = 0
            factor: Array = 1.0
            for there, (kind, value) in zip(place, factors.items(), strict=True):
                code, factor = xp.where(there, int(kind), code), xp.where(there, value, factor)
            builder.colour(code, [factor], kinds=set(used), group=group)


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """One operation with one value, for a share `p` of the images.

    RandomGrayscale, RandomInvert, RandomPosterize (levels), RandomSolarize (threshold, 0..1),
    RandomAutocontrast, RandomEqualize, RandomAdjustSharpness (factor).
    """

    code: Code
    p: float = 0.5
    value: float = 0.0

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        xp = builder.xp
        if self.code == Code.GREY and builder.channels == 1:
            return
        chosen = uniform(xp, xp.words(number, 1)[0]) < self.p
        builder.colour(xp.where(chosen, int(self.code), 0), [self.value], kinds={self.code})


@dataclass(frozen=True, kw_only=True)
class Grayscale:
    """torchvision's Grayscale: of every image, to 1 or 3 channels."""

    channels: int = 1

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        if builder.gate is not None and builder.channels != self.channels:
            raise TransformError("it would change the channels of some images only; use num_output_channels=3.")
        if builder.channels == 3:
            builder.colour(int(Code.GREY), [0.0], kinds={Code.GREY})
        elif builder.channels != 1:
            raise TransformError(f"it is for grey or RGB images, not {builder.channels} channels.")
        if builder.channels != self.channels:
            builder.set_channels(self.channels)


@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """torchvision's GaussianBlur; kernel_size is (horizontal, vertical), odd pixels; sigma a range of pixels."""

    kernel_size: tuple[int, int]
    sigma: tuple[float, float] = (0.1, 2.0)

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        radius = (self.kernel_size[1] // 2, self.kernel_size[0] // 2)
        if radius[0] >= builder.size[0] or radius[1] >= builder.size[1]:
            raise TransformError(
                f"kernel_size {list(self.kernel_size)} is too large to mirror images of {builder.size[0]} x "
                f"{builder.size[1]} pixels at their edges; use a smaller one."
            )
        sigma = between(builder.xp, builder.xp.words(number, 1)[0], *self.sigma)
        builder.colour(int(Code.BLUR), [sigma], kinds={Code.BLUR}, radius=radius)


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """torchvision's RandomErasing.

    Attributes:
        p, scale, ratio: how often; share of the area; height / width.
        fill: what is written, in 0..1 units, one value or one per channel.
        noise: (scale, offset) of normal noise instead.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: tuple[float, ...] = (0.0,)
    noise: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        xp, words = builder.xp, builder.xp.words(number, 23)
        height, width = builder.size
        if self.noise is None and len(self.fill) not in (1, builder.channels):
            raise TransformError(f"its value has {len(self.fill)} channels, the images have {builder.channels}.")
        found, h, w = try_boxes(xp, words, height, width, self.scale, self.ratio, erasing=True)
        top, left = below(words[20], height - h + 1), below(words[21], width - w + 1)
        code = xp.where(found & (uniform(xp, words[22]) < self.p), int(Code.ERASE), 0)
        box = [xp.number(edge) for edge in (top, left, top + h, left + w)]
        noise = Noise(number=number, scale=self.noise[0], offset=self.noise[1]) if self.noise else None
        builder.colour(code, box, kinds={Code.ERASE}, fill=self.fill, noise=noise)


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """A square of `size` pixels around a pixel drawn from all, cut off at the edges (DeVries and Taylor, 2017)."""

    size: tuple[int, int]
    p: float = 1.0
    fill: tuple[float, ...] = (0.0,)

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        xp, words = builder.xp, builder.xp.words(number, 3)
        edges = []
        for word, side, size in zip(words, builder.size, self.size, strict=False):
            first = below(word, side) - size // 2
            edges += [xp.maximum(first, 0), xp.minimum(first + size, side)]
        code = xp.where(uniform(xp, words[2]) < self.p, int(Code.ERASE), 0)
        if len(self.fill) not in (1, builder.channels):
            raise TransformError(f"its value has {len(self.fill)} channels, the images have {builder.channels}.")
        box = [xp.number(edges[i]) for i in (0, 2, 1, 3)]
        builder.colour(code, box, kinds={Code.ERASE}, fill=self.fill)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """torchvision's MixUp (`cut` False) and CutMix.

    Attributes:
        alpha: of the Beta distribution of the share.
        classes: columns of the labels.
        per_sample: a draw for each image instead of one for the batch, which is that of its first sample.
    """

    cut: bool
    alpha: float = 1.0
    classes: int | None = None
    per_sample: bool = False

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        xp = builder.xp
        words = xp.words(number, 52, per_batch=not self.per_sample)
        share = beta(xp, words[:50], self.alpha)
        height, width = builder.size
        box: tuple[Array, Array, Array, Array] = (0.0, 0.0, 0.0, 0.0)
        if self.cut:
            r = 0.5 * xp.sqrt(xp.maximum(1.0 - share, 0.0))
            edges: list[Array] = []
            for word, side in ((words[51], height), (words[50], width)):
                half, middle = xp.floor(r * side), xp.number(below(word, side))
                edges += [xp.maximum(middle - half, 0.0), xp.minimum(middle + half, float(side))]
            box = (edges[0], edges[2], edges[1], edges[3])
            share = 1.0 - (box[2] - box[0]) * (box[3] - box[1]) * (1 / (height * width))
        cut: Array = self.cut
        if builder.gate is not None:
            share, cut = xp.where(builder.gate, share, 1.0), xp.where(builder.gate, cut, False)
        builder.flush()
        builder.mixing.append(
            Mixing(cut=cut, share=share, box=box, classes=self.classes, cuts=self.cut, blends=not self.cut)
        )


@dataclass(frozen=True, kw_only=True)
class RandomApply:
    """torchvision's RandomApply: all of `ops`, for a share `p` of the images.

    Around MixUp and CutMix the choice is the batch's, as theirs are.
    """

    ops: tuple[Numbered, ...]
    p: float = 0.5

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        per_batch = any(mixes(op, per_batch=True) for _, op in self.ops)
        chosen = uniform(builder.xp, builder.xp.words(number, 1, per_batch=per_batch)[0]) < self.p
        builder.select([chosen], [self.ops])


@dataclass(frozen=True, kw_only=True)
class RandomChoice:
    """torchvision's RandomChoice: one of `branches`, with probabilities `p` that sum to 1.

    Between MixUp and CutMix the choice is the batch's, as theirs are.
    """

    branches: tuple[tuple[Numbered, ...], ...]
    p: tuple[float, ...]

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        xp = builder.xp
        per_batch = mixes(self, per_batch=True)
        u = uniform(xp, xp.words(number, 1, per_batch=per_batch)[0])
        conditions, reached = [], 0.0
        for i, p in enumerate(self.p):
            last = i + 1 == len(self.p)  # rounding must not leave a gap above the last one
            conditions.append((u >= reached) & (True if last else u < reached + p))
            reached += p
        builder.select(conditions, self.branches, exhaustive=True)


@dataclass(frozen=True, kw_only=True)
class RandomOrder:
    """torchvision's RandomOrder: all of `branches`, one after the other, in an order that is drawn."""

    branches: tuple[tuple[Numbered, ...], ...]

    def add(self, builder: Builder, number: int) -> None:
        """See Op."""
        for place in permutation(builder.xp, builder.xp.words(number, len(self.branches))):
            builder.select(place, self.branches, exhaustive=True)


def mixes(op: object, *, per_batch: bool = False) -> bool:
    """Whether a transform is MixUp or CutMix or holds one; with `per_batch`, one with one draw for the batch."""
    if isinstance(op, Mix):
        return not (per_batch and op.per_sample)
    branches = (op.ops,) if isinstance(op, RandomApply) else getattr(op, "branches", ())
    return any(mixes(inner, per_batch=per_batch) for branch in branches for _, inner in branch)
