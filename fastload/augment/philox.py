"""Philox4x32-10: random numbers that are a pure function of a counter and a key.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). Written once
for every kind of array that has * >> & ^ on int64: NumPy and torch. In Triton: `kernels.philox`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF

Words = tuple[Any, Any, Any, Any]


def philox4x32(counter: Words, key: tuple[Any, Any]) -> Words:
    """Return the four 32-bit words of each counter after ten rounds.

    Args:
        counter: four arrays that broadcast, words of 32 bits in int64.
        key: two words of 32 bits, numbers or arrays.

    Returns:
        Four arrays of words of 32 bits in int64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for turn in range(10):
        if turn:
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        # Products of 64 bits wrap around in int64; their halves are those of the unsigned product.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32) & _LOW ^ c1 ^ k0, p1 & _LOW, (p0 >> 32) & _LOW ^ c3 ^ k1, p0 & _LOW
    return c0, c1, c2, c3


def draw_words(
    ids: npt.NDArray[np.int64], *, seed: int, epoch: int, transform: int, count: int
) -> npt.NDArray[np.int64]:
    """Return `count` random 32-bit words for each sample, int64 [count, N].

    Keyed on (seed, epoch, sample id, transform number) alone: the same for any batch size, rank,
    placement or device. Counter words: block, transform number, sample id low and high 32 bits; key
    words: seed, with the epoch folded into the second by one more Philox call.

    Args:
        ids: sample ids [N], not negative.
        seed, epoch: below 2**63.
        transform: number of the transform in its pipeline.
        count: words per sample.
    """
    return words_of(ids, derive(seed, epoch), transform, (count + 3) // 4)[:count]


def words_of(ids: npt.NDArray[np.int64], key: tuple[int, int], number: int, num_blocks: int) -> npt.NDArray[np.int64]:
    """Return the words of so many blocks, four of each, int64 [4 * num_blocks, N]; see `draw_words`."""
    blocks = np.arange(num_blocks)[:, None]
    counter = (blocks, np.full_like(blocks, number), ids[None] & _LOW, ids[None] >> 32)
    words = np.broadcast_arrays(*philox4x32(counter, key))
    return np.stack(words, axis=1).reshape(4 * num_blocks, len(ids))


@lru_cache(maxsize=64)
def derive(seed: int, epoch: int) -> tuple[int, int]:
    """Return the two key words of (seed, epoch)."""
    word = [np.array([n]) for n in (epoch & _LOW, epoch >> 32, 0, 0)]
    first, second, _, _ = philox4x32((word[0], word[1], word[2], word[3]), (seed & _LOW, seed >> 32))
    return int(first[0]), int(second[0])
