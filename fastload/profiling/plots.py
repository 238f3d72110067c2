"""A report as a picture, through matplotlib: for slides and papers. The page says more."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from fastload.errors import ConfigError, printable
from fastload.files import write_whole
from fastload.profiling.reading import Json, duration, main_loop, number, one_of_each, rate_of, step_parts

WAIT, WORK, OWN, LINE, SOFT = "#d9782d", "#8fb0c9", "#b9a7d6", "#b4471f", "#6a6f76"
MAX_BARS = 12
MAX_STEPS = 400


def need_matplotlib() -> Any:
    """Return matplotlib's Figure.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            '--png draws with matplotlib, which is not installed; run: pip install "fastload[plot]"'
        ) from None
    return Figure


def write_png(report: Json, file: Path) -> None:
    """Draw a report, 1600 x 1000 pixels, whole or not at all.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = need_matplotlib()(figsize=(16, 10), dpi=100, layout="constrained")
    # Plain text everywhere: a $ in a name is no formula.
    figure.suptitle(f"{report['verdict']['word']}: {_plain(report['verdict']['why'])}", x=0.01, ha="left", wrap=True,
                    fontsize=15, parse_math=False)  # fmt: skip
    axes = figure.subplots(2, 2)
    loop = main_loop(report)
    if loop is not None:
        _draw_step(axes[0][0], loop)
        _draw_rates(axes[0][1], report)
        _draw_timeline(axes[1][0], loop)
        _draw_waits(axes[1][1], loop)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        if not ax.has_data():
            ax.set_axis_off()
            ax.text(0.5, 0.5, "not measured", ha="center", color=SOFT)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_whole(file, [png.getvalue()])


def _draw_step(ax: Any, loop: Json) -> None:
    parts, left = step_parts(loop), 0.0
    for (key, name, seconds), hatch in zip(parts, ("", "..", "//"), strict=False):
        colour = {"wait": WAIT, "own": OWN, "work": WORK}[key]
        ax.barh([0], [seconds], left=[left], color=colour, hatch=hatch, label=f"{name}, {duration(seconds)}")
        left += seconds
    if parts:
        ax.set_title("Where one step goes", loc="left")
        ax.set_yticks([])
        ax.set_ylim(-1.2, 1.2)
        ax.set_xlabel("seconds")
        ax.legend(frameon=False, loc="upper left")


def _draw_rates(ax: Any, report: Json) -> None:
    loops = [loop for loop in one_of_each(report) if rate_of(loop) is not None][:MAX_BARS]
    if not loops:
        return
    rates = [rate_of(loop) or 0.0 for loop in loops]
    bars = ax.barh(range(len(loops)), rates, color=WORK)
    ax.bar_label(bars, [number(rate) for rate in rates], padding=4)
    ax.set_yticks(range(len(loops)), [_plain(loop["name"])[:48] for loop in loops], parse_math=False)
    ax.invert_yaxis()
    ceiling = next((rate for loop in loops if (rate := rate_of(loop, "x_replay"))), None)
    if ceiling is not None:
        ax.axvline(ceiling, color=LINE, linestyle="--", label=f"ceiling, {number(ceiling)}")
        ax.legend(frameon=False, loc="lower right")
    ax.margins(x=0.12)
    ax.set_title("Images per second", loc="left")


def _draw_timeline(ax: Any, loop: Json) -> None:
    series = loop["series"]
    every = max(1, len(series["step_seconds"]) // MAX_STEPS)
    times, steps, waits = (series[name][::every] for name in ("time", "step_seconds", "wait_seconds"))
    if times:
        ax.fill_between(times, steps, step="mid", color=WORK, label="the step", linewidth=0)
        ax.fill_between(times, waits, step="mid", color=WAIT, label="waiting for data", linewidth=0)
        ax.set(xlabel="seconds", ylabel="seconds per step", ylim=(0, None))
        ax.set_title("Step by step", loc="left")
        ax.legend(frameon=False, loc="upper right")


def _draw_waits(ax: Any, loop: Json) -> None:
    waits = loop["series"]["wait_seconds"]
    if waits:
        ax.hist([1e3 * wait for wait in waits], bins=30, color=WAIT)
        ax.set(xlabel="milliseconds waited for data", ylabel="steps")
        ax.set_title("How long the steps waited", loc="left")


def _plain(text: object) -> str:
    return printable(text)
