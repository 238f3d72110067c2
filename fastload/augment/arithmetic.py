"""The few operations draws are made of: in NumPy, and as a trace that becomes one Triton kernel.

Draws are written once (geometry.py, colour.py, policies.py) against a `Numbers`, so the host and the kernel give the
same numbers. Whole numbers are int64, others float64: what is rounded to whole pixels must not depend on the device.

N images of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastload.augment.compiling import ready
from fastload.augment.philox import derive, words_of

Array = Any  # [N] of a backend, or a plain number that holds for every image


@dataclass(frozen=True)
class Keys:
    """What keys the draws of a batch beside its sample ids."""

    seed: int
    epoch: int

    @property
    def words(self) -> tuple[int, int, int, int, int]:
        """Return the key words of (seed, epoch), those of (seed, epoch 0), and the epoch's parity."""
        return (*derive(self.seed, self.epoch), *derive(self.seed, 0), self.epoch & 1)


class Numbers(Protocol):
    """Elementwise arithmetic of one backend, and its random words."""

    parity: Array  # of the epoch, whole number

    def words(
        self, transform: int, count: int, *, every_epoch: bool = True, per_batch: bool = False
    ) -> Sequence[Array]:
        """Return `count` random 32-bit words of each sample; see `philox.draw_words`.

        Args:
            transform: number of the transform.
            count: how many.
            every_epoch: False for words that stay the same over the epochs.
            per_batch: the words of the batch's first sample, for all.
        """
        ...

    def where(self, condition: Array, yes: Array, no: Array) -> Array: ...  # noqa: D102
    def floor(self, x: Array) -> Array: ...  # noqa: D102
    def sqrt(self, x: Array) -> Array: ...  # noqa: D102
    def exp(self, x: Array) -> Array: ...  # noqa: D102
    def log(self, x: Array) -> Array: ...  # noqa: D102
    def sin(self, x: Array) -> Array: ...  # noqa: D102
    def cos(self, x: Array) -> Array: ...  # noqa: D102
    def minimum(self, a: Array, b: Array) -> Array: ...  # noqa: D102
    def maximum(self, a: Array, b: Array) -> Array: ...  # noqa: D102
    def number(self, x: Array) -> Array: ...  # noqa: D102
    def whole(self, x: Array) -> Array: ...  # noqa: D102


def uniform(xp: Numbers, word: Array) -> Array:
    """Return a word as a number in [0, 1), a multiple of 2**-32."""
    return xp.number(word) * 2.0**-32


def between(xp: Numbers, word: Array, low: float, high: float) -> Array:
    """Return a word as a number in [low, high)."""
    return low + uniform(xp, word) * (high - low)


def below(word: Array, limit: Array) -> Array:
    """Return a word as a whole number in 0 .. limit - 1 (the high half of word x limit: bias below limit / 2**32)."""
    return (word * limit) >> 32


def rounded(xp: Numbers, x: Array) -> Array:
    """Return the nearest whole number; half goes up, on every backend alike."""
    return xp.whole(xp.floor(x + 0.5))


def permutation(xp: Numbers, words: Sequence[Array]) -> list[list[Array]]:
    """Return for each place which of the numbers 0 .. k - 1 stands there: [place][number] is a condition.

    Every order is equally likely: the words are sorted (ties, by number, have a probability of k**2 / 2**33).
    """
    count = len(words)
    ranks = []
    for i in range(count):
        rank: Array = 0
        for j in range(count):
            if j != i:
                before = words[j] < words[i] if j > i else words[j] <= words[i]
                rank = rank + xp.where(before, 1, 0)
        ranks.append(rank)
    return [[rank == place for rank in ranks] for place in range(count)]


def gamma(xp: Numbers, words: Sequence[Array], alpha: float) -> Array:
    """Return a number of the Gamma distribution of shape `alpha`, out of GAMMA_WORDS words.

    Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables" (2000). A try is taken with a
    probability above 0.95; eight of them, and then the mode, err less often than once in 10**10.
    """
    shape = alpha if alpha >= 1 else alpha + 1
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    result: Array = d
    for i in reversed(range(8)):
        radius = xp.sqrt(-2.0 * xp.log(1.0 - uniform(xp, words[3 * i])))
        x = radius * xp.cos(2 * math.pi * uniform(xp, words[3 * i + 1]))
        v = 1.0 + c * x
        v = v * v * v
        positive = xp.maximum(v, 1e-30)
        u = 1.0 - uniform(xp, words[3 * i + 2])
        taken = (v > 0) & (xp.log(u) < 0.5 * x * x + d - d * v + d * xp.log(positive))
        result = xp.where(taken, d * v, result)
    if alpha < 1:
        result = result * xp.exp(xp.log(1.0 - uniform(xp, words[24])) * (1 / alpha))
    return result


GAMMA_WORDS = 25


def beta(xp: Numbers, words: Sequence[Array], alpha: float) -> Array:
    """Return a number of the Beta distribution (alpha, alpha), out of 2 * GAMMA_WORDS words."""
    a, b = gamma(xp, words[:GAMMA_WORDS], alpha), gamma(xp, words[GAMMA_WORDS : 2 * GAMMA_WORDS], alpha)
    return a / xp.maximum(a + b, 1e-300)


class HostNumbers:
    """NumPy on the host: what the CPU uses, and a device without Triton."""

    def __init__(self, ids: np.ndarray[Any, np.dtype[np.int64]], keys: Keys, view: int = 0) -> None:
        self._ids, self._keys, self._view = ids, keys.words, view
        self.parity = self._keys[4]

    def words(
        self, transform: int, count: int, *, every_epoch: bool = True, per_batch: bool = False
    ) -> Sequence[Array]:
        """See Numbers."""
        ids = self._ids[:1] if per_batch else self._ids
        number, num_blocks = _number_of(transform, self._view), (count + 3) // 4
        key = self._keys[:2] if every_epoch else self._keys[2:4]
        fast = ready()
        if fast is not None:
            stacked = fast.words(np.ascontiguousarray(ids), *key, number, num_blocks)
        else:
            stacked = words_of(ids, key, number, num_blocks)
        return list(np.broadcast_to(stacked, (len(stacked), len(self._ids)))[:count])

    where = staticmethod(np.where)
    floor = staticmethod(np.floor)
    sqrt = staticmethod(np.sqrt)
    exp = staticmethod(np.exp)
    log = staticmethod(np.log)
    sin = staticmethod(np.sin)
    cos = staticmethod(np.cos)
    minimum = staticmethod(np.minimum)
    maximum = staticmethod(np.maximum)

    def number(self, x: Array) -> Array:
        """See Numbers."""
        return np.asarray(x, np.float64)

    def whole(self, x: Array) -> Array:
        """See Numbers."""
        return np.asarray(x).astype(np.int64)


def _number_of(transform: int, view: int) -> int:
    # Views of one image are other draws of the same transforms; no pipeline has 65,536 of them.
    return transform + (view << 16)
