"""Crops and resizes of a whole batch on the CPU, compiled by Numba: the very bytes that cpu.py's torch calls give.

Torch needs three microseconds to begin each of the six operations of a crop and holds the interpreter meanwhile, so
that two threads were as slow as one. Here a thread makes a range of images in one call, without the interpreter. What
is computed is torch's antialiased resize of uint8, which is Pillow's: weights of 16 bits, along x first, rounded, then
along y. Source: compute_index_ranges_int16_weights in aten/src/ATen/native/cpu/UpSampleKernel.cpp.

Shape letters: N batch, H W stored pixels, S T output, C channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from fastload.augment.compiling import compile_all

U = np.uintp  # unsigned, so that Numba does not look whether an index counts from the end
I32 = np.int32  # said at each step: Numba's own sum of two of them has 64 bits, at half the speed
# "contract": a * b + c is rounded once, as torch does.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}

# What the columns of `y` and `x` mean where windows are resized: stored pixels LOW .. HIGH - 1 become EVERY
# pixels, of which those from FIRST on are kept. Where pixels are only copied: BEFORE pixels of padding, then COUNT
# stored ones from SOURCE on.
LOW, HIGH, EVERY, FIRST, MIRRORED = range(5)
SOURCE, COUNT, BEFORE = range(3)


@njit(inline="always")
def _mad(total: Any, weight: Any, value: Any) -> Any:
    return I32(total + I32(I32(weight) * I32(value)))


@njit(**OPTIONS)
def _weigh(size_in: Any, size_out: Any) -> Any:
    """Return for each output pixel its first stored pixel, its weights side by side, their number, and their bits."""
    scale = size_in / size_out
    support = max(scale, 1.0)
    reach = 2 * math.ceil(support) + 1
    lowest, real = np.empty(size_out, np.int32), np.zeros((size_out, reach))
    most = 0.0
    for i in range(size_out):
        centre = scale * (i + 0.5)
        low = max(int(centre - support + 0.5), 0)
        count = min(max(min(int(centre + support + 0.5), size_in) - low, 0), reach)
        total = 0.0
        for j in range(count):
            real[i, j] = max(1.0 - abs((j + low - centre + 0.5) * (1.0 / support)), 0.0)
            total += real[i, j]
        for j in range(count):
            if total != 0.0:
                real[i, j] /= total
            most = max(most, real[i, j])
        lowest[i] = low
    bits = 0
    while bits < 22 and int(0.5 + most * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    # Weights of 0 in front go: an image that grows then needs two taps for each pixel, not three.
    taps = 1
    for i in range(size_out):
        skip = 0
        while skip < reach - 1 and int(0.5 + real[i, skip] * (1 << bits)) == 0:
            skip += 1
        lowest[i] += skip
        for j in range(reach):
            real[i, j] = int(0.5 + real[i, j + skip] * (1 << bits)) if j + skip < reach else 0
            if real[i, j] > 0:
                taps = max(taps, j + 1)
    weights = np.empty(size_out * taps, np.int16)  # as such, two of them are multiplied in the time of one
    for i in range(size_out):
        back = max(lowest[i] + taps - size_in, 0)  # no tap beyond the window, not even one of weight 0
        lowest[i] -= back
        for j in range(taps):
            weights[i * taps + j] = int(real[i, j - back]) if j >= back else 0
    return lowest, weights, taps, bits


@njit(inline="always")
def _across(stored: Any, start: Any, stride: Any, num_rows: Any, lowest: Any, weights: Any, taps: Any, channels: Any,
            bits: Any, first: Any, step: Any, rows: Any, begin: Any, width: Any) -> None:  # fmt: skip
    """Resample along x the rows that begin at byte `start`, `stride` apart, to `width` pixels each.

    Written to `rows` from byte `begin` on.
    """
    half, shift, length = I32(1 << (bits - 1)), I32(bits), width * channels
    at = first
    for t in range(width):
        pixel, weight = U(start) + U(channels) * U(lowest[U(at)]), U(at) * U(taps)
        for r in range(num_rows):
            for c in range(channels):
                total = half
                for k in range(taps):
                    total = _mad(total, weights[weight + U(k)], stored[pixel + U(r * stride + k * channels + c)])
                rows[U(begin + r * length + t * channels + c)] = np.uint8(total >> shift)
        at += step


@njit(inline="always")
def _down(rows: Any, begin: Any, weights: Any, weight: Any, taps: Any, bits: Any, line: Any) -> None:
    """Mix `taps` rows of bytes, from byte `begin` on, to the bytes `line`."""
    half, shift, length = I32(1 << (bits - 1)), I32(bits), len(line)
    for x in range(length):
        total = half
        for k in range(taps):
            total = _mad(total, weights[U(weight + k)], rows[U(begin + k * length + x)])
        line[x] = np.uint8(I32(total >> shift))


@njit(**OPTIONS)
def _narrow(stored: Any, start: Any, stride: Any, num_rows: Any, x: Any, width: Any, channels: Any, rows: Any) -> None:
    """Resample along x `num_rows` rows from byte `start` on, `stride` bytes apart."""
    lowest, weights, taps, bits = _weigh(x[HIGH] - x[LOW], x[EVERY])
    first, step = (x[FIRST] + width - 1, -1) if x[MIRRORED] else (x[FIRST], 1)
    # Four rows at a time share their weights; the last four may overlap those before.
    many = 4 if channels == 3 and 2 <= taps <= 3 and num_rows >= 4 else 1
    for row in range(0, num_rows, many):
        r = min(row, num_rows - many)
        begin, end = start + r * stride, r * width * channels
        # Written out, for the compiler: it unrolls loops whose length it sees.
        if many == 4 and taps == 3:
            _across(stored, begin, stride, 4, lowest, weights, 3, 3, bits, first, step, rows, end, width)
        elif many == 4 and taps == 2:
            _across(stored, begin, stride, 4, lowest, weights, 2, 3, bits, first, step, rows, end, width)
        elif channels == 3:
            _across(stored, begin, stride, 1, lowest, weights, taps, 3, bits, first, step, rows, end, width)
        else:
            _across(stored, begin, stride, 1, lowest, weights, taps, 1, bits, first, step, rows, end, width)


@njit(**OPTIONS)
def _mix(rows: Any, begin: Any, weights: Any, weight: Any, taps: Any, bits: Any, line: Any, sums: Any) -> None:
    """`_down`, written out for the compiler, and row after row for more taps than it unrolls."""
    if taps == 1:
        _down(rows, begin, weights, weight, 1, bits, line)
    elif taps == 2:
        _down(rows, begin, weights, weight, 2, bits, line)
    elif taps == 3:
        _down(rows, begin, weights, weight, 3, bits, line)
    else:
        length = len(line)
        sums[:] = I32(1 << (bits - 1))
        for k in range(taps):
            for x in range(length):
                sums[x] = _mad(sums[x], weights[U(weight + k)], rows[U(begin + k * length + x)])
        for x in range(length):
            line[x] = np.uint8(I32(sums[x] >> I32(bits)))


@njit(inline="always")
def _copy(stored: Any, start: Any, x: Any, channels: Any, line: Any) -> None:
    """Copy a row of pixels to between its padding; `start` is the byte where the stored row begins."""
    first, target, count = U(start + x[SOURCE] * channels), U(x[BEFORE] * channels), x[COUNT]
    if x[MIRRORED]:
        last = first + U((count - 1) * channels)
        for t in range(count):
            for c in range(channels):
                line[target + U(t * channels + c)] = stored[last - U(t * channels) + U(c)]
    else:
        for i in range(count * channels):
            line[target + U(i)] = stored[first + U(i)]


@njit(inline="always")
def _write(line: Any, channels: Any, scale: Any, offset: Any, planar: Any, out: Any, begin: Any, plane: Any) -> None:
    """Scale a row of bytes to floats: side by side from `begin` on, or each channel to a plane of its own."""
    if planar:
        for c in range(channels):
            for t in range(len(line) // channels):
                out[U(begin + c * plane + t)] = np.float32(line[U(t * channels + c)]) * scale[c] + offset[c]
    else:
        for x in range(len(line)):
            out[U(begin + x)] = np.float32(line[x]) * scale[x] + offset[x]


# The inner loops, written out for the compiler by the number of channels.
@njit(**OPTIONS)
def _copy_any(stored: Any, start: Any, x: Any, channels: Any, line: Any) -> None:
    if channels == 3:
        _copy(stored, start, x, 3, line)
    else:
        _copy(stored, start, x, 1, line)


@njit(**OPTIONS)
def _write_any(
    line: Any, channels: Any, scale: Any, offset: Any, planar: Any, out: Any, begin: Any, plane: Any
) -> None:
    if channels == 3:
        _write(line, 3, scale, offset, planar, out, begin, plane)
    else:
        _write(line, 1, scale, offset, planar, out, begin, plane)


SIGNATURE = (
    "void(uint8[:,:,:,::1], int64[::1], int64[:,::1], int64[:,::1], boolean, boolean[::1], uint8[::1], float32[::1], "
    "float32[::1], boolean, int64[::1], uint8[::1], float32[::1], int64, int64)"
)


def _make(images: Any, which: Any, ys: Any, xs: Any, resized: Any, left_out: Any, fill: Any, scale: Any, offset: Any,
          planar: Any, size: Any, stored: Any, scaled: Any, first: Any, stop: Any) -> None:  # fmt: skip
    """Make images first .. stop - 1.

    Args:
        images: uint8 [M, H, W, C], C 1 or 3.
        which: int64 [N], the image of each row of the batch.
        ys, xs: int64 [N, 5], as above.
        resized: whether windows are resized, or copied.
        left_out: bool [N], images that are not wanted.
        fill: uint8 [C], of padding.
        scale, offset: float32 [T * C], repeating every C.
        planar: whether floats go to [N, C, S, T], or to [N, S, T, C].
        size: (S, T).
        stored, scaled: uint8 and float32, flat; the one that has room is written.
    """
    channels, stride = images.shape[3], images.shape[2] * images.shape[3]
    height, width = size[0], size[1]
    length = width * channels
    rows, sums = np.empty(images.shape[1] * length, np.uint8), np.empty(length, np.int32)
    line, blank = np.empty(length, np.uint8), np.empty(length, np.uint8)
    for i in range(length):
        blank[i] = fill[i % channels]
    for n in range(first, stop):
        if left_out[n]:
            continue
        image, y, x = images[which[n]].reshape(-1), ys[n], xs[n]
        if resized:
            lowest, weights, taps, bits = _weigh(y[HIGH] - y[LOW], y[EVERY])
            low = lowest[y[FIRST]]
            high = lowest[y[FIRST] + height - 1] + taps
            _narrow(image, (y[LOW] + low) * stride + x[LOW] * channels, stride, high - low, x, width, channels, rows)
        line[:] = blank
        for s in range(height):
            row = line
            if resized:
                at = y[FIRST] + (height - 1 - s if y[MIRRORED] else s)
                _mix(rows, (lowest[at] - low) * length, weights, at * taps, taps, bits, line, sums)
            elif s < y[BEFORE] or s >= y[BEFORE] + y[COUNT]:
                row = blank
            else:
                at = y[SOURCE] + (y[BEFORE] + y[COUNT] - 1 - s if y[MIRRORED] else s - y[BEFORE])
                _copy_any(image, at * stride, x, channels, line)
            begin = (n * height + s) * length
            if len(stored):
                stored[begin : begin + length] = row
            else:
                plane = height * width
                begin = n * channels * plane + s * width if planar else begin
                _write_any(row, channels, scale, offset, planar, scaled, begin, plane)


def _words(ids: Any, key0: Any, key1: Any, number: Any, num_blocks: Any) -> Any:
    """Return philox.draw_words' words, int64 [4 * num_blocks, N]; see there, and philox4x32."""
    low, right = np.uint64(0xFFFFFFFF), np.uint64(32)
    out = np.empty((4 * num_blocks, len(ids)), np.int64)
    for block in range(num_blocks):
        for n in range(len(ids)):
            k0, k1 = np.uint64(key0), np.uint64(key1)
            c0, c1 = np.uint64(block), np.uint64(number)
            c2, c3 = np.uint64(ids[n]) & low, np.uint64(ids[n]) >> right
            for _ in range(10):
                p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
                c0, c1, c2, c3 = (p1 >> right) ^ c1 ^ k0, p1 & low, (p0 >> right) ^ c3 ^ k1, p0 & low
                k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
            out[4 * block, n], out[4 * block + 1, n] = c0, c1
            out[4 * block + 2, n], out[4 * block + 3, n] = c2, c3
    return out


def build() -> tuple[Any, ...]:
    """Return (`_make`, `_words`), compiled, some ten seconds, or as an earlier process compiled them, one."""
    signatures = ((_make, SIGNATURE), (_words, "int64[:,::1](int64[::1], int64, int64, int64, int64)"))
    return compile_all(signatures, OPTIONS)
