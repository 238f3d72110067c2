"""Geometry as maps: where each output pixel lies in the stored image, per image.

A chain of crops, resizes and mirrors composes into one map per axis; one warp (rotation, affine, perspective)
may stand behind it, and crops, resizes and mirrors behind that. All of it is one resampling:

    output pixel --matrix--> canvas --axis maps--> stored pixels

N images. Coordinates are in pixels, with 0 at the outer edge of the first one: its centre lies at 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastload.augment.arithmetic import Array, Numbers
from fastload.errors import TransformError

Matrix = tuple[Array, Array, Array, Array, Array, Array, Array, Array, Array]
IDENTITY: Matrix = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class AxisMap:
    """Where each canvas pixel of one axis lies in the stored image: pixel i covers [start + i * step, + step).

    Attributes:
        start: stored coordinate of the first canvas pixel's outer edge, [N].
        step: stored pixels per canvas pixel, [N]; negative where mirrored.
        low, high: stored coordinates that resampling may read, [N]: a crop before a resize must not
            let its surroundings bleed in. Outside the stored image they mean padding.
        fold_low, fold_high: stored coordinates at which the image is mirrored or held, [N], where it folds.
        size: canvas pixels.
        most: the largest |step| that may occur.
    """

    start: Array
    step: Array
    low: Array
    high: Array
    fold_low: Array = 0.0
    fold_high: Array = 0.0
    size: int
    most: float = 1.0

    @staticmethod
    def identity(size: int) -> AxisMap:
        """Return the map that copies `size` pixels."""
        return AxisMap(start=0.0, step=1.0, low=0.0, high=float(size), size=size)

    def crop(self, offset: Array, size: int) -> AxisMap:
        """Keep `size` pixels from `offset` on; a negative offset, or a size beyond the end, pads."""
        return replace(self, start=self.start + offset * self.step, size=size)

    def bounds(self, xp: Numbers) -> tuple[Array, Array]:
        """Return the stored coordinates between which the canvas lies."""
        end = self.start + self.size * self.step
        return xp.minimum(self.start, end), xp.maximum(self.start, end)

    def resize(self, xp: Numbers, offset: Array, extent: Array, size: int) -> AxisMap:
        """Bring `extent` pixels from `offset` on to `size` pixels."""
        start = self.start + offset * self.step
        end = start + extent * self.step
        low, high = xp.minimum(start, end), xp.maximum(start, end)
        step, most = self.step * (extent * (1 / size)), self.most * (self.size / size)
        return replace(self, start=start, step=step, low=low, high=high, size=size, most=most)

    def flip(self, xp: Numbers, flipped: Array) -> AxisMap:
        """Mirror the images where `flipped`."""
        end = self.start + self.size * self.step
        return replace(
            self, start=xp.where(flipped, end, self.start), step=xp.where(flipped, -1.0 * self.step, self.step)
        )


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One resampling: from an image of one size to one of another.

    Attributes:
        y, x: canvas -> stored.
        out: output pixels, (S, T); those of the canvas where there is no warp.
        resized, cropped: whether the axis maps resample, or leave out a part of the image.
        padded: whether there is constant padding; `fill` is its stored value.
        hidden: whether padding lies over pixels that were cropped away.
        fold: edge, reflect or symmetric, where the image goes on beyond its edges.
        matrix: output -> canvas, homogeneous; None without a warp.
        warp_fill: stored value outside the canvas; None leaves 0, without torchvision's second blend.
        nearest: take the nearest pixel, as torchvision's warps do unless told otherwise.
        supersample: K; the mean of K x K places within each output pixel.
    """

    y: AxisMap
    x: AxisMap
    out: tuple[int, int]
    resized: bool = False
    cropped: bool = False
    padded: bool = False
    fill: tuple[float, ...] = (0.0,)
    hidden: bool = False
    fold: str = ""
    matrix: Matrix | None = None
    warp_fill: tuple[float, ...] | None = None
    nearest: bool = False
    supersample: int = 1

    @staticmethod
    def identity(height: int, width: int) -> Geometry:
        """Return the geometry that copies every image."""
        return Geometry(y=AxisMap.identity(height), x=AxisMap.identity(width), out=(height, width))

    @property
    def copies(self) -> bool:
        """Whether every output pixel is one whole stored pixel or padding, so that nothing is resampled."""
        return not self.resized and self.matrix is None

    def crop(self, top: Array, left: Array, height: int, width: int) -> Geometry:
        """Keep `height` x `width` pixels from (top, left) on."""
        if self.matrix is not None:
            return replace(self, out=(height, width), matrix=_behind(self.matrix, 1.0, top, 1.0, left))
        y, x = self.y.crop(top, height), self.x.crop(left, width)
        return replace(self, y=y, x=x, out=(height, width), cropped=True)

    def resize(
        self, xp: Numbers, box: tuple[Array, Array, Array, Array], height: int, width: int
    ) -> Geometry:  # fmt: skip
        """Bring the box (top, left, height, width) to `height` x `width` pixels."""
        top, left, box_height, box_width = box
        if self.matrix is not None:
            shrinks = max(self.out[0] / height, self.out[1] / width)
            matrix = _behind(self.matrix, box_height * (1 / height), top, box_width * (1 / width), left)
            # Behind a warp the exact filter has no simple form: the mean of K x K places stands for it.
            times = self.supersample * min(4, max(1, math.ceil(shrinks - 0.25)))
            # Not the nearest pixel, even if the warp asks for it: the resize is what is sampled for now.
            return replace(self, out=(height, width), matrix=matrix, supersample=times, nearest=False)
        y, x = self.y.resize(xp, top, box_height, height), self.x.resize(xp, left, box_width, width)
        return replace(self, y=y, x=x, out=(height, width), resized=True, cropped=True)

    def flip(self, xp: Numbers, vertical: Array, horizontal: Array) -> Geometry:
        """Mirror the images where the conditions hold."""
        if self.matrix is None:
            return replace(self, y=self.y.flip(xp, vertical), x=self.x.flip(xp, horizontal))
        height, width = (float(n) for n in self.out)
        sign_y, sign_x = xp.where(vertical, -1.0, 1.0), xp.where(horizontal, -1.0, 1.0)
        from_y, from_x = xp.where(vertical, height, 0.0), xp.where(horizontal, width, 0.0)
        return replace(self, matrix=_behind(self.matrix, sign_y, from_y, sign_x, from_x))

    def pad(self, xp: Numbers, sides: tuple[int, int, int, int], mode: str, fill: tuple[float, ...]) -> Geometry:
        """Pad by (left, top, right, bottom) pixels.

        Raises:
            TransformError: mirrored padding wider than the image.
        """
        left, top, right, bottom = sides
        height, width = self.out
        if mode in ("reflect", "symmetric"):
            room = 1 if mode == "reflect" else 0
            if max(top, bottom) > height - room or max(left, right) > width - room:
                raise TransformError(
                    f"padding {list(sides)} is more than images of {height} x {width} pixels have to mirror; pad less."
                )
        hidden = self.hidden or (mode == "constant" and self.cropped)
        axes = []
        for axis, before, after in ((self.y, top, bottom), (self.x, left, right)):
            low, high = axis.bounds(xp)
            if mode == "constant":
                axis = replace(axis, low=xp.maximum(axis.low, low), high=xp.minimum(axis.high, high))
            else:
                # Pixel centres are mirrored at, or held at, the outermost ones; symmetric mirrors at the edge.
                half = 0.0 if mode == "symmetric" else 0.5 * (high - low) * (1 / axis.size)
                axis = replace(axis, fold_low=low + half, fold_high=high - half)
            axes.append(axis.crop(-float(before), axis.size + before + after))
        constant = mode == "constant"
        return replace(
            self, y=axes[0], x=axes[1], out=(axes[0].size, axes[1].size), hidden=hidden,
            padded=self.padded or constant, fill=fill if constant else self.fill,
            fold=self.fold if constant else mode,
        )  # fmt: skip

    def warp(self, xp: Numbers, matrix: Matrix, *, nearest: bool, fill: tuple[float, ...] | None) -> Geometry:
        """Move all pixels by one map of output to canvas coordinates."""
        whole = self._with_window(xp)
        return replace(whole, matrix=matrix, warp_fill=fill, nearest=nearest and not self.resized)

    def _with_window(self, xp: Numbers) -> Geometry:
        """Return it with all of the canvas readable, padding included, and nothing else."""
        axes = []
        for axis in (self.y, self.x):
            low, high = axis.bounds(xp)
            axes.append(replace(axis, low=low, high=high))
        return replace(self, y=axes[0], x=axes[1])


def choose(xp: Numbers, condition: Array, yes: Geometry, no: Geometry) -> Geometry:
    """Return `yes` for the images where the condition holds, `no` for the others.

    Raises:
        TransformError: the two give images of different sizes, or pad in ways that one pass cannot do.
    """
    if yes.out != no.out:
        raise TransformError(
            f"it gives some images {yes.out[0]} x {yes.out[1]} pixels and others {no.out[0]} x {no.out[1]}; "
            "add a Resize, so that all have one size."
        )
    both = yes.matrix is not None and no.matrix is not None
    nearest = (yes.nearest or yes.matrix is None) and (no.nearest or no.matrix is None)
    if (yes.padded and no.padded and yes.fill != no.fill) or (both and yes.warp_fill != no.warp_fill):
        raise TransformError("its branches fill with different values; use one fill.")
    if yes.fold != no.fold:
        if (yes.fold and no.fold) or yes.padded or no.padded:
            raise TransformError("its branches pad in different modes; use one padding_mode.")
        yes, no = (g if g.fold else g.pad(xp, (0, 0, 0, 0), yes.fold or no.fold, (0.0,)) for g in (yes, no))
    matrix = None
    if yes.matrix is not None or no.matrix is not None:
        yes, no = (_with_matrix(xp, g, yes if g is no else no) for g in (yes, no))
        pairs = zip(yes.matrix or IDENTITY, no.matrix or IDENTITY, strict=True)
        matrix = tuple(xp.where(condition, a, b) for a, b in pairs)
    padded, filled = (yes if yes.padded else no), (yes if yes.warp_fill is not None else no)
    axes = []
    for a, b in ((yes.y, no.y), (yes.x, no.x)):
        names = ("start", "step", "low", "high", "fold_low", "fold_high")
        chosen = {n: xp.where(condition, getattr(a, n), getattr(b, n)) for n in names}
        axes.append(AxisMap(**chosen, size=a.size, most=max(a.most, b.most)))
    return Geometry(
        y=axes[0], x=axes[1], out=yes.out, resized=yes.resized or no.resized, cropped=yes.cropped or no.cropped,
        padded=padded.padded, fill=padded.fill, hidden=yes.hidden or no.hidden, fold=yes.fold, matrix=matrix,
        warp_fill=filled.warp_fill, nearest=nearest and not (yes.resized or no.resized),
        supersample=max(yes.supersample, no.supersample),
    )  # fmt: skip


def _with_matrix(xp: Numbers, geometry: Geometry, other: Geometry) -> Geometry:
    """Return the geometry with the identity as its warp, where only the other branch has one."""
    if geometry.matrix is not None:
        return geometry
    if (geometry.y.size, geometry.x.size) != (other.y.size, other.x.size):
        raise TransformError("one branch warps and changes the size; put the change of size in front of it.")
    return replace(geometry._with_window(xp), matrix=IDENTITY)


def _behind(matrix: Matrix, step_y: Array, offset_y: Array, step_x: Array, offset_x: Array) -> Matrix:
    """Return the matrix with one more axis-aligned map in front of it: p -> p * step + offset."""
    rows = []
    for a, b, c in (matrix[0:3], matrix[3:6], matrix[6:9]):
        rows += [a * step_x, b * step_y, a * offset_x + b * offset_y + c]
    return tuple(rows)


def affine_matrix(
    xp: Numbers, size: tuple[int, int], *, angle: Array = 0.0, translate: tuple[Array, Array] = (0.0, 0.0),
    scale: Array = 1.0, shear: tuple[Array, Array] = (0.0, 0.0), center: tuple[Array, Array] = (0.0, 0.0),
) -> Matrix:  # fmt: skip
    """Return the map from output to input of torchvision's affine.

    Args:
        xp: the backend.
        size: (height, width) of the canvas.
        angle, shear: radians, clockwise as in torchvision.
        translate: (x, y), pixels.
        scale: enlargement.
        center: (x, y), pixels from the middle of the image.

    Source: torchvision.transforms.v2.functional._geometry._get_inverse_affine_matrix.
    """
    cos_shear = xp.cos(shear[1])
    tan_shear = xp.sin(shear[0]) / xp.cos(shear[0])
    a = xp.cos(angle - shear[1]) / cos_shear
    b = -1.0 * (a * tan_shear + xp.sin(angle))
    c = xp.sin(angle - shear[1]) / cos_shear
    d = xp.cos(angle) - c * tan_shear
    m0, m1, m3, m4 = d / scale, -1.0 * b / scale, -1.0 * c / scale, a / scale
    to_x, to_y = center[0] + translate[0], center[1] + translate[1]
    m2 = center[0] - m0 * to_x - m1 * to_y
    m5 = center[1] - m3 * to_x - m4 * to_y
    # torchvision's coordinates have their origin in the middle of the image, ours at its corner.
    half_y, half_x = size[0] / 2, size[1] / 2
    return (
        m0, m1, m2 + half_x - m0 * half_x - m1 * half_y,
        m3, m4, m5 + half_y - m3 * half_x - m4 * half_y,
        0.0, 0.0, 1.0,
    )  # fmt: skip


def perspective_matrix(corners: list[tuple[Array, Array]], height: int, width: int) -> Matrix:
    """Return the map that takes the quadrilateral `corners` back to the image's corner pixels.

    Solved in closed form (Heckbert, "Fundamentals of Texture Mapping and Image Warping", 1989, 2.2.3):
    unit square -> quadrilateral, inverted by its adjugate, scaled to (width - 1, height - 1). The same
    eight numbers as torchvision's _get_perspective_coeffs.

    Args:
        corners: (x, y) in pixels: top left, top right, bottom right, bottom left.
        height, width: of the image.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    dx1, dy1, dx2, dy2 = x1 - x2, y1 - y2, x3 - x2, y3 - y2
    sx, sy = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    det = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / det, (dx1 * sy - sx * dy1) / det
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    u, v = float(width - 1), float(height - 1)
    rows = (
        (e - f * h) * u, (c * h - b) * u, (b * f - c * e) * u,
        (f * g - d) * v, (a - c * g) * v, (c * d - a * f) * v,
        d * h - e * g, b * g - a * h, a * e - b * d,
    )  # fmt: skip
    return tuple(row / rows[8] for row in rows)
