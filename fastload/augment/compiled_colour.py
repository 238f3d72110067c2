"""Warps and colour steps of one image on the CPU, compiled by Numba: the very bytes that torch gives in painting.py.

Torch takes a pass over the image, and memory for it, for each of the dozens of operations in a colour step. Here a
step is one loop that stays in registers. Every operation is rounded as torch rounds it, in torch's order, so that
neither way can be told from the other; source of the formulas: pointwise.py, sampling.py.

Shape letters: H W stored pixels, S T output, C channels, P = S * T pixels, K steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fastload.augment.compiling import compile_all
from fastload.augment.painting import CROPPED, WARP, WARPED
from fastload.augment.pointwise import GREY_SCALE, GREY_WEIGHTS, SAME

F32 = np.float32  # said of each constant: Numba's own are float64, and so would be what they are added to
ZERO, ONE, TWO, THREE, FOUR, SIX = F32(0), F32(1), F32(2), F32(3), F32(4), F32(6)
SIXTH, LEVEL, LEVELS = F32(1 / 6), F32(1 / 255), F32(256 - 1e-3)
WEIGHT_R, WEIGHT_G, WEIGHT_B = (F32(w) for w in GREY_WEIGHTS)
FIXED = F32(GREY_SCALE)
SIDE, MIDDLE = F32(1 / 13), F32(5 / 13)
TINY, APART = F32(1e-12), F32(SAME)
# No "contract": torch rounds products before it adds them, where they are operations of their own.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@njit(inline="always")
def _clamp(x: Any) -> Any:
    return min(max(x, ZERO), ONE)


@njit(inline="always")
def _grey(r: Any, g: Any, b: Any) -> Any:
    return r * WEIGHT_R + g * WEIGHT_G + b * WEIGHT_B


@njit(**OPTIONS)
def _mean_grey(x: Any) -> Any:
    """See pointwise.mean_grey."""
    total = np.int64(0)
    if len(x) == 1:
        for i in range(x.shape[1]):
            total += np.int64(x[0, i] * FIXED)
    else:
        r, g, b = x[0], x[1], x[2]
        for i in range(x.shape[1]):
            total += np.int64(_grey(r[i], g[i], b[i]) * FIXED)
    return F32(np.float64(total) * (1 / (GREY_SCALE * x.shape[1])))


@njit(**OPTIONS)
def _saturate(x: Any, factor: Any) -> None:
    r, g, b = x[0], x[1], x[2]
    rest = ONE - factor
    for i in range(x.shape[1]):
        other = _grey(r[i], g[i], b[i]) * rest
        r[i], g[i], b[i] = (
            _clamp(r[i] * factor + other), _clamp(g[i] * factor + other), _clamp(b[i] * factor + other)
        )  # fmt: skip


@njit(inline="always")
def _share(h: Any, middle: Any, sign: Any, offset: Any, low: Any, span: Any) -> Any:
    return _clamp(_clamp(abs(h - middle) * sign + offset) * span + low)


@njit(**OPTIONS)
def _hue(x: Any, turn: Any) -> None:
    red, green, blue = x[0], x[1], x[2]
    turned = SIX * turn
    for i in range(x.shape[1]):
        r, g, b = red[i], green[i], blue[i]
        high, low = max(max(r, g), b), min(min(r, g), b)
        span = high - low
        over = ONE / max(span, TINY)
        first, second, third = (g - b) * over, (b - r) * over + TWO, (r - g) * over + FOUR
        h = (first if high == r else (second if high == g else third)) + turned
        h -= np.floor(h * SIXTH) * SIX
        red[i] = _share(h, THREE, ONE, -ONE, low, span)
        green[i] = _share(h, TWO, -ONE, TWO, low, span)
        blue[i] = _share(h, FOUR, -ONE, TWO, low, span)


@njit(**OPTIONS)
def _stretch(x: Any) -> None:
    for c in range(len(x)):
        plane = x[c]
        low, high = plane[0], plane[0]
        for i in range(len(plane)):
            low, high = min(low, plane[i]), max(high, plane[i])
        if high - low < APART:
            low, high = ZERO, ONE
        for i in range(len(plane)):
            plane[i] = _clamp((plane[i] - low) / (high - low))


@njit(**OPTIONS)
def _equalize(x: Any) -> None:
    """See pointwise.equalizing_table."""
    histogram, table = np.empty(256, np.int64), np.empty(256, np.float32)
    for c in range(len(x)):
        plane = x[c]
        histogram[:] = 0
        for i in range(len(plane)):
            histogram[min(max(int(plane[i] * LEVELS), 0), 255)] += 1
        last = 255
        while histogram[last] == 0:
            last -= 1
        step = (len(plane) - histogram[last]) // 255
        before = 0
        for level in range(256):
            value = min(max((before + step // 2) // max(step, 1), 0), 255) if step > 0 else level
            table[level] = F32(value) / F32(255)
            before += histogram[level]
        for i in range(len(plane)):
            plane[i] = table[min(max(int(plane[i] * LEVELS), 0), 255)]


@njit(**OPTIONS)
def _sharpen(x: Any, factor: Any, height: Any, width: Any, above: Any, here: Any) -> None:
    """See pointwise.sharpness; `above` and `here`, float32 [T], keep rows as they were."""
    rest = ONE - factor
    for c in range(len(x)):
        rows = x[c].reshape(height, width)
        if height > 2 and width > 2:
            above[:] = rows[0]
            for s in range(1, height - 1):
                row, below = rows[s], rows[s + 1]
                here[:] = row
                for t in range(1, width - 1):
                    around = above[t - 1] + above[t] + above[t + 1] + here[t - 1] + here[t + 1]
                    around = around + below[t - 1] + below[t] + below[t + 1]
                    mean = around * SIDE + here[t] * MIDDLE
                    row[t] = here[t] + (mean - here[t]) * rest
                above, here = here, above
            for i in range(len(x[c])):
                x[c, i] = _clamp(x[c, i])


@njit(**OPTIONS)
def _each(plane: Any, code: Any, value: Any, other: Any) -> None:
    """Take a step that knows one number alone; the codes are plan.Code's."""
    if code == 1:
        for i in range(len(plane)):
            plane[i] = _clamp(plane[i] * value)
    elif code == 2:
        for i in range(len(plane)):
            plane[i] = _clamp(plane[i] * value + other)
    elif code == 6:
        for i in range(len(plane)):
            plane[i] = ONE - plane[i]
    elif code == 7:
        most, over = value - ONE, ONE / value
        for i in range(len(plane)):
            plane[i] = min(max(np.floor(plane[i] * value), ZERO), most) * over
    elif code == 8:
        least = value - APART
        for i in range(len(plane)):
            plane[i] = ONE - plane[i] if plane[i] >= least else plane[i]


@njit(**OPTIONS)
def _take(x: Any, code: Any, values: Any, fill: Any, height: Any, width: Any, spare: Any) -> None:
    value = values[0]
    if code == 2:
        other = _mean_grey(x) * (ONE - value)
        for c in range(len(x)):
            _each(x[c], code, value, other)
    elif code == 3 and len(x) == 3:
        _saturate(x, value)
    elif code == 4 and len(x) == 3:
        _hue(x, value)
    elif code == 5 and len(x) == 3:
        for i in range(x.shape[1]):
            x[0, i] = _grey(x[0, i], x[1, i], x[2, i])
        x[1], x[2] = x[0], x[0]
    elif code == 9:
        _stretch(x)
    elif code == 10:
        _equalize(x)
    elif code == 11:
        _sharpen(x, value, height, width, spare[:width], spare[width:])
    elif code == 13:
        top, left, bottom, right = values
        for c in range(len(x)):
            x[c].reshape(height, width)[int(top) : int(bottom), int(left) : int(right)] = fill[c]
    else:
        for c in range(len(x)):
            _each(x[c], code, value, ZERO)


@njit(**OPTIONS)
def _load(pixels: Any, scale: Any, x: Any) -> None:
    """Bring uint8 pixels, channels last, into planes x, float32 [C, pixels]."""
    channels = len(x)
    for c in range(channels):
        plane = x[c]
        for i in range(len(plane)):
            plane[i] = F32(pixels[i * channels + c]) * scale


@njit(**OPTIONS)
def _write(x: Any, scale: Any, offset: Any, first: Any, plane_step: Any, step: Any, stored: Any, scaled: Any) -> None:
    for c in range(len(x)):
        plane, at = x[c], first + c * plane_step
        if len(stored):
            for i in range(len(plane)):
                stored[at + i * step] = np.uint8(min(max(np.rint(plane[i] * F32(255)), ZERO), F32(255)))
        else:
            factor, add = scale[c], offset[c]
            for i in range(len(plane)):
                scaled[at + i * step] = plane[i] * factor + add


# The columns of a warp's numbers behind its matrix: of each axis, where the window starts, its step, its size on the
# canvas, and the window's low and high edge.
Y, X = 9, 14
# What holds for every image of a pass: in the columns of its flags.
NEAREST, PADDED, BLENDED, PARTS = range(4)


@njit(**OPTIONS)
def _nearest(image: Any, p: Any, padded: Any, fill: Any, outside: Any, out: Any) -> None:
    """See sampling.warped; in float64, as there."""
    channels, rows, columns = image.shape
    height, width = out.shape[1:]
    for s in range(height):
        v = s + 0.5
        for t in range(width):
            u = t + 0.5
            depth = p[6] * u + p[7] * v + p[8]
            x, y = (p[0] * u + p[1] * v + p[2]) / depth, (p[3] * u + p[4] * v + p[5]) / depth
            if not (0 < y < p[Y + 2] and 0 < x < p[X + 2]):
                for c in range(channels):
                    out[c, s, t] = outside[c]
                continue
            row, column = int(np.floor(p[Y] + y * p[Y + 1])), int(np.floor(p[X] + x * p[X + 1]))
            if padded and not (0 <= row < rows and 0 <= column < columns):
                for c in range(channels):
                    out[c, s, t] = fill[c]
                continue
            row, column = min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
            for c in range(channels):
                out[c, s, t] = image[c, row, column]


@njit(inline="always")
def _cover(p: Any, axis: Any, at: Any) -> Any:
    return min(max(min(at + 0.5, p[axis + 2] - at + 0.5), 0.0), 1.0)


@njit(**OPTIONS)
def _taps(p: Any, axis: Any, at: Any, num_stored: Any, stride: Any, places: Any, weights: Any) -> None:
    """Fill in where one coordinate reads along an axis (-1: beyond the image), and the weights."""
    low, high = p[axis + 3], p[axis + 4]
    centre = p[axis] + at * p[axis + 1]
    support = max(abs(p[axis + 1]), 1.0)
    first = np.floor(centre - support + 0.5)
    total = 0.0
    for i in range(len(places)):
        middle = first + i + 0.5
        share = abs(middle - centre)
        if support != 1.0:
            share /= support
        real = max(1.0 - share, 0.0) if low < middle < high else 0.0
        total += real
        weights[i] = real
        places[i] = int(middle) * stride if 0 < middle < num_stored else -1
    if total != 1.0:
        for i in range(len(places)):
            weights[i] /= max(total, 1e-12)


@njit(**OPTIONS)
def _filtered(image: Any, p: Any, parts: Any, padded: Any, blended: Any, fill: Any, outside: Any, out: Any) -> None:
    """See sampling.warped: any filter, several places of each pixel."""
    channels, rows, columns = image.shape
    flat = image.reshape(channels, rows * columns)
    taps_y, taps_x = int(np.ceil(2 * max(abs(p[Y + 1]), 1.0))), int(np.ceil(2 * max(abs(p[X + 1]), 1.0)))
    at_y, real_y = np.empty(taps_y, np.int64), np.empty(taps_y)
    at_x, real_x = np.empty(taps_x, np.int64), np.empty(taps_x)
    value = np.empty(channels, np.float32)
    for s in range(out.shape[1]):
        for t in range(out.shape[2]):
            out[:, s, t] = 0
            for part in range(parts * parts):
                v, u = s + (part // parts + 0.5) / parts, t + (part % parts + 0.5) / parts
                depth = p[6] * u + p[7] * v + p[8]
                x, y = p[0] * u + p[1] * v + p[2], p[3] * u + p[4] * v + p[5]
                if depth != 1.0:
                    x, y = x / depth, y / depth
                cover = F32(_cover(p, Y, y) * _cover(p, X, x))
                if cover == 0:
                    for c in range(channels):
                        out[c, s, t] += outside[c]
                    continue
                _taps(p, Y, y, rows, columns, at_y, real_y)
                _taps(p, X, x, columns, 1, at_x, real_x)
                value[:] = 0
                for j in range(taps_y):
                    for i in range(taps_x):
                        weight = F32(real_y[j]) * F32(real_x[i])
                        if at_y[j] >= 0 and at_x[i] >= 0:
                            at = at_y[j] + at_x[i]
                            for c in range(channels):
                                value[c] += flat[c, at] * weight
                        elif padded:
                            for c in range(channels):
                                value[c] += fill[c] * weight
                for c in range(channels):
                    one = value[c] * cover
                    out[c, s, t] += (one - outside[c]) * cover + outside[c] if blended else one
            if parts > 1:
                for c in range(channels):
                    out[c, s, t] /= F32(parts * parts)


@njit(**OPTIONS)
def _warp(image: Any, p: Any, flags: Any, fill: Any, outside: Any, out: Any) -> None:
    """Bring one image, [C, H, W], through a warp to `out`, float32 [C, S, T]; both in stored units."""
    if flags[NEAREST]:
        _nearest(image, p, flags[PADDED] > 0, fill, outside, out)
    else:
        _filtered(image, p, flags[PARTS], flags[PADDED] > 0, flags[BLENDED] > 0, fill, outside, out)


PAINT = (
    "void(uint8[:,:,:,::1], uint8[:,:,:,::1], int64[::1], int8[::1], float64[:,:,::1], int64[:,::1], float32[:,::1], "
    "float32[:,::1], int64[:,::1], float32[:,:,::1], float32[:,::1], int64[::1], float32[::1], float32[::1], "
    "float32[:,::1], boolean, uint8[::1], float32[::1], int64, int64)"
)


def _paint(crops: Any, images: Any, which: Any, ways: Any, p: Any, flags: Any, fill: Any, outside: Any, codes: Any,
           values: Any, erased: Any, passes: Any, scale: Any, offset: Any, table: Any, planar: Any, stored: Any,
           scaled: Any, first: Any, stop: Any) -> None:  # fmt: skip
    """Bring images first .. stop - 1 through their warps and steps, and write them.

    Args:
        crops: uint8 [N, S, T, C], read where `ways` is CROPPED.
        images: uint8 [M, H, W, C], C 1 or 3, read where it is WARPED.
        which: int64 [N], the image of each row of the batch.
        ways: int8 [N].
        p, flags: float64 [P, N, 19], int64 [P, 4], of the warp of each pass; as above.
        fill, outside: float32 [P, C], of pixels beyond the image, and beyond the canvas.
        codes, values: int64 [N, K], float32 [N, K, 4].
        erased: float32 [K, C], what a step that erases writes.
        passes: int64 [K], the pass of each step.
        scale, offset: float32 [C], from 0..1 to floats.
        table: float32 [C, 256], what stored values become in images without steps.
        planar: whether floats go to [N, C, S, T], or to [N, S, T, C].
        stored, scaled: uint8 and float32, flat; the one that has room is written.
    """
    height, width, channels = crops.shape[1:]
    num_pixels = height * width
    x, spare = np.empty((channels, num_pixels), np.float32), np.empty(2 * width, np.float32)
    other, source = np.empty_like(x), np.empty((0, 0), np.float32)
    plane_step, step = (num_pixels, 1) if planar else (1, channels)
    for n in range(first, stop):
        begin = n * channels * num_pixels
        if ways[n] == CROPPED:
            crop = crops[n].reshape(-1)
            if not codes[n].any() and len(scaled):
                for c in range(channels):
                    at, levels = begin + c * plane_step, table[c]
                    for i in range(num_pixels):
                        scaled[at + i * step] = levels[crop[i * channels + c]]
                continue
            _load(crop, LEVEL, x)
        elif ways[n] == WARPED:
            rows, columns = images.shape[1:3]
            if not len(source):
                source = np.empty((channels, rows * columns), np.float32)
            _load(images[which[n]].reshape(-1), ONE, source)
            _warp(source.reshape(channels, rows, columns), p[0, n], flags[0], fill[0], outside[0],
                  x.reshape(channels, height, width))  # fmt: skip
            x *= LEVEL
        else:
            continue
        for k in range(codes.shape[1]):
            if codes[n, k] == WARP:
                at = passes[k]
                x *= F32(255)
                _warp(x.reshape(channels, height, width), p[at, n], flags[at], fill[at], outside[at],
                      other.reshape(channels, height, width))  # fmt: skip
                x, other = other, x
                x *= LEVEL
            elif codes[n, k]:
                _take(x, codes[n, k], values[n, k], erased[k], height, width, spare)
        _write(x, scale, offset, begin, plane_step, step, stored, scaled)


def build() -> tuple[Any, ...]:
    """Return `_paint`, compiled, or as an earlier process compiled it."""
    return compile_all(((_paint, PAINT),), OPTIONS)
