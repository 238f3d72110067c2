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

from fastload.augment.kernels_colour import grey, level_of, pointwise
from fastload.augment.kernels_sampling import CHANNELS, HEIGHT, WIDTH, clamp, drawn, resampled

# Places in the tuple that describes a step.
CODE, VALUE, TOP, LEFT, BOTTOM, RIGHT = (
    tl.constexpr(0), tl.constexpr(1), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)
)  # fmt: skip
KINDS, NOISE = tl.constexpr(5), tl.constexpr(6)
ERASED, NOISE_SCALE, NOISE_OFFSET = tl.constexpr(7), tl.constexpr(10), tl.constexpr(13)  # three numbers each

SHARPNESS, BLUR = tl.constexpr(11), tl.constexpr(12)

# One compilation for all batches: else the last, shorter one of an epoch would ask for another, in the midst of a run.
# What a user may hand over in slices, which begin anywhere.
UNALIGNED = ["draws", "src", "gather", "ids"]
LAUNCHED = {"do_not_specialize": ["n"], "do_not_specialize_on_alignment": UNALIGNED}


@triton.jit
def is_stencil(code):
    """Whether a step reads neighbours: a stencil's row may hold other steps' codes, as a policy draws them."""
    return (code == SHARPNESS) | (code == BLUR)


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
    top, left = drawn(draws, STEPS[I][TOP], n, image), drawn(draws, STEPS[I][LEFT], n, image)
    bottom, right = drawn(draws, STEPS[I][BOTTOM], n, image), drawn(draws, STEPS[I][RIGHT], n, image)
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
    r = clamp(tl.where(inner, r * factor + sum_r * rest, r))
    g = clamp(tl.where(inner, g * factor + sum_g * rest, g))
    b = clamp(tl.where(inner, b * factor + sum_b * rest, b))
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
        r, g, b = resampled(base, draws, n, image, row, column, mask, G)
    else:
        base = image.to(tl.int64) * (S * T * C)
        r, g, b = _spared(spare, base + (row * T + column) * C, mask, C)
        if STENCIL[0] >= 0:
            code = drawn(draws, STENCIL[0], n, image).to(tl.int32)
            value = drawn(draws, STENCIL[1], n, image)
            if S > 2 and T > 2:
                if code == SHARPNESS:
                    r, g, b = _sharpened(spare, base, row, column, r, g, b, value, mask, S, T, C)
            if code == BLUR:
                r, g, b = _blurred(blurred, base, row, column, value, mask, STENCIL[3], 1, S, T, C)
    return r, g, b


@triton.jit
def _stepped(r, g, b, draws, n, image, ids, keys, row, column, pixel, partial, mask, wanted, STEPS: tl.constexpr,
             C: tl.constexpr, SUMS: tl.constexpr):  # fmt: skip
    """Take the steps in front of the statistic `wanted`."""
    ahead = wanted
    for s in tl.static_range(len(STEPS)):
        code = drawn(draws, STEPS[s][CODE], n, image).to(tl.int32)
        ahead = tl.where(code == wanted, 0, ahead)
        if ahead > 0:
            value = drawn(draws, STEPS[s][VALUE], n, image)
            r, g, b = pointwise(r, g, b, code, value, image, partial, partial, mask, STEPS[s][KINDS] & 0x1FA, C, SUMS)
            if STEPS[s][KINDS] & 8192:
                if code == 13:
                    r, g, b = _erased(r, g, b, draws, n, image, ids, keys, row, column, pixel, STEPS, s)
    return r, g, b


@triton.jit(**LAUNCHED)
def measure(
    src, gather, spare, blurred, draws, ids, keys, partial, histogram, n,
    G: tl.constexpr, STENCIL: tl.constexpr, STEPS: tl.constexpr, SUMS: tl.constexpr, S: tl.constexpr, T: tl.constexpr,
    C: tl.constexpr, PARTS: tl.constexpr, COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store what a statistic needs, for a few blocks of pixels at once: the steps up to it are taken for that.

    partial: float32 [N, SUMS, 8]: share of the mean grey; least r, g, b; largest r, g, b.
    histogram: int32 [N, C, 256], zeroed, where COUNTS.
    """
    image, share = tl.program_id(0) // SUMS, tl.program_id(0) % SUMS
    wanted = 0
    for s in tl.static_range(len(STEPS)):
        code = drawn(draws, STEPS[s][CODE], n, image).to(tl.int32)
        wanted = tl.where((code == 2) | (code == 9) | (code == 10), code, wanted)
    if wanted == 0:
        return
    counted = False
    if COUNTS:
        counted = wanted == 10
    turns: tl.constexpr = (PARTS + SUMS - 1) // SUMS
    total = 0.0
    low_r, low_g, low_b = 2.0, 2.0, 2.0
    high_r, high_g, high_b = -1.0, -1.0, -1.0
    for turn in range(turns):
        pixel = (share * turns + turn) * BLOCK + tl.arange(0, BLOCK)
        mask = pixel < S * T
        row, column = pixel // T, pixel % T
        r, g, b = _start(src, gather, spare, blurred, draws, n, image, row, column, mask, G, STENCIL, S, T, C)
        r, g, b = _stepped(
            r, g, b, draws, n, image, ids, keys, row, column, pixel, partial, mask, wanted, STEPS, C, SUMS
        )
        if counted:
            here = histogram + image * C * 256
            tl.atomic_add(here + level_of(r), 1, mask=mask)
            if C == 3:
                tl.atomic_add(here + 256 + level_of(g), 1, mask=mask)
                tl.atomic_add(here + 512 + level_of(b), 1, mask=mask)
        else:
            total += tl.sum(tl.where(mask, grey(r, g, b, C), 0.0), 0)
            low_r = tl.minimum(low_r, tl.min(tl.where(mask, r, 2.0), 0))
            low_g = tl.minimum(low_g, tl.min(tl.where(mask, g, 2.0), 0))
            low_b = tl.minimum(low_b, tl.min(tl.where(mask, b, 2.0), 0))
            high_r = tl.maximum(high_r, tl.max(tl.where(mask, r, -1.0), 0))
            high_g = tl.maximum(high_g, tl.max(tl.where(mask, g, -1.0), 0))
            high_b = tl.maximum(high_b, tl.max(tl.where(mask, b, -1.0), 0))
    at = partial + (image * SUMS + share) * 8
    tl.store(at, total / (S * T))
    tl.store(at + 1, low_r)
    tl.store(at + 2, low_g)
    tl.store(at + 3, low_b)
    tl.store(at + 4, high_r)
    tl.store(at + 5, high_g)
    tl.store(at + 6, high_b)


@triton.jit(**LAUNCHED)
def equalizing_table(histogram, table, draws, n, CODES: tl.constexpr, C: tl.constexpr):
    """Store what each of 256 levels becomes, float32 [N, C, 256]; see pointwise.equalizing_table."""
    image = tl.program_id(0) // C
    wanted = 0
    for s in tl.static_range(len(CODES)):
        wanted = tl.where(drawn(draws, CODES[s], n, image) == 10.0, 1, wanted)
    if wanted == 0:
        return
    level = tl.arange(0, 256)
    counts = tl.load(histogram + tl.program_id(0) * 256 + level)
    last = tl.max(tl.where(counts > 0, level, 0), 0)
    step = (tl.sum(counts, 0) - tl.sum(tl.where(level == last, counts, 0), 0)) // 255
    made = (tl.cumsum(counts, 0) - counts + step // 2) // tl.maximum(step, 1)
    made = tl.where(step > 0, tl.minimum(made, 255), level)
    tl.store(table + tl.program_id(0) * 256 + level, made.to(tl.float32) * (1.0 / 255.0))


@triton.jit(**LAUNCHED)
def blur_down(
    spare, blurred, draws, n, STENCIL: tl.constexpr, S: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blur along columns, float32 [N, S, T, C]; images without a blur are left out."""
    image, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    if drawn(draws, STENCIL[0], n, image) != BLUR:
        return
    pixel = part * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < S * T
    row, column = pixel // T, pixel % T
    base = image.to(tl.int64) * (S * T * C)
    sigma = drawn(draws, STENCIL[1], n, image)
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


@triton.jit(**LAUNCHED)
def apply(
    src, gather, spare, blurred, draws, ids, keys, partial, table, out, aside, n,
    G: tl.constexpr, STENCIL: tl.constexpr, STEPS: tl.constexpr, SUMS: tl.constexpr, S: tl.constexpr, T: tl.constexpr,
    C: tl.constexpr, OUTPUT: tl.constexpr, LATER: tl.constexpr, ASIDE: tl.constexpr, ONLY: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Resample (or take a stencil), take the steps, scale, cast and store once.

    LATER: the row of the code of a stencil that follows: images that have one go to `aside` instead, [N, S, T, C],
    0..1; or -1. ASIDE: all of them do. ONLY: images without this segment's stencil are done already.
    """
    image, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    if ONLY:
        if not is_stencil(drawn(draws, STENCIL[0], n, image)):
            return
    pixel = part * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < S * T
    row, column = pixel // T, pixel % T
    r, g, b = _start(src, gather, spare, blurred, draws, n, image, row, column, mask, G, STENCIL, S, T, C)
    for s in tl.static_range(len(STEPS)):
        code = drawn(draws, STEPS[s][CODE], n, image).to(tl.int32)
        value = drawn(draws, STEPS[s][VALUE], n, image)
        r, g, b = pointwise(r, g, b, code, value, image, partial, table, mask, STEPS[s][KINDS], C, SUMS)
        if STEPS[s][KINDS] & 8192:
            if code == 13:
                r, g, b = _erased(r, g, b, draws, n, image, ids, keys, row, column, pixel, STEPS, s)
    to_aside = ASIDE
    if LATER >= 0:
        to_aside = is_stencil(drawn(draws, LATER, n, image))
    if to_aside:
        at = aside + image.to(tl.int64) * (S * T * C) + pixel * C
        tl.store(at, r, mask=mask)
        if C == 3:
            tl.store(at + 1, g, mask=mask)
            tl.store(at + 2, b, mask=mask)
    else:
        if C == 1:
            # One channel alone went through the steps; three are wanted where a Grayscale(3) follows.
            g, b = r, r
        _store(out, image, pixel, mask, r, 0, OUTPUT, S, T)
        if OUTPUT[0] == 3:
            _store(out, image, pixel, mask, g, 1, OUTPUT, S, T)
            _store(out, image, pixel, mask, b, 2, OUTPUT, S, T)
