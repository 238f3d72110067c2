"""Reports as they are read again: from JSON, with what pages, pictures and comparisons ask of them.

Everything in here and above it (terminal, page, plots, compare) works on the report's JSON, so that a file that was
written on another machine is said and drawn as one that has just been measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastload.errors import ConfigError, printable
from fastload.profiling.report import SCHEMA, VERSION

Json = dict[str, Any]


def read_report(file: Path) -> Json:
    """Return the report in a file.

    Raises:
        ConfigError: no such file, or no report of this version.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{printable(file)}: no such file; write one with: bench gpu-util ... --json FILE") from None
    except OSError as e:
        raise ConfigError(f"{printable(file)} cannot be read ({e.strerror}); give a file that --json wrote.") from None
    except ValueError:
        raise ConfigError(f"{printable(file)} is no JSON; give a file that `bench gpu-util --json` wrote.") from None
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ConfigError(f"{printable(file)} is no report of this kind; give one that `bench gpu-util --json` wrote.")
    if report.get("version") != VERSION:
        raise ConfigError(
            f"{printable(file)} is a report of version {printable(report.get('version'))}, this is version {VERSION}; "
            "measure again."
        )
    missing = {"environment", "run", "loops", "verdict", "cause", "resident_gain", "actions"} - report.keys()
    if missing:
        raise ConfigError(f"{printable(file)} is not whole, {', '.join(sorted(missing))} is missing; measure again.")
    return report


def one_of_each(report: Json) -> list[Json]:
    """Return one loop of each name, in their order: of several ranks, the one that waited most."""
    found: dict[str, Json] = {}
    for loop in report["loops"]:
        other = found.get(loop["name"])
        if other is None or (loop["wait"]["share"] or 0) > (other["wait"]["share"] or 0):
            found[loop["name"]] = loop
    return list(found.values())


def main_loop(report: Json) -> Json | None:
    """Return the loop that the report is about; None where none was seen."""
    return next(iter(one_of_each(report)), None)


def rate_of(loop: Json | None, which: str = "x_real") -> float | None:
    """Return a throughput of a loop in images/s; None where it was not measured."""
    rate = None if loop is None else loop["throughput"][which]
    return None if rate is None else float(rate["value"])


def duration(seconds: float | None) -> str:
    """Return a time for people: 0.42 ms, 12 ms, 3.1 s."""
    if seconds is None:
        return "not measured"
    if seconds >= 100:
        return f"{seconds / 60:,.0f} min" if seconds >= 600 else f"{seconds:,.0f} s"
    value, unit = (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms")
    return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"


def percent(share: float | None) -> str:
    """Return a share for people."""
    return "not measured" if share is None else f"{share:.0%}" if share >= 0.0095 or share <= 0 else f"{share:.1%}"


def shown(value: float | None, unit: str) -> str:
    """Return a figure of a comparison for people; of unit `share`, `seconds`, or a rate's."""
    return percent(value) if unit == "share" else duration(value) if unit == "seconds" else number(value)


def number(value: float | None) -> str:
    """Return a rate for people: three digits at least."""
    return "not measured" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def memory(num_bytes: float | None) -> str:
    """Return bytes for people."""
    if num_bytes is None:
        return "not measured"
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def step_parts(loop: Json) -> list[tuple[str, str, float]]:
    """Return where one mean step goes: key, what it is, seconds; nothing where no step counted."""
    mean, count, wait = loop["step_seconds"]["mean"], loop["steps"]["count"], loop["wait"]
    if not mean or not count or wait["seconds"] is None:
        return []
    waited, own = wait["seconds"] / count, (wait["own_seconds"] or 0.0) / count
    parts = [("wait", "waiting for data", waited)]
    if own > 0:
        parts.append(("own", "copy and augmentation", own))
    return [*parts, ("work", "the step itself", max(0.0, mean - waited - own))]
