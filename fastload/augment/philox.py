"""Philox4x32-10: random numbers that are a pure function of a counter and a key.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)

UInt = npt.NDArray[np.uint64]


def philox4x32(counter: tuple[UInt, UInt, UInt, UInt], key: tuple[int, int]) -> tuple[UInt, UInt, UInt, UInt]:
    """Return the four 32-bit words of each counter after ten rounds.

    Args:
        counter: four arrays that broadcast, words of 32 bits in uint64.
        key: two words of 32 bits.

    Returns:
        Four arrays of words of 32 bits in uint64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _32) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _32) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def draw_words(ids: npt.NDArray[np.int64], *, seed: int, epoch: int, transform: int, count: int) -> UInt:
    """Return `count` random 32-bit words for each sample, uint64 [count, N].

    Keyed on (seed, epoch, sample id, transform number) alone: the same for any batch size, rank,
    placement or device. Counter words: block, transform number, sample id low and high 32 bits; key
    words: seed, with the epoch folded into the second by one more Philox call.

    Args:
        ids: sample ids [N], not negative.
        seed, epoch: below 2**63.
        transform: number of the transform in its pipeline.
        count: words per sample.
    """
    key = derive(seed, epoch)
    samples = ids.astype(np.uint64)
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)[:, None]
    counter = (blocks, np.uint64(transform) + np.zeros_like(blocks), samples & _LOW, samples >> _32)
    words = np.broadcast_arrays(*philox4x32(counter, key))
    return np.stack(words, axis=1).reshape(-1, len(ids))[:count]


@lru_cache(maxsize=16)
def derive(seed: int, epoch: int) -> tuple[int, int]:
    """Return the two key words of (seed, epoch)."""
    word = [np.array(n, np.uint64) for n in (epoch & 0xFFFFFFFF, epoch >> 32, 0, 0)]
    first, second, _, _ = philox4x32((word[0], word[1], word[2], word[3]), (seed & 0xFFFFFFFF, seed >> 32))
    return int(first), int(second)


def uniform(words: UInt) -> npt.NDArray[np.float64]:
    """Return words as numbers in [0, 1), multiples of 2**-32."""
    return words.astype(np.float64) * 2.0**-32


def below(words: UInt, limit: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
    """Return words as whole numbers in 0 .. limit - 1 (the high half of word x limit: bias below limit / 2**32)."""
    return ((words * np.asarray(limit).astype(np.uint64)) >> _32).astype(np.int64)
