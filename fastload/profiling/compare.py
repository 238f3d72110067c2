"""What changed between two reports, and whether they may be compared at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastload.profiling.reading import Json, main_loop, number, one_of_each, percent, rate_of

_VERSIONS = ("torch", "torchvision", "python", "fastload", "accelerate", "timm")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one loop, before and after; None where it was not measured.

    Attributes:
        loop: name of the loop.
        what: name of the figure.
        key: `x_real`, `wait`, `p50`, ...: which figure it is.
        unit: `images/s`, `share` or `seconds`.
        noise: whether the intervals of both overlap, so that the difference means nothing; None where there are none.
    """

    loop: str
    what: str
    key: str
    unit: str
    before: float | None
    after: float | None
    noise: bool | None

    @property
    def ratio(self) -> float | None:
        """After over before; None where one is missing or 0."""
        return self.after / self.before if self.before and self.after is not None else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What changed.

    Attributes:
        summary: in one or two sentences.
        rows: figures of the loops that both reports have; of the loops both are about, where no name agrees.
        warnings: differences of machine, versions and settings that may be what changed.
    """

    summary: str
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]


def compare(before: Json, after: Json) -> Comparison:
    """Compare two reports."""
    pairs = _pairs(before, after)
    rows = tuple(row for pair in pairs for row in _rows(*pair))
    words = before["verdict"]["word"], after["verdict"]["word"]
    return Comparison(summary=_summary(rows, words), rows=rows, warnings=tuple(_differences(before, after)))


def _pairs(before: Json, after: Json) -> list[tuple[Json, Json]]:
    old = {loop["name"]: loop for loop in one_of_each(before)}
    pairs = [(old[loop["name"]], loop) for loop in one_of_each(after) if loop["name"] in old]
    # The loops that the reports are about come first: a script that was changed has its loop on another line.
    first = main_loop(before), main_loop(after)
    if first[0] is None or first[1] is None:
        return pairs
    return [(first[0], first[1]), *(pair for pair in pairs if pair[1] is not first[1] and pair[0] is not first[0])]


def _rows(old: Json, new: Json) -> list[Row]:
    name = new["name"] if new["name"] == old["name"] else f"{old['name']} → {new['name']}"

    def row(what: str, key: str, unit: str, figures: list[Any], intervals: list[Any]) -> Row:
        return Row(
            loop=name, what=what, key=key, unit=unit, before=figures[0], after=figures[1], noise=_overlap(*intervals)
        )

    both = (old, new)
    rates = [
        row(what, key, "images/s", [rate_of(loop, key) for loop in both],
            [(loop["throughput"][key] or {}).get("interval") for loop in both])
        for what, key in (("images/s", "x_real"), ("loader alone", "x_load"), ("step alone", "x_replay"))
    ]  # fmt: skip
    rest = [
        row("data wait", "wait", "share", [loop["wait"]["share"] for loop in both],
            [loop["wait"]["interval"] for loop in both]),
        row("step, mean", "mean", "seconds", [loop["step_seconds"]["mean"] for loop in both],
            [loop["step_seconds"]["interval"] for loop in both]),
        row("step, median", "p50", "seconds", [loop["step_seconds"]["p50"] for loop in both], [None, None]),
        row("step, 95th percentile", "p95", "seconds", [loop["step_seconds"]["p95"] for loop in both], [None, None]),
        row("GPU busy", "busy", "share", [loop["gpu"]["busy_share"] for loop in both], [None, None]),
    ]  # fmt: skip
    return [r for r in (rates[0], rest[0], *rest[1:], *rates[1:]) if r.before is not None or r.after is not None]


def _overlap(old: list[float] | None, new: list[float] | None) -> bool | None:
    return None if not old or not new else old[0] <= new[1] and new[0] <= old[1]


def _summary(rows: tuple[Row, ...], words: tuple[str, str]) -> str:
    said = [f"{words[0]} before, {words[1]} after" if words[0] != words[1] else f"{words[0]} before and after"]
    first = {row.key: row for row in reversed(rows)}
    speed, wait = first.get("x_real"), first.get("wait")
    if speed is not None and speed.ratio is not None:
        text = f"{number(speed.before)} to {number(speed.after)} images/s ({speed.ratio:.2f} times"
        said.append(f"{text}, within the noise of both)" if speed.noise else f"{text})")
    if wait is not None and wait.before is not None and wait.after is not None:
        said.append(f"data wait {percent(wait.before)} to {percent(wait.after)}")
    return f"{'; '.join(said)}."


def _differences(before: Json, after: Json) -> list[str]:
    found = []
    for what in ("cpu", "cores", "gpus", "memory_gib", "system"):
        old, new = (report["environment"]["machine"].get(what) for report in (before, after))
        if old != new and not (what == "memory_gib" and abs((old or 0) - (new or 0)) < 0.5):
            found.append(f"another machine: {what} {_shown(old)} before, {_shown(new)} after")
    for what in _VERSIONS:
        old, new = (report["environment"]["versions"].get(what) for report in (before, after))
        if old != new:
            found.append(f"another version: {what} {_shown(old)} before, {_shown(new)} after")
    for what in ("entry", "data", "model", "size", "batch_size", "device", "precision", "num_ranks"):
        old, new = (report["run"].get(what) for report in (before, after))
        if old != new:
            found.append(f"another run: {what.replace('_', ' ')} {_shown(old)} before, {_shown(new)} after")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not known" if value is None else str(value)
