"""What watched processes wrote, as one report."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastload.errors import printable
from fastload.profiling.actions import UPPER_BOUND, Advice, advise, folder_to_convert, resident_bytes, stored_side
from fastload.profiling.hook.steps import NUM_WARMUP
from fastload.profiling.loops import IN_MEMORY, Feeding, Measured, image_side, make_loop, worst
from fastload.profiling.report import Action, Loop, Report, ResidentGain, Run, described
from fastload.profiling.timing import Timing
from fastload.profiling.verdict import Verdict

MAX_LOOPS = 24  # of one process

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies in the folder of a watched command.

    Attributes:
        processes: what each process wrote that went through loops, by rank.
        num_started: Python processes that the hook was started in.
        failures: what went wrong in the hook.
    """

    processes: tuple[Json, ...]
    num_started: int
    failures: tuple[str, ...]


def read(folder: Path) -> Found:
    """Return what lies in a folder; a file that is not whole is none."""
    processes, failures = [], []
    for file in sorted(folder.glob("loops-*.json")):
        try:
            process = json.loads(file.read_text())
        except (OSError, ValueError) as e:
            failures.append(f"{file.name}: {printable(e)}")
            continue
        if process["error"]:
            failures.append(printable(process["error"]))
        if process["loops"]:
            processes.append(process)
    failures += [printable(file.read_text()) for file in sorted(folder.glob("failed-*"))]
    processes.sort(key=lambda process: (process["rank"], process["began"]))
    return Found(processes=tuple(processes), num_started=len(list(folder.glob("started-*"))), failures=tuple(failures))


def make_report(found: Found, measured: dict[int, Measured], command: Measured) -> Report:
    """Return the report of a watched command.

    Args:
        found: what its processes wrote.
        measured: what was measured of each of these from outside, by process id.
        command: what was measured of the whole command.
    """
    if not found.processes:
        return _unwatched(found, command)
    made: dict[str, list[tuple[Loop, Json]]] = {}
    seconds: dict[str, tuple[float, float]] = {}
    for process in found.processes:
        names: Counter[str] = Counter()
        loops = sorted(process["loops"], key=_seconds, reverse=True)
        for loop in loops[:MAX_LOOPS]:
            name = _name(loop)
            names[name] += 1
            name = name if names[name] == 1 else f"{name} #{names[name]}"
            outside = measured.get(process["pid"], Measured())
            made.setdefault(name, []).append((_make(name, loop, process, outside), loop))
            seconds[name] = max(seconds.get(name, (0.0, 0.0)), _seconds(loop))
    # The loop with the most time, of any rank, is the one the report is about.
    names_by_time = sorted(seconds, key=seconds.__getitem__, reverse=True)
    ordered = [pair for name in names_by_time for pair in made[name]]
    first = made[names_by_time[0]]
    chief = worst([loop for loop, _ in first])
    about = next(about for loop, about in first if loop is chief)
    gain = _gain(chief, about)
    num_ranks = len({process["rank"] for process in found.processes if process.get("world_size", 1) > 1})
    return Report(
        environment=_environment(found), run=_run(found, about), loops=tuple(loop for loop, _ in ordered),
        verdict=chief.verdict, cause=chief.cause, resident_gain=gain,
        actions=_actions(chief, about, gain, max(1, num_ranks)),
    )  # fmt: skip


def _make(name: str, loop: Json, process: Json, outside: Measured) -> Loop:
    device = process["device"].partition(":")[0]
    feeding = Feeding(
        num_workers=loop["num_workers"], persistent_workers=loop["persistent_workers"], pinned=loop["pin_memory"],
        in_memory=loop["placement"] in IN_MEMORY,
    )  # fmt: skip
    timing, count = _timing(loop), loop["totals"]["steps"]
    made = make_loop(
        name, timing, device, feeding, replace(outside, gpu_memory_bytes=process["gpu_memory_bytes"]),
        rank=process["rank"], warmup=NUM_WARMUP,
    )  # fmt: skip
    if count != timing.num_steps:  # a long run: not every step was kept, the sums are of all
        mean = loop["totals"]["seconds"] / count
        made = replace(made, steps=replace(made.steps, count=count), step_seconds=replace(made.step_seconds, mean=mean))
    if not loop["in_main_thread"]:
        why = f"{made.verdict.why} A thread of the script asks for batches: what the steps themselves wait may be less."
        made = replace(made, verdict=replace(made.verdict, why=why, confidence="low"))
    return made


def _timing(loop: Json) -> Timing:
    rows, totals, starts = loop["rows"], loop["totals"], loop["starts"]
    begin = rows[0][0] if rows else 0.0
    return Timing(
        num_steps=len(rows), num_images=totals["rows"], wall_seconds=totals["seconds"],
        wait_seconds=totals["wait_seconds"], step_seconds=tuple(row[1] for row in rows),
        step_waits=tuple(row[2] for row in rows), step_images=tuple(row[4] for row in rows),
        step_ends=tuple(row[0] + row[1] - begin for row in rows), own_seconds=loop["own_seconds"],
        num_epochs=loop["passes"], later_seconds=starts["later_seconds"], later_waits=starts["later_wait_seconds"],
        next_seconds=totals["next_seconds"], next_cpu_seconds=totals["next_cpu_seconds"],
    )  # fmt: skip


def _seconds(loop: Json) -> tuple[float, float]:
    """Return what loops are ordered by: the time of steps that count; of first steps, where none does."""
    return loop["totals"]["seconds"], loop["starts"]["seconds"]


def _name(loop: Json) -> str:
    count = "" if loop["num_samples"] is None else f" ({loop['num_samples']:,})"
    dataset = loop["dataset"] if loop["placement"] is None else f"fastload, {loop['placement']}"
    return f"{loop['site']} {dataset}{count}"


def _run(found: Found, about: Json) -> Run:
    first, shape = found.processes[0], about["batch_shape"]
    source = None if about["library"] else folder_to_convert(about["root"], about["library"])
    return Run(
        entry="hook", data=(Path(source).name if source else about["library"]) or about["dataset"],
        size=image_side(shape), batch_size=about["batch_size"] or (shape[0] if shape else None),
        device=first["device"].partition(":")[0],
        num_ranks=len({process["rank"] for process in found.processes}), num_warmup=NUM_WARMUP,
    )  # fmt: skip


def _environment(found: Found) -> Json:
    """Return this machine, with the versions that the script itself ran with."""
    environment = described()
    for process in found.processes[:1]:
        environment["versions"] |= {"python": process["python"], "torch": process["torch"].partition("+")[0]}
    return environment


def _gain(loop: Loop, about: Json) -> ResidentGain | None:
    """Return what converting gives at most: all of the step stays, none of the wait."""
    side, count, share = image_side(about["batch_shape"]), about["num_samples"], loop.wait.share
    if about["placement"] in IN_MEMORY or side is None or share is None or share >= 1 or loop.steps.count == 0:
        return None
    room = None if count is None else resident_bytes(count, stored_side(side))
    return ResidentGain(speedup=1 / (1 - share), basis=UPPER_BOUND, memory_bytes=room, num_images=count)


def _actions(loop: Loop, about: Json, gain: ResidentGain | None, num_ranks: int = 1) -> tuple[Action, ...]:
    side = image_side(about["batch_shape"])
    return advise(Advice(
        loop=loop, gain=gain, source=folder_to_convert(about["root"], about["library"]), library=about["library"],
        converted=about["placement"] in IN_MEMORY, are_images=side is not None,
        store=None if side is None else stored_side(side),
        num_cores=max(1, len(os.sched_getaffinity(0)) // num_ranks), num_workers=about["num_workers"],
        persistent_workers=about["persistent_workers"], pinned=about["pin_memory"],
    ))  # fmt: skip


def _unwatched(found: Found, command: Measured) -> Report:
    """Return what is left where no loop was seen: driver and processes."""
    if found.failures:
        why = f"the hook failed ({found.failures[0]}), and the script ran without it"
    elif found.num_started:
        why = "no DataLoader of torch and no Loader of fastload was gone through"
    else:
        why = "Python was started without the hook (python -I or -E, or no Python at all)"
    nvml = command.nvml
    seen = "" if nvml is None else f" The driver saw the GPU at 0 for {nvml.zeros_share:.0%} of the time."
    verdict = Verdict(
        word="INCONCLUSIVE", confidence="low",
        why=f"{why}, so that only the processes were watched; put `for batch in fastload.profile(loader):` around the "
        f"loop.{seen}",
    )  # fmt: skip
    empty = Timing(num_steps=0, num_images=0, wall_seconds=0.0, wait_seconds=0.0, step_seconds=())
    device = "cpu" if nvml is None else "cuda"
    loop = replace(make_loop("the whole command", empty, device, Feeding(), command), verdict=verdict, cause=None)
    action = Action(
        text="Watch the loop itself, in the script:", command="for images, labels in fastload.profile(loader):"
    )
    return Report(
        environment=_environment(found), run=Run(entry="hook", device=device, num_warmup=0), loops=(loop,),
        verdict=verdict, actions=(action,),
    )  # fmt: skip
