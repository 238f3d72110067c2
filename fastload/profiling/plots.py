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
    figure.suptitle(f"{report['verdict']['word']}: {printable(report['verdict']['why'])}", x=0.01, ha="left", wrap=True,
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
    for key, name, seconds in parts:
        colour = {"wait": WAIT, "own": OWN, "work": WORK}[key]
        ax.barh([0], [1e3 * seconds], left=[left], color=colour, label=f"{name}, {duration(seconds)}")
        left += 1e3 * seconds
    if parts:
        ax.set_title("Where one step goes", loc="left")
        ax.set(yticks=[], ylim=(-0.6, 1.6), xlabel="milliseconds", xlim=(0, left))
        ax.spines["left"].set_visible(False)
        ax.legend(frameon=False, loc="upper left", borderaxespad=0)


def _draw_rates(ax: Any, report: Json) -> None:
    loops = [loop for loop in one_of_each(report) if rate_of(loop) is not None][:MAX_BARS]
    if not loops:
        return
    rates = [rate_of(loop) or 0.0 for loop in loops]
    ax.barh(range(len(loops)), rates, color=WORK, height=0.7)
    for place, loop in enumerate(loops):
        # On the bars: names are long, and beside them would leave the bars no room.
        ax.text(0, place, f"  {number(rates[place])}   {printable(loop['name'])[:64]}", va="center", parse_math=False)
    ceiling = next((rate for loop in loops if (rate := rate_of(loop, "x_replay"))), None)
    if ceiling is not None:
        ax.axvline(ceiling, color=LINE, linestyle="--")
    said = "" if ceiling is None else f", ceiling {number(ceiling)} (dashed)"
    ax.set(yticks=[], ylim=(max(3, len(loops)) - 0.4, -0.6), xlim=(0, 1.08 * max([*rates, ceiling or 0.0])))
    ax.set_title(f"Images per second{said}", loc="left")


def _draw_timeline(ax: Any, loop: Json) -> None:
    series = loop["series"]
    every = max(1, len(series["step_seconds"]) // MAX_STEPS)
    times, steps, waits = (series[name][::every] for name in ("time", "step_seconds", "wait_seconds"))
    if times:
        ax.fill_between(times, steps, step="mid", color=WORK, label="the step", linewidth=0)
        ax.fill_between(times, waits, step="mid", color=WAIT, label="waiting for data", linewidth=0)
        ax.set(xlabel="seconds", ylabel="seconds per step", ylim=(0, None))
        ax.set_title("Step by step", loc="left")
        ax.legend(loc="upper right", framealpha=0.8, edgecolor="none")


def _draw_waits(ax: Any, loop: Json) -> None:
    waits = loop["series"]["wait_seconds"]
    if waits:
        ax.hist([1e3 * wait for wait in waits], bins=30, color=WAIT)
        ax.set(xlabel="milliseconds waited for data", ylabel="steps")
        ax.set_title("How long the steps waited", loc="left")
