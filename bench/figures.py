"""`bench figures`: the figures of the READMEs come from bench/results/*.json, and from nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCUMENTS = ("README.md", "recipes/README.md")
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ROWS = re.compile(r"(<!-- rows: (\w+(?: \w+)*) -->\n).*?(<!-- end -->)", re.DOTALL)


def update(root: Path, *, check: bool) -> bool:
    """Write every block `<!-- figures: NAME -->` of the documents anew from `bench/results/NAME.json`.

    `<!-- rows: NAME NAME ... -->` is a table of training runs, a row each.

    Args:
        root: the repository.
        check: change nothing; return False where a block differs.
    """

    def result_of(name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((root / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        return content

    def block(match: re.Match[str]) -> str:
        result = result_of(match[2])
        return f"{match[1]}{_RENDER[result['schema']](result)}\n{_origin(result, match[2])}\n{match[3]}"

    def rows(match: re.Match[str]) -> str:
        return f"{match[1]}{_table({name: result_of(name) for name in match[2].split()})}\n{match[3]}"

    same = True
    for name in DOCUMENTS:
        document = root / name
        if not document.exists():
            continue
        old = document.read_text(encoding="utf-8")
        new = _ROWS.sub(rows, _BLOCK.sub(block, old))
        same = same and new == old
        if check and new != old:
            print(f"{name} differs from bench/results; run: bench figures")
        elif new != old:
            document.write_text(new, encoding="utf-8")
    return same or not check


def outcome(result: dict[str, Any]) -> str:
    """Return what a training run came to, in the words that a recipe's header and the table of recipes use."""
    if result["schema"] == "fastload-runs":
        shown = f"{result['accuracy']:.1%} ({result['what']}, deviation {result['deviation']:.1%})"
        return f"{shown}; {result['beside']}" if result.get("beside") else shown
    last, best = result["epochs"][-1], result["best"]
    if last.get("mean_absolute_error") is not None:
        beside = ", ".join(f"{name} {error:.2f}" for name, error in result.get("baselines", {}).items())
        return f"mean absolute error {last['mean_absolute_error']:.2f}" + (f"; {beside}" if beside else "")
    if last["accuracy"] is None:
        return f"training loss {last['train_loss']:.3f}"
    shown, best_shown = f"{last['accuracy']:.1%}", f"{best['accuracy']:.1%}"
    return shown if shown == best_shown else f"{shown} (best epoch {best_shown})"


def _table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| command | data | epochs | seconds | accuracy after the last epoch | measured |",
        "|---|---|---:|---:|---|---|",
    ]
    for name, result in results.items():
        machine, data = result["machine"], result["data"]
        where = ", ".join(machine["gpus"]) or f"{machine['cores']} cores of {machine['cpu']}"
        epochs = result["config"]["epochs"] if result["schema"] == "fastload-runs" else len(result["epochs"])
        lines.append(
            f"| `{result['command']}` | {data['name']}, {data['train']:,} | {epochs} | {result['seconds']:,.0f} | "
            f"{outcome(result)} | [{where}, torch {result['versions']['torch']}, {result['date']}]"
            f"(../bench/results/{name}.json) |"
        )
    return "\n".join(lines)


def _origin(result: dict[str, Any], name: str) -> str:
    result = {**result, **result.get("environment", {})}
    machine, versions = result["machine"], result["versions"]
    where = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['cores']} cores"
    return (
        f"\n*{where}; torch {versions['torch']}, Python {versions['python']}; {result['date']}; "
        f"`{result['command']}`; [all of it](bench/results/{name}.json)*"
    )


def _train(result: dict[str, Any]) -> str:
    best, config, data = result["best"], result["config"], result["data"]
    return (
        f"{result['model']} from scratch on {data['name']} ({data['train']:,} training images stored at "
        f"{data['image'][0]} px, trained at {result.get('crop', result['size'])} px, {result['precision']}): "
        f"**{best['accuracy']:.1%}** validation accuracy after epoch {best['epoch'] + 1} of {config['epochs']}, "
        f"**{result['seconds'] / 60:.1f} minutes** in all, data wait {result['data_wait']:.1%}."
    )


def _loader(result: dict[str, Any]) -> str:
    baseline = result["baseline"]
    lines = [f"| loader alone | images/s | times {baseline} | first batch, s |", "|---|---:|---:|---:|"]
    for name, speed in result["images_per_second"].items():
        ratio, first = result["ratio_to_baseline"][name], result["first_batch_seconds"][name]
        lines.append(f"| {name} | {speed:,} | {ratio:.1f} | {first:.2f} |")
    return "\n".join(lines)


def _gpu_util(result: dict[str, Any]) -> str:
    lines = ["| fed by | images/s | data wait | loader alone | ceiling |", "|---|---:|---:|---:|---:|"]
    for loop in result["loops"]:
        real, load, replay = (
            "not measured" if rate is None else f"{rate['value']:,.0f}" for rate in loop["throughput"].values()
        )
        lines.append(f"| {loop['name']} | {real} | {loop['wait']['share']:.0%} | {load} | {replay} |")
    verdict, first = result["verdict"], result["loops"][0]["name"]
    return "\n".join([*lines, "", f"{first}: {verdict['word']}: {verdict['why']}"])


def _convert(result: dict[str, Any]) -> str:
    lines = ["| | images/s | CPU ms per image |", "|---|---:|---:|"]
    for name, speed in result["images_per_second"].items():
        lines.append(f"| {name} | {speed:,.0f} | {result['cpu_ms_per_image'][name]:.2f} |")
    decibels = result["psnr_db"]
    told = (
        f"Pixels against Pillow's: median {decibels['median']} dB, lowest {decibels['lowest']} dB. "
        f"Peak memory: {result['peak_memory_mib']:,} MiB with all processes."
    )
    return "\n".join([*lines, "", told])


def _augment(result: dict[str, Any]) -> str:
    ours = result["results"]
    peers = list(next(iter(ours.values())))
    lines = [
        f"| ms per {result['settings']['batch_size']} images | {' | '.join(peers)} |",
        f"|---|{'---:|' * len(peers)}",
    ]
    for pipeline, row in ours.items():
        shown = []
        for peer in peers:
            if peer not in row:
                shown.append("")
            elif peer == peers[0]:
                shown.append(_milliseconds(row[peer]["ms"]))
            else:
                shown.append(f"{_milliseconds(row[peer]['ms'])} ({row[peer]['fastload_is_times_faster']:.1f}x)")
        lines.append(f"| {pipeline} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _milliseconds(value: float) -> str:
    """Return whole ones, and below ten two digits that count: a GPU takes less than one."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:#.2g}"


def _memory(result: dict[str, Any]) -> str:
    lines = [
        "| placement | dataset, MiB | added at most, MiB | beyond the dataset, batches | last epochs to first, MiB |"
    ]
    lines.append("|---|---:|---:|---:|---:|")
    for name, row in result["placements"].items():
        lines.append(
            f"| {name} | {result['data']['mib']:,.0f} | {row['added_mib']:,.1f} | {row['batches']:.1f} | "
            f"{row['growth_mib']:+.1f} |"
        )
    once = max(row["once_mib"] for row in result["placements"].values())
    return "\n".join([*lines, "", f"Before that, once in a process: {once:,.0f} MiB."])


def _growth(result: dict[str, Any]) -> str:
    lines = ["| images of 32 px | host, images/s | mapped, images/s | opened in, s |", "|---:|---:|---:|---:|"]
    for row in result["sizes"]:
        speed = row["images_per_second"]
        lines.append(f"| {row['images']:,} | {speed['host']:,} | {speed['mapped']:,} | {row['open_seconds']:.3f} |")
    return "\n".join(lines)


def _training(result: dict[str, Any]) -> str:
    lines = ["| | validation accuracy, mean (lowest to highest) | seconds |", "|---|---:|---:|"]
    for name, spread in result["accuracy"].items():
        lines.append(
            f"| {name} | {spread['mean']:.1%} ({spread['lowest']:.1%} to {spread['highest']:.1%}) | "
            f"{result['seconds'][name]:,.0f} |"
        )
    settings, runs = result["settings"], len(result["runs"]["recipe"])
    seeds = f"{runs} seeds" if runs > 1 else "one seed"
    told = (
        f"{settings['model']}, {settings['epochs']} epochs of {result['data']['train']:,} images at "
        f"{settings['size']} px, {seeds}: the recipe is {result['times_faster']:.2f} times as fast; converting took "
        f"{result['convert_seconds']:.0f} s, once."
    )
    return "\n".join([*lines, "", told])


_RENDER: dict[str, Callable[[dict[str, Any]], str]] = {
    "fastload-train": _train,
    "fastload-bench-loader": _loader,
    "fastload-bench-memory": _memory,
    "fastload-bench-growth": _growth,
    "fastload-bench-convert": _convert,
    "fastload-bench-augment": _augment,
    "fastload-gpu-util": _gpu_util,
    "fastload-bench-training": _training,
}
