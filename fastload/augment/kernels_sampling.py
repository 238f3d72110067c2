"""Resampling in the Triton kernels: what `sampling.py` means. Shape letters and words as in `kernels.py`."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

# Places in the tuple that describes a geometry.
HEIGHT, WIDTH, CHANNELS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
Y, X, MATRIX = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)  # rows of the draws
FOLD, PADDED, FILL = tl.constexpr(6), tl.constexpr(7), tl.constexpr(8)
COVER, OUTSIDE = tl.constexpr(9), tl.constexpr(10)
NEAREST, PLACES, CANVAS, TAPS = tl.constexpr(11), tl.constexpr(12), tl.constexpr(13), tl.constexpr(14)


@triton.jit
def drawn(draws, ROW: tl.constexpr, n, image):
    """Read one number that was drawn for this image."""
    return tl.load(draws + ROW * n + image)


@triton.jit
def clamp(x):
    """Bring a colour into 0..1."""
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _fold(at, low, high, MODE: tl.constexpr):
    """Bring coordinates back into the image: 1 holds them at its edge, 2 mirrors them to and fro."""
    if MODE == 1:
        return tl.minimum(tl.maximum(at, low), high)
    span = tl.maximum(high - low, 1e-9)
    way = at - low
    way = way - tl.floor(way / (2 * span)) * (2 * span)
    return low + tl.minimum(way, 2 * span - way)


@triton.jit
def _axis(draws, n, image, G: tl.constexpr, AXIS: tl.constexpr, at):
    """Return centre (stored coordinates), support, low, high for canvas coordinates `at`."""
    start = drawn(draws, G[AXIS][0], n, image)
    step = drawn(draws, G[AXIS][1], n, image)
    centre = start + at * step
    if G[FOLD] > 0:
        centre = _fold(centre, drawn(draws, G[AXIS][4], n, image), drawn(draws, G[AXIS][5], n, image), G[FOLD])
    support = tl.maximum(tl.abs(step), 1.0)
    return centre, support, drawn(draws, G[AXIS][2], n, image), drawn(draws, G[AXIS][3], n, image)


@triton.jit
def _weight(pixel, centre, support, low, high):
    middle = pixel + 0.5
    weight = tl.maximum(1.0 - tl.abs(middle - centre) / support, 0.0)
    return tl.where((middle > low) & (middle < high), weight, 0.0)


@triton.jit
def _tap(base, y, x, mask, G: tl.constexpr):
    """Read one stored pixel, or the padding."""
    inside = (y >= 0) & (y < G[HEIGHT]) & (x >= 0) & (x < G[WIDTH])
    where = (y.to(tl.int32) * G[WIDTH] + x.to(tl.int32)) * G[CHANNELS]
    r = tl.load(base + where, mask=mask & inside, other=0).to(tl.float32)
    g, b = r, r
    if G[CHANNELS] == 3:
        g = tl.load(base + where + 1, mask=mask & inside, other=0).to(tl.float32)
        b = tl.load(base + where + 2, mask=mask & inside, other=0).to(tl.float32)
    if G[PADDED]:
        r = tl.where(inside, r, G[FILL][0])
        g = tl.where(inside, g, G[FILL][1])
        b = tl.where(inside, b, G[FILL][2])
    return r, g, b


@triton.jit
def _at(base, draws, n, image, y, x, mask, G: tl.constexpr):
    """Return the stored values at canvas coordinates (y, x), 0..255; sampling.py says what they mean."""
    centre_y, support_y, low_y, high_y = _axis(draws, n, image, G, Y, y)
    centre_x, support_x, low_x, high_x = _axis(draws, n, image, G, X, x)
    if G[NEAREST]:
        r, g, b = _tap(base, tl.floor(centre_y), tl.floor(centre_x), mask, G)
    else:
        first_y, first_x = tl.floor(centre_y - support_y + 0.5), tl.floor(centre_x - support_x + 0.5)
        taps_y = tl.ceil(2 * support_y)
        r, g, b = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
        total_y, total_x = tl.zeros_like(x), tl.zeros_like(x)
        for i in range(G[TAPS][1]):
            total_x += _weight(first_x + i, centre_x, support_x, low_x, high_x)
        for j in range(G[TAPS][0]):
            # As many rows of taps as this image's own crop needs: 2 where it is enlarged.
            if j < taps_y:
                weight_y = _weight(first_y + j, centre_y, support_y, low_y, high_y)
                total_y += weight_y
                for i in range(G[TAPS][1]):
                    weight = weight_y * _weight(first_x + i, centre_x, support_x, low_x, high_x)
                    tap_r, tap_g, tap_b = _tap(base, first_y + j, first_x + i, mask & (weight > 0), G)
                    r += weight * tap_r
                    g += weight * tap_g
                    b += weight * tap_b
        over = 1.0 / tl.maximum(total_y * total_x, 1e-12)
        r, g, b = r * over, g * over, b * over
    if G[COVER] > 0:
        height, width = G[CANVAS][0], G[CANVAS][1]
        if G[NEAREST]:
            on = (y > 0) & (y < height) & (x > 0) & (x < width)
            r = tl.where(on, r, G[OUTSIDE][0])
            g = tl.where(on, g, G[OUTSIDE][1])
            b = tl.where(on, b, G[OUTSIDE][2])
        else:
            cover = clamp(tl.minimum(y, height - y) + 0.5) * clamp(tl.minimum(x, width - x) + 0.5)
            r, g, b = r * cover, g * cover, b * cover
            if G[COVER] == 2:
                # torchvision blends with the fill a second time; so do we.
                r = (r - G[OUTSIDE][0]) * cover + G[OUTSIDE][0]
                g = (g - G[OUTSIDE][1]) * cover + G[OUTSIDE][1]
                b = (b - G[OUTSIDE][2]) * cover + G[OUTSIDE][2]
    elif G[PADDED]:
        readable = (centre_y > low_y) & (centre_y < high_y) & (centre_x > low_x) & (centre_x < high_x)
        r = tl.where(readable, r, G[FILL][0])
        g = tl.where(readable, g, G[FILL][1])
        b = tl.where(readable, b, G[FILL][2])
    return r, g, b


@triton.jit
def resampled(base, draws, n, image, row, column, mask, G: tl.constexpr):
    """Return the values of output pixels (row, column), 0..1."""
    y, x = row.to(tl.float32), column.to(tl.float32)
    if G[COVER] > 0:
        m0, m1, m2 = (drawn(draws, G[MATRIX][0], n, image), drawn(draws, G[MATRIX][1], n, image),
                      drawn(draws, G[MATRIX][2], n, image))  # fmt: skip
        m3, m4, m5 = (drawn(draws, G[MATRIX][3], n, image), drawn(draws, G[MATRIX][4], n, image),
                      drawn(draws, G[MATRIX][5], n, image))  # fmt: skip
        m6, m7, m8 = (drawn(draws, G[MATRIX][6], n, image), drawn(draws, G[MATRIX][7], n, image),
                      drawn(draws, G[MATRIX][8], n, image))  # fmt: skip
        r, g, b = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
        share: tl.constexpr = 1.0 / G[PLACES]
        for part in range(G[PLACES] * G[PLACES]):
            v = y + (part // G[PLACES] + 0.5) * share
            u = x + (part % G[PLACES] + 0.5) * share
            over = 1.0 / (m6 * u + m7 * v + m8)
            r1, g1, b1 = _at(
                base, draws, n, image, (m3 * u + m4 * v + m5) * over, (m0 * u + m1 * v + m2) * over, mask, G
            )
            r, g, b = r + r1, g + g1, b + b1
        scale: tl.constexpr = 1.0 / (255.0 * G[PLACES] * G[PLACES])
        return r * scale, g * scale, b * scale
    r, g, b = _at(base, draws, n, image, y + 0.5, x + 0.5, mask, G)
    return r * (1.0 / 255.0), g * (1.0 / 255.0), b * (1.0 / 255.0)
