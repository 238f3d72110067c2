"""Arithmetic on measurements: unions of intervals, quantiles, and how sure a mean is. Pure; no clock, no device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

NUM_RESAMPLES = 400
MIN_BLOCK = 5
CONFIDENCE = 0.95


def union_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of (begin, end) intervals, in their unit; where end <= begin there is nothing."""
    total, reached = 0.0, -np.inf
    for begin, end in sorted(intervals):
        if end > max(begin, reached):
            total += end - max(begin, reached)
            reached = end
    return float(total)


def outside_seconds(intervals: Iterable[tuple[float, float]], others: Sequence[tuple[float, float]]) -> float:
    """Return the length of what `intervals` cover and `others` do not: union of both, less that of the others."""
    return union_seconds([*intervals, *others]) - union_seconds(others)


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that `share` of all do not exceed; None of nothing."""
    if not len(values):
        return None
    return float(np.quantile(np.asarray(values, dtype=np.float64), share, method="inverted_cdf"))


def ratio_interval(
    above: Sequence[float], below: Sequence[float], *, period: int = 1, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95% interval of sum(above) / sum(below), by a block bootstrap; None of fewer than two blocks.

    Steps follow each other: a slow one rarely comes alone, and with several workers each so-and-so-many-th waits. So
    runs of steps are drawn (of a circle, so that each step is drawn equally often), as in Politis and Romano,
    "A circular block-resampling procedure for stationary data", 1992.

    Args:
        above, below: of each step, in their order; e.g. wait and duration, or images and duration.
        period: a block is at least so long, e.g. the number of workers.
        seed: of the draws; the same measurements give the same interval.
    """
    a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    count = len(a)
    length = max(MIN_BLOCK, period, round(count ** (1 / 3)))
    if count < 2 * length or not b.sum() > 0:
        return None
    num_blocks = -(-count // length)
    starts = np.random.default_rng(seed).integers(0, count, (NUM_RESAMPLES, num_blocks))
    # Sums of every run of `length` steps around the circle; a resample is then a sum of such sums.
    runs_a, runs_b = (_circular_sums(values, length) for values in (a, b))
    below_sums = runs_b[starts].sum(1)
    ratios = runs_a[starts].sum(1)[below_sums > 0] / below_sums[below_sums > 0]
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def whole_rounds(num_steps: int, num_workers: int | None) -> int:
    """Return how many steps to count: `num_steps`, two of each worker at least, and of each worker as many.

    Workers that make batches side by side are done side by side: a round of them is one wait, and no wait until the
    next. Any other number of steps would measure where in a round it began.
    """
    workers = num_workers or 1
    return -(-max(num_steps, 2 * workers) // workers) * workers


def thinned(count: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced positions among `count`, the first and the last with them."""
    if count <= most:
        return list(range(count))
    return [int(i) for i in np.linspace(0, count - 1, most).round()]


def _circular_sums(values: np.ndarray, length: int) -> np.ndarray:
    around = np.concatenate([values, values[: length - 1]])
    sums = np.concatenate([[0.0], np.cumsum(around)])
    result: np.ndarray = sums[length:] - sums[:-length]
    return result
