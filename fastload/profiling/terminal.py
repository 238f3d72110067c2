"""A report on the terminal: verdict, why, where a step goes, what each way of feeding gives, and what to do next."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastload.errors import printable
from fastload.profiling.compare import Comparison
from fastload.profiling.reading import (
    Json,
    duration,
    main_loop,
    memory,
    number,
    one_of_each,
    percent,
    rate_of,
    shown,
    step_parts,
)

COLOURS = {"INPUT-BOUND": "red", "NOT INPUT-BOUND": "green", "INCONCLUSIVE": "bright_black"}
PARTS = {"wait": ("yellow", "█"), "own": ("magenta", "▓"), "work": ("blue", "░")}
BAR_WIDTH = 60
MAX_EVIDENCE = 12
NOISE = 0.1  # a run this much above its ceiling was measured on a machine that others used


class Terminal(Console):
    """rich's console for what is said beside somebody's own program: where nobody reads, it raises, and ends nothing.

    Raises:
        OSError: printed to a pipe whose reader ended (rich's own console raises SystemExit), or a closed terminal.
    """

    def on_broken_pipe(self) -> NoReturn:
        """Pass the error on, which rich is handling."""
        raise


def say(report: Json, console: Console, reached_gain: float | None = None) -> None:
    """Print a report; nothing in it that comes from data can steer the terminal.

    Args:
        report: as JSON.
        console: where to.
        reached_gain: times the images/s that a converted dataset gave, where one was run beside.
    """
    loop = main_loop(report)
    _say_verdict(report, console)
    if loop is not None:
        _say_step(loop, console)
        _say_loops(report, console)
    _say_next(report, console, reached_gain)


def say_comparison(comparison: Comparison, console: Console) -> None:
    """Print what changed between two reports."""
    _line(console, Text(printable(comparison.summary), style="bold"))
    for name in dict.fromkeys(row.loop for row in comparison.rows):
        table = _table(printable(name), ("before", "after", "change", ""))
        for row in comparison.rows:
            if row.loop == name:
                change = "" if row.ratio is None else f"{row.ratio:.2f} times"
                noise = "within the noise" if row.noise else ""
                table.add_row(row.what, shown(row.before, row.unit), shown(row.after, row.unit), change, noise)
        console.print(table)
    for warning in comparison.warnings:
        _line(console, Text(f"Mind: {printable(warning)}", style="yellow"))


def _say_verdict(report: Json, console: Console) -> None:
    verdict, cause = report["verdict"], report["cause"]
    said = Text(verdict["word"], style=f"bold {COLOURS.get(verdict['word'], 'yellow')}")
    _line(console, said.append(f": {printable(verdict['why'])}", style="default not bold"))
    if verdict["confidence"] != "high":
        _line(console, Text(f"Confidence: {verdict['confidence']}.", style="bright_black"))
    if cause is None:
        return
    _line(
        console, Text("Cause: ").append(printable(cause["word"]), style="bold").append(f". {printable(cause['why'])}")
    )
    for seen in cause["evidence"][:MAX_EVIDENCE]:
        _line(console, Text(f"  {printable(seen)}", style="bright_black"))


def _say_step(loop: Json, console: Console) -> None:
    mean, parts = loop["step_seconds"]["mean"], step_parts(loop)
    if not parts:
        return
    bar, legend = Text(), Text()
    for key, name, seconds in parts:
        colour, block = PARTS[key]
        bar.append(block * round(BAR_WIDTH * seconds / mean), style=colour)
        legend.append(f"{block} ", style=colour).append(f"{name} {duration(seconds)} ({seconds / mean:.0%})   ")
    _line(console, Text(f"\nOne step, {duration(mean)}:"))
    _line(console, bar)
    _line(console, legend)
    console.print()


def _say_loops(report: Json, console: Console) -> None:
    loops, run = one_of_each(report), report["run"]
    ranks = report["loops"] if len(report["loops"]) > len(loops) else []
    about = [run["model"], run["size"] and f"{run['size']} pixels", run["batch_size"] and
             f"batches of {run['batch_size']}", "CPU training" if run["device"] == "cpu" else run["device"],
             run["data"]]  # fmt: skip
    columns = {
        "images/s": [number(rate_of(loop)) for loop in loops],
        "data wait": [percent(loop["wait"]["share"]) for loop in loops],
        "loader alone": [number(rate_of(loop, "x_load")) for loop in loops],
        "ceiling": [number(rate_of(loop, "x_replay")) for loop in loops],
        "memory": ["" if loop["memory_bytes"] is None else memory(loop["memory_bytes"]) for loop in loops],
        "steps": [f"{loop['steps']['count']:,}" for loop in loops],
    }
    columns = {name: cells for name, cells in columns.items() if set(cells) - {"not measured", ""}}
    table = _table("loop", tuple(columns), title=", ".join(printable(word) for word in about if word))
    for number_, loop in enumerate(loops):
        table.add_row(Text(printable(loop["name"])), *(cells[number_] for cells in columns.values()))
    console.print(table)
    for loop in loops[1:] if run["entry"] == "bench" else ():  # a script's other loops are not what it is about
        _line(
            console, Text(f"{printable(loop['name'])}: {loop['verdict']['word']}: {printable(loop['verdict']['why'])}")
        )
    if ranks:
        _say_ranks(loops[0]["name"], ranks, console)
    if any(loop["headspace"] is not None and loop["headspace"] < -NOISE for loop in loops):
        _line(console, Text("The run came out faster than its ceiling: this machine was busy with other things; run it "
                            "again.", style="yellow"))  # fmt: skip


def _say_ranks(name: str, loops: list[Json], console: Console) -> None:
    table = _table("rank", ("images/s", "data wait", "step p50", "steps"), title=printable(name))
    for loop in loops:
        if loop["name"] == name:
            table.add_row(str(loop["rank"]), number(rate_of(loop)), percent(loop["wait"]["share"]),
                          duration(loop["step_seconds"]["p50"]), f"{loop['steps']['count']:,}")  # fmt: skip
    console.print(table)


def _say_next(report: Json, console: Console, reached_gain: float | None) -> None:
    gain = report["resident_gain"]
    if gain is not None:
        much = f"{gain['speedup']:.2f} times the images/s"
        much = much if gain["speedup"] >= 1.05 else f"next to nothing ({much})"
        images = f" for {gain['num_images']:,} images" if gain["num_images"] else ""
        room = f", and takes {memory(gain['memory_bytes'])}{images}" if gain["memory_bytes"] else ""
        reached = "" if reached_gain is None else f"; {reached_gain:.2f} times reached"
        _line(console, Text(f"Converting gains {much} ({gain['basis']}{reached}){room}."))
    for place, action in enumerate(report["actions"]):
        more = "" if action["gain"] is None else f" {action['gain']:.2f} times the images/s ({action['basis']})."
        _line(console, Text("Next: " if place == 0 else "Or: ", style="bold").append(
            f"{printable(action['text'])}{more}", style="not bold"))  # fmt: skip
        if action["command"]:
            _line(console, Text(f"  {printable(action['command'])}", style="cyan"))


def _table(first: str, names: tuple[str, ...], title: str | None = None) -> Table:
    table = Table(
        title=None if title is None else Text(title, style="italic"), title_justify="left", box=None, pad_edge=False
    )
    table.add_column(Text(first), overflow="fold")
    for name in names:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def _line(console: Console, text: Text) -> None:
    # Never broken where a terminal ends: a command is pasted as it stands.
    console.print(text, soft_wrap=True, highlight=False)
