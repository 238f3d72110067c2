"""A report as one page: no scripts, nothing from outside, small, for screens of any width and for paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastload.profiling import charts
from fastload.profiling.charts import figure, safe
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

MAX_BYTES = 100_000
MAX_ROWS = 64  # of ranks and loops in the table, 24 of them in bars
MAX_TEXT = 2000
MOODS = {"INPUT-BOUND": "bad", "NOT INPUT-BOUND": "good", "INCONCLUSIVE": "faint"}
_STYLE = Path(__file__).with_name("page.css")


def page(report: Json, comparison: Comparison | None = None) -> str:
    """Return a report as HTML.

    Args:
        report: as JSON.
        comparison: with an earlier one, shown beside it.
    """
    loop = main_loop(report)
    drawn = "" if loop is None else _charts(report, loop)
    body = "".join((
        _header(report), "" if comparison is None else _changes(comparison), _actions(report), drawn, _table(report),
        _footer(report),
    ))  # fmt: skip
    style = _STYLE.read_text(encoding="utf-8").replace("\n", "")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{safe(report['verdict']['word'])}, {_cut(report['run']['data'] or 'bench gpu-util')}</title>"
        f"<style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def _header(report: Json) -> str:
    verdict, cause, run = report["verdict"], report["cause"], report["run"]
    what = [run["model"], run["data"], run["size"] and f"{run['size']} px", run["batch_size"] and
            f"batches of {run['batch_size']}", run["precision"] not in (None, "no") and run["precision"],
            f"{run['num_ranks']} processes" if run["num_ranks"] > 1 else None]  # fmt: skip
    device = "CPU training" if run["device"] == "cpu" else run["device"]
    said = ", ".join(_cut(word) for word in [*what, device] if word)
    because = ""
    if cause is not None:
        seen = "".join(f"<li>{_cut(text)}</li>" for text in cause["evidence"])
        because = f"<p class='lead'><b>{_cut(cause['word'])}.</b> {_cut(cause['why'])}</p>"
        because += f"<ul class='plain soft'>{seen}</ul>" if seen else ""
    sure = f" <span class='soft'>&middot; {safe(verdict['confidence'])} confidence</span>"
    return (
        f"<header><p class='word {MOODS.get(verdict['word'], 'mild')}'>{safe(verdict['word'])}{sure}</p>"
        f"<h1>{_sentence(verdict['why'])}</h1>{because}<p class='soft'>{said}</p></header>"
    )


def _sentence(text: str) -> str:
    return _cut(text[:1].upper() + text[1:])


def _cut(text: object) -> str:
    return safe(str(text)[:MAX_TEXT])


def _actions(report: Json) -> str:
    gain, rows = report["resident_gain"], []
    for action in report["actions"][:8]:
        more = "" if action["gain"] is None else f" <span class='soft'>{_gain(action['gain'], action['basis'])}</span>"
        command = f"<pre><code>{_cut(action['command'])}</code></pre>" if action["command"] else ""
        rows.append(f"<p>{_sentence(action['text'])}{more}</p>{command}")
    if gain is not None:
        images = f" for {gain['num_images']:,} images" if gain["num_images"] else ""
        room = f", in {memory(gain['memory_bytes'])}{images}" if gain["memory_bytes"] else ""
        rows.append(f"<p class='note'>Converted: {_gain(gain['speedup'], gain['basis'])}{room}.</p>")
    return f"<section><h2>What to do next</h2>{''.join(rows)}</section>" if rows else ""


def _gain(times: float, basis: str | None) -> str:
    much = f"{times:.2f} times the images/s" if abs(times - 1) >= 0.005 else "as many images/s as now"
    return f"{much}{f' ({safe(basis)})' if basis else ''}"


def _charts(report: Json, loop: Json) -> str:
    drawn = [_step(loop), _throughput(report), _timeline(loop), _waits(loop), _use(loop)]
    return f"<div class='grid'>{''.join(drawn)}</div>"


def _step(loop: Json) -> str:
    mean, parts = loop["step_seconds"]["mean"], step_parts(loop)
    if not parts:
        return ""
    said = [(key, name, seconds, f"{duration(seconds)}, {seconds / mean:.0%}") for key, name, seconds in parts]
    alt = f"One step of {duration(mean)}: " + ", ".join(f"{name} {words}" for _, name, _, words in said)
    return figure(f"Where one step of {duration(mean)} goes", charts.stacked_bar(said, alt), wide=True)


def _throughput(report: Json) -> str:
    rows, ceiling = [], None
    loops = one_of_each(report)[:24]
    for loop in loops:
        for which, key in (("x_real", "work"), ("x_load", "load")):
            rate = loop["throughput"][which]
            if rate is None and which == "x_load":
                continue
            name = loop["name"] if which == "x_real" else "its loader alone"
            words = number(None if rate is None else rate["value"])
            rows.append((key, str(name)[:200], rate and rate["value"], words, rate and rate["interval"]))
        ceiling = ceiling or rate_of(loop, "x_replay")
    # A loader alone may be a hundred times the ceiling: it is then as good as endless, and is drawn cut.
    most = max([ceiling or 0.0, *(row[2] for row in rows if row[0] == "work" and row[2])], default=0.0)
    shown = [(k, n, min(v, 1.6 * most) if v and k == "load" and most else v, w, i if k == "work" else None)
             for k, n, v, w, i in rows]  # fmt: skip
    note = "<i class='line'></i>ceiling, the same step on batches that are already there: " + (
        f"<b>{number(ceiling)}</b>" if ceiling else "not measured"
    )
    if any(value != cut for (*_, value, _, _), (*_, cut, _, _) in zip(rows, shown, strict=True)):
        note += ". A loader alone far above it is drawn shorter than it is."
    alt = "Images per second: " + ", ".join(f"{n} {w}" for _, n, _, w, _ in rows)
    return figure("Images per second", charts.bar_rows(shown, ceiling, f"{alt}, ceiling {number(ceiling)}"),
                  note, wide=True)  # fmt: skip


def _timeline(loop: Json) -> str:
    series = loop["series"]
    if not series["step_seconds"]:
        return ""
    marks, top = charts.timeline(series["step_seconds"], series["wait_seconds"])
    count = len(series["step_seconds"])
    alt = f"Duration of {count} steps in their order, and the part of each that was wait; the highest {duration(top)}"
    ends = ("begin", f"{count:,} steps, {duration(series['time'][-1] - series['time'][0])}")
    legend = (
        "<ul class='legend'><li><i class='wait'></i>waiting for data</li><li><i class='work'></i>the step</li></ul>"
    )
    return figure("Step by step", charts.plot(marks, alt, y=duration(top), x=ends) + legend, wide=True)


def _waits(loop: Json) -> str:
    waits = loop["series"]["wait_seconds"]
    if not waits:
        return ""
    marks, top, most = charts.histogram(waits)
    middle = sorted(waits)[len(waits) // 2]
    alt = f"How long steps waited for data: half of them less than {duration(middle)}, 99 of 100 up to {duration(top)}"
    plot = charts.plot(marks, alt, y=f"{most:,} steps", x=("0", f"{duration(top)} or more"))
    return figure("How long the steps waited", plot,
                  f"Half of them waited {duration(middle)} or less for data.")  # fmt: skip


def _use(loop: Json) -> str:
    gpu, system, parts = loop["gpu"], loop["system"], []
    nvml = gpu["nvml"]
    if nvml is not None:
        shares = [None if v is None else v / 100 for v in charts.binned(loop["series"]["nvml"])]
        if not shares:
            shares = [n / max(1, nvml["num_samples"]) for n in nvml["histogram"]]
        told = f"GPU utilization as the driver sees it, {percent(nvml['zeros_share'])} of the time at 0"
        parts.append(f"<p class='note'>{told}</p>{charts.strip(shares, told)}")
    if gpu["busy_share"] is not None:
        parts.append(f"<p>A kernel ran for <b>{percent(gpu['busy_share'])}</b> of a short window of steps.</p>")
    if not parts:
        parts.append("<p class='soft'>GPU: not measured.</p>")
    loads = system["cpu_per_core"]
    if loads:
        told = f"{len(loads)} cores, {percent(math.fsum(loads) / len(loads))} of them busy"
        parts.append(f"<p class='note'>{told}</p>{charts.strip(_some(loads), told)}")
    facts = _facts(gpu, system)
    parts.append(f"<ul class='facts'>{facts}</ul>" if facts else "")
    return figure("Meanwhile on this machine", "".join(parts))


def _some(loads: list[float]) -> list[float | None]:
    return (
        [max(loads[i * len(loads) // 64 : (i + 1) * len(loads) // 64]) for i in range(64)]
        if len(loads) > 64
        else [*loads]
    )


def _facts(gpu: Json, system: Json) -> str:
    workers = system["worker_cpu"]
    known: list[tuple[str, Any]] = [
        ("training process", system["process_cpu"] is not None and f"{system['process_cpu']:.1f} cores"),
        ("its workers", workers and f"{math.fsum(workers):.1f} cores"),
        ("read from disk", system["disk_read_bytes_per_second"] is not None
         and f"{memory(system['disk_read_bytes_per_second'])}/s"),
        ("memory of all processes", system["resident_bytes"] and memory(system["resident_bytes"])),
        ("GPU memory", gpu["memory_bytes"] and memory(gpu["memory_bytes"])),
    ]  # fmt: skip
    return "".join(f"<li>{name} <b>{safe(value)}</b></li>" for name, value in known if value)


def _table(report: Json) -> str:
    loops = report["loops"]
    if not loops:
        return ""
    many = report["run"]["num_ranks"] > 1
    heads = ["loop", *(["rank"] if many else []), "steps", "images/s", "data wait", "step p50", "p95", "verdict"]
    rows = []
    for loop in loops[:MAX_ROWS]:
        cells = [loop["name"][:200], *([loop["rank"]] if many else []), f"{loop['steps']['count']:,}",
                 number(rate_of(loop)), percent(loop["wait"]["share"]), duration(loop["step_seconds"]["p50"]),
                 duration(loop["step_seconds"]["p95"]), loop["verdict"]["word"]]  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{safe(cell)}</td>" for cell in cells) + "</tr>")
    left = f"<p class='note'>and {len(loops) - MAX_ROWS} more</p>" if len(loops) > MAX_ROWS else ""
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    return (
        f"<section><h2>Every loop</h2><div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{left}</section>"
    )


def _changes(comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row.loop == comparison.rows[0].loop][:12]
    speed = [row for row in rows if row.key == "x_real" and row.before and row.after]
    bars = ""
    if speed:
        before, after = speed[0].before, speed[0].after
        bars = charts.bar_rows([("before", "before", before, number(before), None),
                                ("work", "after", after, number(after), None)], None,
                               f"Images per second: {number(before)} before, {number(after)} after")  # fmt: skip
    cells = "".join(
        f"<tr><td>{safe(row.what)}</td><td>{shown(row.before, row.unit)}</td><td>{shown(row.after, row.unit)}</td></tr>"
        for row in rows
    )
    warned = "".join(f"<li>{_cut(text)}</li>" for text in comparison.warnings[:24])
    heads = "".join(f"<th scope='col'>{name}</th>" for name in ("", "before", "after"))
    return (
        f"<section><h2>Before and after</h2><p class='lead'>{_cut(comparison.summary)}</p>{bars}<div class='scroll'>"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table></div>"
        f"{f'<ul class=plain>{warned}</ul>' if warned else ''}</section>"
    )


def _footer(report: Json) -> str:
    environment = report["environment"]
    machine, versions = environment["machine"], environment["versions"]
    where = ", ".join([*machine["gpus"], f"{machine['cpu']}, {machine['cores']} cores", f"{machine['memory_gib']} GiB"])
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"<footer><p>{_cut(where)}; {_cut(machine['system'])}; {_cut(packages)}.</p>"
        f"<p>{_cut(environment['date'])} &middot; <code>{_cut(environment['command'])}</code></p></footer>"
    )
