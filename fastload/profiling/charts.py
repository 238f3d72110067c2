"""The page's charts: inline SVG without words, and words around it as HTML, which stay readable at any width.

Every function returns HTML. Colours come from the page's classes, so that light, dark and print need no other drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fastload.errors import printable

NUM_BINS = 120
WIDTH, HEIGHT = 1000, 200


def safe(text: object) -> str:
    """Return text from anywhere as HTML shows it: no markup, no control characters."""
    return escape(printable(text), quote=True)


def figure(title: str, body: str, note: str = "", *, wide: bool = False) -> str:
    """Return a chart with its title above and a sentence below."""
    caption = f"<p class='note'>{note}</p>" if note else ""
    return f"<figure{' class=wide' if wide else ''}><figcaption>{safe(title)}</figcaption>{body}{caption}</figure>"


def stacked_bar(parts: Sequence[tuple[str, str, float, str]], alt: str) -> str:
    """Return one bar of several parts with a legend.

    Args:
        parts: class, name, size and the size in words, of each.
        alt: the chart in words.
    """
    total = sum(size for _, _, size, _ in parts) or 1.0
    x, rects, legend = 0.0, [], []
    for key, name, size, words in parts:
        width = WIDTH * size / total
        rects.append(f"<rect class='{key}' x='{x:.1f}' width='{max(width, 0):.1f}' height='20'/>")
        legend.append(f"<li><i class='{key}'></i>{safe(name)} <b>{safe(words)}</b></li>")
        x += width
    return f"{_svg(''.join(rects), alt, 20, 'step')}<ul class='legend'>{''.join(legend)}</ul>"


def bar_rows(
    rows: Sequence[tuple[str, str, float | None, str, tuple[float, float] | None]], ceiling: float | None, alt: str
) -> str:
    """Return horizontal bars with a whisker for their interval, and the ceiling as a line through all of them.

    Args:
        rows: class, name, value, value in words, and interval, of each.
        ceiling: where the line stands; None for none.
        alt: the chart in words.
    """
    ends = [value for _, _, value, _, _ in rows if value] + [i[1] for *_, i in rows if i] + [ceiling or 0.0]
    scale = 960 / (max(ends) or 1.0)
    drawn = []
    for key, name, value, words, interval in rows:
        marks = f"<rect class='track' width='{WIDTH}' height='20'/>"
        if value is not None:
            marks += f"<rect class='{key}' width='{value * scale:.1f}' height='20'/>"
        if interval is not None:
            low, high = (end * scale for end in interval)
            marks += f"<path class='whisker' d='M{low:.1f} 10H{high:.1f}M{low:.1f} 5v10M{high:.1f} 5v10'/>"
        if ceiling:
            marks += f"<path class='ceiling' d='M{ceiling * scale:.1f} 0v20'/>"
        drawn.append(
            f"<div class='row {key}'><span>{safe(name)}</span><b>{safe(words)}</b>{_svg(marks, '', 20, 'bar')}</div>"
        )
    return f"<div class='rows' role='img' aria-label='{safe(alt)}'>{''.join(drawn)}</div>"


def timeline(steps: Sequence[float], waits: Sequence[float]) -> tuple[str, float]:
    """Return bars of step time, the wait at their foot, and the value of the highest one; at most NUM_BINS bars."""
    groups = _groups(len(steps), NUM_BINS)
    means = [_mean(steps[a:b]) for a, b in groups]
    parts = [min(_mean(waits[a:b]), mean) for (a, b), mean in zip(groups, means, strict=True)]
    # One step of several seconds, a checkpoint say, must not flatten all the others.
    top = min(max(means), 3 * sorted(means)[int(0.95 * (len(means) - 1))]) or 1.0
    width = WIDTH / len(groups)
    gap = width * 0.12 if len(groups) < 80 else 0.0
    work = _bars([min(m, top) for m in means], top, width, gap)
    wait = _bars([min(p, top) for p in parts], top, width, gap)
    return f"<path class='work' d='{work}'/><path class='wait' d='{wait}'/>", top


def histogram(values: Sequence[float], num_bins: int = 24) -> tuple[str, float, int]:
    """Return bars of how often each value came, the largest value drawn and the highest count."""
    top = sorted(values)[int(0.99 * (len(values) - 1))] or max(values) or 1e-6
    counts = [0] * num_bins
    for value in values:
        counts[min(num_bins - 1, int(num_bins * value / top))] += 1
    width = WIDTH / num_bins
    return f"<path class='wait' d='{_bars(counts, max(counts), width, width * 0.1)}'/>", top, max(counts)


def strip(shares: Sequence[float | None], alt: str) -> str:
    """Return cells in a row, the fuller the darker."""
    width = WIDTH / max(1, len(shares))
    cells = [
        f"<rect class='busy' x='{number * width:.1f}' width='{width + 0.5:.1f}' height='20' "
        f"fill-opacity='{max(0.0, min(1.0, share)):.2f}'/>"
        for number, share in enumerate(shares) if share
    ]  # fmt: skip
    return _svg(f"<rect class='track' width='{WIDTH}' height='20'/>{''.join(cells)}", alt, 20, "strip")


def plot(marks: str, alt: str, *, y: str, x: Sequence[str]) -> str:
    """Return a drawing of WIDTH x HEIGHT with the value of its upper edge, and words below its left and right end."""
    grid = "".join(f"<path class='grid' d='M0 {HEIGHT * part:.0f}H{WIDTH}'/>" for part in (0.0, 0.5, 1.0))
    words = "".join(f"<span>{safe(word)}</span>" for word in x)
    return (
        f"<div class='plot'><span class='y'>{safe(y)}</span>{_svg(grid + marks, alt, HEIGHT, 'chart')}"
        f"<div class='x'>{words}</div></div>"
    )


def binned(pairs: Sequence[Sequence[float]], num_bins: int = NUM_BINS) -> list[float | None]:
    """Return the mean of (time, value) pairs in equal parts of the time; None where a part has none."""
    if not pairs:
        return []
    begin, end = pairs[0][0], pairs[-1][0]
    held: list[list[float]] = [[] for _ in range(min(num_bins, len(pairs)))]
    for time, value in pairs:
        held[min(len(held) - 1, int(len(held) * (time - begin) / ((end - begin) or 1.0)))].append(value)
    return [_mean(values) if values else None for values in held]


def _svg(marks: str, alt: str, height: int, name: str) -> str:
    said = f"role='img' aria-label='{safe(alt)}'" if alt else "aria-hidden='true'"
    return f"<svg class='{name}' viewBox='0 0 {WIDTH} {height}' preserveAspectRatio='none' {said}>{marks}</svg>"


def _bars(values: Sequence[float], top: float, width: float, gap: float) -> str:
    path = []
    for number, value in enumerate(values):
        height = HEIGHT * value / top
        if height > 0:
            left, inner = number * width + gap / 2, width - gap
            path.append(f"M{left:.1f} {HEIGHT}v-{height:.1f}h{inner:.1f}v{height:.1f}z")
    return "".join(path)


def _groups(count: int, most: int) -> list[tuple[int, int]]:
    number = min(count, most)
    return [(count * i // number, count * (i + 1) // number) for i in range(number)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
