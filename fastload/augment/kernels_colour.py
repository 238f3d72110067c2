"""Colour steps in the Triton kernels: what `pointwise.py` means. Shape letters and words as in `kernels.py`."""

# mypy: ignore-errors
# As in kernels.py: nested conditions are cheaper in Triton than joined ones.
# ruff: noqa: SIM102

from __future__ import annotations

import triton
import triton.language as tl

from fastload.augment.kernels_sampling import clamp

LEVELS = tl.constexpr(256 - 1e-3)  # torchvision's to_dtype(uint8, scale=True)
SAME = tl.constexpr(1e-4)  # see pointwise.SAME


@triton.jit
def grey(r, g, b, C: tl.constexpr):
    """See pointwise.grey."""
    if C == 1:
        return r
    return 0.2989 * r + 0.587 * g + 0.114 * b


@triton.jit
def _hue_channel(six, n, high, span):
    k = six + n
    k = k - tl.floor(k * (1.0 / 6.0)) * 6.0
    return clamp(high - span * clamp(tl.minimum(k, 4.0 - k)))


@triton.jit
def _hue(r, g, b, turn):
    """See pointwise.hue."""
    high, low = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
    span = high - low
    over = 1.0 / tl.where(span > 0, span, 1.0)
    six = tl.where(high == g, (b - r) * over + 2.0, (r - g) * over + 4.0)
    six = tl.where(high == r, (g - b) * over, six) + 6.0 * turn
    return _hue_channel(six, 5.0, high, span), _hue_channel(six, 3.0, high, span), _hue_channel(six, 1.0, high, span)


@triton.jit
def _posterized(x, levels):
    return tl.minimum(tl.maximum(tl.floor(x * levels), 0.0), levels - 1.0) / levels


@triton.jit
def level_of(x):
    """See pointwise.to_levels."""
    return tl.minimum(tl.maximum((x * LEVELS).to(tl.int32), 0), 255)


@triton.jit
def _parts(partial, image, column, other, SUMS: tl.constexpr):
    """Read one number of each share of an image's blocks; a power of two of them, as Triton wants it."""
    at = tl.arange(0, triton.next_power_of_2(SUMS))
    return tl.load(partial + (image * SUMS + at) * 8 + column, mask=at < SUMS, other=other)


@triton.jit
def _stretched(x, partial, image, CHANNEL: tl.constexpr, SUMS: tl.constexpr):
    """See pointwise.autocontrast: the least value of the image becomes 0, the largest 1."""
    low = tl.min(_parts(partial, image, 1 + CHANNEL, 2.0, SUMS), 0)
    high = tl.max(_parts(partial, image, 4 + CHANNEL, -1.0, SUMS), 0)
    flat = high - low < SAME
    return clamp((x - tl.where(flat, 0.0, low)) / tl.where(flat, 1.0, high - low))


@triton.jit
def pointwise(
    r, g, b, code, value, image, partial, table, mask, KINDS: tl.constexpr, C: tl.constexpr, SUMS: tl.constexpr
):
    """Take one step, whatever its code is; the same for all pixels of a program. See pointwise.py."""
    if KINDS & 2:
        if code == 1:
            r, g, b = clamp(r * value), clamp(g * value), clamp(b * value)
    if KINDS & 4:
        if code == 2:
            mean = tl.sum(_parts(partial, image, 0, 0.0, SUMS), 0)
            other = mean * (1.0 - value)
            r, g, b = clamp(other + r * value), clamp(other + g * value), clamp(other + b * value)
    if (KINDS & 8) and C == 3:
        if code == 3:
            other = grey(r, g, b, C) * (1.0 - value)
            r, g, b = clamp(other + r * value), clamp(other + g * value), clamp(other + b * value)
    if (KINDS & 16) and C == 3:
        if code == 4:
            r, g, b = _hue(r, g, b, value)
    if (KINDS & 32) and C == 3:
        if code == 5:
            r = grey(r, g, b, C)
            g, b = r, r
    if KINDS & 64:
        if code == 6:
            r, g, b = 1.0 - r, 1.0 - g, 1.0 - b
    if KINDS & 128:
        if code == 7:
            r, g, b = _posterized(r, value), _posterized(g, value), _posterized(b, value)
    if KINDS & 256:
        if code == 8:
            least = value - SAME
            r = tl.where(r >= least, 1.0 - r, r)
            g = tl.where(g >= least, 1.0 - g, g)
            b = tl.where(b >= least, 1.0 - b, b)
    if KINDS & 512:
        if code == 9:
            r = _stretched(r, partial, image, 0, SUMS)
            g = _stretched(g, partial, image, 1, SUMS)
            b = _stretched(b, partial, image, 2, SUMS)
    if KINDS & 1024:
        if code == 10:
            here = table + image * C * 256
            r = tl.load(here + level_of(r), mask=mask, other=0.0)
            if C == 3:
                g = tl.load(here + 256 + level_of(g), mask=mask, other=0.0)
                b = tl.load(here + 512 + level_of(b), mask=mask, other=0.0)
    return r, g, b
