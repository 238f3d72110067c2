"""The Triton kernels: what `reference.py` means, fused.

Shape letters: N batch, H W stored pixels, S T output height and width, C channels (1 or 3). A program does BLOCK
output pixels of one image, all channels. What is drawn lies in `draws`, float32 [rows, N]; which row is what is
known when a kernel is compiled. Colours are 0..1 between resampling and output.

What is not drawn comes in tuples of constants, described by the names of their places; Triton follows them two
levels deep, not three. Codes are those of `plan.Code`.
"""

# Triton takes constants and strides in its own spelling; its functions have no types that mypy could check.
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

# Places in the tuple that describes a step.
CODE, VALUE, TOP, LEFT, BOTTOM, RIGHT = (
    tl.constexpr(0), tl.constexpr(1), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)
)  # fmt: skip
KINDS, NOISE = tl.constexpr(5), tl.constexpr(6)
ERASED, NOISE_SCALE, NOISE_OFFSET = tl.constexpr(7), tl.constexpr(10), tl.constexpr(13)  # three numbers each

LEVELS = tl.constexpr(256 - 1e-3)  # torchvision's to_dtype(uint8, scale=True)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on int64 words; see philox.py."""
    for turn in tl.static_range(10):
        if turn > 0:
            k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
            k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
        p0 = c0 * 0xD2511F53
        p1 = c2 * 0xCD9E8D57
        n0 = ((p1 >> 32) & 0xFFFFFFFF) ^ c1 ^ k0
        n2 = ((p0 >> 32) & 0xFFFFFFFF) ^ c3 ^ k1
        c0, c1, c2, c3 = n0, p1 & 0xFFFFFFFF, n2, p0 & 0xFFFFFFFF
    return c0, c1, c2, c3


@triton.jit
def _row(draws, ROW: tl.constexpr, n, image):
    return tl.load(draws + ROW * n + image)


@triton.jit
def _clamp(x):
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
    start = _row(draws, G[AXIS][0], n, image)
    step = _row(draws, G[AXIS][1], n, image)
    centre = start + at * step
    if G[FOLD] > 0:
        centre = _fold(centre, _row(draws, G[AXIS][4], n, image), _row(draws, G[AXIS][5], n, image), G[FOLD])
    support = tl.maximum(tl.abs(step), 1.0)
    return centre, support, _row(draws, G[AXIS][2], n, image), _row(draws, G[AXIS][3], n, image)


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
            cover = _clamp(tl.minimum(y, height - y) + 0.5) * _clamp(tl.minimum(x, width - x) + 0.5)
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
def _resampled(base, draws, n, image, row, column, mask, G: tl.constexpr):
    """Return the values of output pixels (row, column), 0..1."""
    y, x = row.to(tl.float32), column.to(tl.float32)
    if G[COVER] > 0:
        m0, m1, m2 = (_row(draws, G[MATRIX][0], n, image), _row(draws, G[MATRIX][1], n, image),
                      _row(draws, G[MATRIX][2], n, image))  # fmt: skip
        m3, m4, m5 = (_row(draws, G[MATRIX][3], n, image), _row(draws, G[MATRIX][4], n, image),
                      _row(draws, G[MATRIX][5], n, image))  # fmt: skip
        m6, m7, m8 = (_row(draws, G[MATRIX][6], n, image), _row(draws, G[MATRIX][7], n, image),
                      _row(draws, G[MATRIX][8], n, image))  # fmt: skip
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


@triton.jit
def _grey(r, g, b, C: tl.constexpr):
    if C == 1:
        return r
    return 0.2989 * r + 0.587 * g + 0.114 * b


@triton.jit
def _hue_channel(six, n, high, span):
    k = six + n
    k = k - tl.floor(k * (1.0 / 6.0)) * 6.0
    return _clamp(high - span * _clamp(tl.minimum(k, 4.0 - k)))


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
def _stretched(x, low, high):
    flat = low == high
    return _clamp((x - tl.where(flat, 0.0, low)) / tl.where(flat, 1.0, high - low))


@triton.jit
def _level(x):
    return tl.minimum(tl.maximum((x * LEVELS).to(tl.int32), 0), 255)


@triton.jit
def _parts(partial, image, column, other, PARTS: tl.constexpr):
    """Read one number of every block of an image; a power of two of them, as Triton wants it."""
    at = tl.arange(0, triton.next_power_of_2(PARTS))
    return tl.load(partial + (image * PARTS + at) * 8 + column, mask=at < PARTS, other=other)


@triton.jit
def _pointwise(
    r, g, b, code, value, image, partial, table, mask, KINDS: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr
):
    """Take one step, whatever its code is; the same for all pixels of a program. See pointwise.py."""
    if KINDS & 2:
        if code == 1:
            r, g, b = _clamp(r * value), _clamp(g * value), _clamp(b * value)
    if KINDS & 4:
        if code == 2:
            mean = tl.sum(_parts(partial, image, 0, 0.0, PARTS), 0)
            other = mean * (1.0 - value)
            r, g, b = _clamp(other + r * value), _clamp(other + g * value), _clamp(other + b * value)
    if (KINDS & 8) and C == 3:
        if code == 3:
            other = _grey(r, g, b, C) * (1.0 - value)
            r, g, b = _clamp(other + r * value), _clamp(other + g * value), _clamp(other + b * value)
    if (KINDS & 16) and C == 3:
        if code == 4:
            r, g, b = _hue(r, g, b, value)
    if (KINDS & 32) and C == 3:
        if code == 5:
            grey = _grey(r, g, b, C)
            r, g, b = grey, grey, grey
    if KINDS & 64:
        if code == 6:
            r, g, b = 1.0 - r, 1.0 - g, 1.0 - b
    if KINDS & 128:
        if code == 7:
            r, g, b = _posterized(r, value), _posterized(g, value), _posterized(b, value)
    if KINDS & 256:
        if code == 8:
            r = tl.where(r >= value, 1.0 - r, r)
            g = tl.where(g >= value, 1.0 - g, g)
            b = tl.where(b >= value, 1.0 - b, b)
    if KINDS & 512:
        if code == 9:
            low, high = (
                tl.min(_parts(partial, image, 1, 2.0, PARTS), 0),
                tl.max(_parts(partial, image, 4, -1.0, PARTS), 0),
            )
            r = _stretched(r, low, high)
            low, high = (
                tl.min(_parts(partial, image, 2, 2.0, PARTS), 0),
                tl.max(_parts(partial, image, 5, -1.0, PARTS), 0),
            )
            g = _stretched(g, low, high)
            low, high = (
                tl.min(_parts(partial, image, 3, 2.0, PARTS), 0),
                tl.max(_parts(partial, image, 6, -1.0, PARTS), 0),
            )
            b = _stretched(b, low, high)
    if KINDS & 1024:
        if code == 10:
            here = table + image * C * 256
            r = tl.load(here + _level(r), mask=mask, other=0.0)
            if C == 3:
                g = tl.load(here + 256 + _level(g), mask=mask, other=0.0)
                b = tl.load(here + 512 + _level(b), mask=mask, other=0.0)
    return r, g, b


@triton.jit
def _normal(ids, keys, image, pixel, STEPS: tl.constexpr, I: tl.constexpr):
    """Return normal noise for each pixel; see reference.noise."""
    sample = tl.load(ids + image)
    block = pixel.to(tl.int64) + 65536
    zero = tl.zeros_like(block)
    number = zero + STEPS[I][NOISE] + tl.load(keys + 5)
    w0, w1, w2, w3 = philox(
        block, number, zero + (sample & 0xFFFFFFFF), zero + (sample >> 32), tl.load(keys), tl.load(keys + 1)
    )
    share: tl.constexpr = 2.0**-32
    turn: tl.constexpr = 2.0**-32 * 6.283185307179586
    first = tl.sqrt(-2.0 * tl.log(1.0 - w0.to(tl.float64) * share))
    second = tl.sqrt(-2.0 * tl.log(1.0 - w2.to(tl.float64) * share))
    z0 = (first * tl.cos(w1.to(tl.float64) * turn)).to(tl.float32)
    z1 = (first * tl.sin(w1.to(tl.float64) * turn)).to(tl.float32)
    z2 = (second * tl.cos(w3.to(tl.float64) * turn)).to(tl.float32)
    return (
        z0 * STEPS[I][NOISE_SCALE] + STEPS[I][NOISE_OFFSET],
        z1 * STEPS[I][NOISE_SCALE + 1] + STEPS[I][NOISE_OFFSET + 1],
        z2 * STEPS[I][NOISE_SCALE + 2] + STEPS[I][NOISE_OFFSET + 2],
    )


@triton.jit
def _erased(r, g, b, draws, n, image, ids, keys, row, column, pixel, STEPS: tl.constexpr, I: tl.constexpr):
    top, left = _row(draws, STEPS[I][TOP], n, image), _row(draws, STEPS[I][LEFT], n, image)
    bottom, right = _row(draws, STEPS[I][BOTTOM], n, image), _row(draws, STEPS[I][RIGHT], n, image)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    if STEPS[I][NOISE] >= 0:
        z0, z1, z2 = _normal(ids, keys, image, pixel, STEPS, I)
        return tl.where(inside, z0, r), tl.where(inside, z1, g), tl.where(inside, z2, b)
    fill_r, fill_g, fill_b = STEPS[I][ERASED], STEPS[I][ERASED + 1], STEPS[I][ERASED + 2]
    return tl.where(inside, fill_r, r), tl.where(inside, fill_g, g), tl.where(inside, fill_b, b)


@triton.jit
def _mirror(at, size):
    at = tl.abs(at)
    return tl.where(at >= size, 2 * size - 2 - at, at)


@triton.jit
def _spared(spare, where, mask, C: tl.constexpr):
    r = tl.load(spare + where, mask=mask, other=0.0)
    g, b = r, r
    if C == 3:
        g, b = tl.load(spare + where + 1, mask=mask, other=0.0), tl.load(spare + where + 2, mask=mask, other=0.0)
    return r, g, b


@triton.jit
def _blurred(spare, base, row, column, sigma, mask, RADIUS, ALONG: tl.constexpr, S: tl.constexpr, T: tl.constexpr,
             C: tl.constexpr):  # fmt: skip
    """Blur along one axis: 0 down, 1 across. See pointwise.blur."""
    r, g, b = tl.zeros_like(mask.to(tl.float32)), tl.zeros_like(mask.to(tl.float32)), tl.zeros_like(mask.to(tl.float32))
    total = 0.0 * sigma
    for i in range(-RADIUS, RADIUS + 1):
        weight = tl.exp(-(i * i) / (2.0 * sigma * sigma))
        total += weight
        if ALONG == 0:
            where = (_mirror(row + i, S) * T + column) * C
        else:
            where = (row * T + _mirror(column + i, T)) * C
        tap_r, tap_g, tap_b = _spared(spare, base + where, mask, C)
        r, g, b = r + weight * tap_r, g + weight * tap_g, b + weight * tap_b
    return r / total, g / total, b / total


@triton.jit
def _sharpened(spare, base, row, column, r, g, b, factor, mask, S: tl.constexpr, T: tl.constexpr, C: tl.constexpr):
    """See pointwise.sharpness."""
    inner = (row > 0) & (row < S - 1) & (column > 0) & (column < T - 1)
    sum_r, sum_g, sum_b = 4.0 * r, 4.0 * g, 4.0 * b
    for k in range(9):
        where = ((row + k // 3 - 1) * T + column + k % 3 - 1) * C
        tap_r, tap_g, tap_b = _spared(spare, base + where, mask & inner, C)
        sum_r, sum_g, sum_b = sum_r + tap_r, sum_g + tap_g, sum_b + tap_b
    rest = (1.0 - factor) * (1.0 / 13.0)
    r = _clamp(tl.where(inner, r * factor + sum_r * rest, r))
    g = _clamp(tl.where(inner, g * factor + sum_g * rest, g))
    b = _clamp(tl.where(inner, b * factor + sum_b * rest, b))
    return r, g, b


@triton.jit
def _start(src, gather, spare, blurred, draws, n, image, row, column, mask, G: tl.constexpr, STENCIL: tl.constexpr,
           S: tl.constexpr, T: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Return the values a segment starts with, 0..1: resampled, or a stencil over the segment before."""
    # STENCIL: (row of the code or -1, row of the value, radius down, radius across), or () for a geometry.
    if len(STENCIL) == 0:
        stored = (tl.load(gather + image) if len(G) > 15 else image).to(tl.int64)
        # 64 bits: a resident dataset has more bytes than 32 bits can count.
        base = src + stored * (G[HEIGHT] * G[WIDTH] * G[CHANNELS])
        r, g, b = _resampled(base, draws, n, image, row, column, mask, G)
    else:
        base = image.to(tl.int64) * (S * T * C)
        r, g, b = _spared(spare, base + (row * T + column) * C, mask, C)
        if STENCIL[0] >= 0:
            code = _row(draws, STENCIL[0], n, image).to(tl.int32)
            value = _row(draws, STENCIL[1], n, image)
            if S > 2 and T > 2:
                if code == 11:
                    r, g, b = _sharpened(spare, base, row, column, r, g, b, value, mask, S, T, C)
            if code == 12:
                r, g, b = _blurred(blurred, base, row, column, value, mask, STENCIL[3], 1, S, T, C)
    return r, g, b


@triton.jit
def measure(
    src, gather, spare, blurred, draws, ids, keys, partial, histogram, n,
    G: tl.constexpr, STENCIL: tl.constexpr, STEPS: tl.constexpr, S: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
    PARTS: tl.constexpr, COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store what a statistic needs, for each block of pixels: the steps up to it are taken for that.

    partial: float32 [N, PARTS, 8]: share of the mean grey; least r, g, b; largest r, g, b.
    histogram: int32 [N, C, 256], zeroed, where COUNTS.
    """
    image, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    wanted = 0
    for s in tl.static_range(len(STEPS)):
        code = _row(draws, STEPS[s][CODE], n, image).to(tl.int32)
        wanted = tl.where((code == 2) | (code == 9) | (code == 10), code, wanted)
    if wanted == 0:
        return
    pixel = part * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < S * T
    row, column = pixel // T, pixel % T
    r, g, b = _start(src, gather, spare, blurred, draws, n, image, row, column, mask, G, STENCIL, S, T, C)
    ahead = wanted
    for s in tl.static_range(len(STEPS)):
        code = _row(draws, STEPS[s][CODE], n, image).to(tl.int32)
        ahead = tl.where(code == wanted, 0, ahead)
        if ahead > 0:
            value = _row(draws, STEPS[s][VALUE], n, image)
            r, g, b = _pointwise(r, g, b, code, value, image, partial, partial, mask, STEPS[s][KINDS] & 0x1FA, C, PARTS)
            if STEPS[s][KINDS] & 8192:
                if code == 13:
                    r, g, b = _erased(r, g, b, draws, n, image, ids, keys, row, column, pixel, STEPS, s)
    if COUNTS:
        if wanted == 10:
            here = histogram + image * C * 256
            tl.atomic_add(here + _level(r), 1, mask=mask)
            if C == 3:
                tl.atomic_add(here + 256 + _level(g), 1, mask=mask)
                tl.atomic_add(here + 512 + _level(b), 1, mask=mask)
            return
    at = partial + (image * PARTS + part) * 8
    tl.store(at, tl.sum(tl.where(mask, _grey(r, g, b, C), 0.0), 0) / (S * T))
    tl.store(at + 1, tl.min(tl.where(mask, r, 2.0), 0))
    tl.store(at + 2, tl.min(tl.where(mask, g, 2.0), 0))
    tl.store(at + 3, tl.min(tl.where(mask, b, 2.0), 0))
    tl.store(at + 4, tl.max(tl.where(mask, r, -1.0), 0))
    tl.store(at + 5, tl.max(tl.where(mask, g, -1.0), 0))
    tl.store(at + 6, tl.max(tl.where(mask, b, -1.0), 0))


@triton.jit
def equalizing_table(histogram, table, draws, n, CODES: tl.constexpr, C: tl.constexpr):
    """Store what each of 256 levels becomes, float32 [N, C, 256]; see pointwise.equalizing_table."""
    image = tl.program_id(0) // C
    wanted = 0
    for s in tl.static_range(len(CODES)):
        wanted = tl.where(_row(draws, CODES[s], n, image) == 10.0, 1, wanted)
    if wanted == 0:
        return
    level = tl.arange(0, 256)
    counts = tl.load(histogram + tl.program_id(0) * 256 + level)
    last = tl.max(tl.where(counts > 0, level, 0), 0)
    step = (tl.sum(counts, 0) - tl.sum(tl.where(level == last, counts, 0), 0)) // 255
    made = (tl.cumsum(counts, 0) - counts + step // 2) // tl.maximum(step, 1)
    made = tl.where(step > 0, tl.minimum(made, 255), level)
    tl.store(table + tl.program_id(0) * 256 + level, made.to(tl.float32) * (1.0 / 255.0))


@triton.jit
def blur_down(
    spare, blurred, draws, n, STENCIL: tl.constexpr, S: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blur along columns, float32 [N, S, T, C]; images without a blur are left out."""
    image, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    if _row(draws, STENCIL[0], n, image) != 12.0:
        return
    pixel = part * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < S * T
    row, column = pixel // T, pixel % T
    base = image.to(tl.int64) * (S * T * C)
    sigma = _row(draws, STENCIL[1], n, image)
    r, g, b = _blurred(spare, base, row, column, sigma, mask, STENCIL[2], 0, S, T, C)
    at = blurred + base + pixel * C
    tl.store(at, r, mask=mask)
    if C == 3:
        tl.store(at + 1, g, mask=mask)
        tl.store(at + 2, b, mask=mask)


@triton.jit
def _store(out, image, pixel, mask, value, CHANNEL: tl.constexpr, OUTPUT: tl.constexpr, S: tl.constexpr,
           T: tl.constexpr):  # fmt: skip
    # OUTPUT: (channels, channels last, scale, offset, whole numbers)
    value = value * OUTPUT[2][CHANNEL] + OUTPUT[3][CHANNEL]
    if OUTPUT[4]:
        # Half to even, as torch.round does.
        up = tl.floor(value + 0.5)
        odd = up - 2.0 * tl.floor(up * 0.5)
        value = tl.minimum(tl.maximum(tl.where((up - value == 0.5) & (odd == 1.0), up - 1.0, up), 0.0), 255.0)
    base = image.to(tl.int64) * (S * T * OUTPUT[0])
    at = base + pixel * OUTPUT[0] + CHANNEL if OUTPUT[1] else base + CHANNEL * (S * T) + pixel
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def apply(
    src, gather, spare, blurred, draws, ids, keys, partial, table, out, aside, n,
    G: tl.constexpr, STENCIL: tl.constexpr, STEPS: tl.constexpr, S: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
    OUTPUT: tl.constexpr, LATER: tl.constexpr, ASIDE: tl.constexpr, ONLY: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Resample (or take a stencil), take the steps, scale, cast and store once.

    LATER: the row of the code of a stencil that follows: images that have one go to `aside` instead, [N, S, T, C],
    0..1; or -1. ASIDE: all of them do. ONLY: images without this segment's stencil are done already.
    """
    image, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    if ONLY:
        if _row(draws, STENCIL[0], n, image) == 0.0:
            return
    pixel = part * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < S * T
    row, column = pixel // T, pixel % T
    r, g, b = _start(src, gather, spare, blurred, draws, n, image, row, column, mask, G, STENCIL, S, T, C)
    for s in tl.static_range(len(STEPS)):
        code = _row(draws, STEPS[s][CODE], n, image).to(tl.int32)
        value = _row(draws, STEPS[s][VALUE], n, image)
        r, g, b = _pointwise(r, g, b, code, value, image, partial, table, mask, STEPS[s][KINDS], C, PARTS)
        if STEPS[s][KINDS] & 8192:
            if code == 13:
                r, g, b = _erased(r, g, b, draws, n, image, ids, keys, row, column, pixel, STEPS, s)
    to_aside = ASIDE
    if LATER >= 0:
        to_aside = _row(draws, LATER, n, image) != 0.0
    if to_aside:
        at = aside + image.to(tl.int64) * (S * T * C) + pixel * C
        tl.store(at, r, mask=mask)
        if C == 3:
            tl.store(at + 1, g, mask=mask)
            tl.store(at + 2, b, mask=mask)
    else:
        _store(out, image, pixel, mask, r, 0, OUTPUT, S, T)
        if OUTPUT[0] == 3:
            _store(out, image, pixel, mask, g, 1, OUTPUT, S, T)
            _store(out, image, pixel, mask, b, 2, OUTPUT, S, T)
