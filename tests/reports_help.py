"""Reports made without measuring, for what reads them; and the published schema."""

import json
import math

import jsonschema

from fastload.profiling.report import (
    Action,
    Cause,
    Gpu,
    Loop,
    NvmlUse,
    Rate,
    Report,
    ResidentGain,
    Run,
    Series,
    Steps,
    StepSeconds,
    System,
    Throughput,
    Wait,
    described,
)
from fastload.profiling.verdict import Verdict
from tests.conftest import ROOT

SCHEMA = json.loads((ROOT / "fastload" / "profiling" / "gpu_util.schema.json").read_text())


def check_report(report: dict[str, object]) -> None:
    """Fail where a report is not as the published schema says, once through JSON."""
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(report, allow_nan=False)))


def make_loop(name: str = "folder", *, rate: float = 400.0, wait: float = 0.6, steps: int = 50, rank: int = 0,
              gpu: bool = True) -> Loop:  # fmt: skip
    """Return a loop of `steps` steps of 0.1 s."""
    durations = [0.1 * (1 + 0.2 * math.sin(number)) for number in range(steps)]
    nvml = NvmlUse(histogram=(6, 0, 0, 0, 1, 0, 0, 0, 0, 3), zeros_share=0.6, num_samples=10)
    return Loop(
        name=name, rank=rank, steps=Steps(count=steps, warmup=3, epoch_starts=1),
        step_seconds=StepSeconds(p50=0.1, p95=0.12, mean=0.1, interval=(0.09, 0.11)),
        wait=Wait(share=wait, interval=(wait - 0.02, wait + 0.02), seconds=wait * 0.1 * steps,
                  own_seconds=0.005 * steps if gpu else None, start_seconds=None),
        throughput=Throughput(
            x_real=Rate(value=rate, interval=(0.95 * rate, 1.05 * rate)), x_load=Rate(value=430.0, interval=None),
            x_replay=Rate(value=1000.0, interval=(980.0, 1020.0)),
        ),
        headspace=1 - rate / 1000, efficiency=0.93,
        gpu=Gpu(busy_share=0.4, nvml=nvml, memory_bytes=3 << 30) if gpu else Gpu(),
        system=System(cpu_per_core=(0.5, 1.0), process_cpu=1.1, worker_cpu=(0.9, 1.0), disk_read_bytes_per_second=1e6,
                      major_faults_per_second=0.0, resident_bytes=1 << 30),
        cause=Cause(word="decode-bound", why="The workers are busy.", evidence=("workers used 90%, 100% of a core",)),
        verdict=Verdict(word="INPUT-BOUND", why=f"the GPU waited {wait:.0%} of the time for data."),
        series=Series(
            time=tuple(0.1 * number for number in range(steps)), step_seconds=tuple(durations),
            wait_seconds=tuple(wait * seconds for seconds in durations),
            nvml=tuple((0.5 * number, 10.0 * number) for number in range(10)) if gpu else (),
        ),
    )  # fmt: skip


def make_report(*loops: Loop, data: str = "flowers5", entry: str = "bench") -> dict[str, object]:
    """Return the JSON of a report of these loops, or of one."""
    loops = loops or (make_loop(),)
    return Report(
        environment=described(),
        run=Run(entry=entry, data=data, model="resnet18", size=112, batch_size=64, device="cuda", precision="bf16",
                num_ranks=len({loop.rank for loop in loops}), num_warmup=3),
        loops=loops, verdict=loops[0].verdict, cause=loops[0].cause,
        resident_gain=ResidentGain(speedup=2.4, basis="measured", memory_bytes=70 << 20, num_images=1439),
        actions=(
            Action(text="Convert the images once.", command="fastload convert flowers5 --size 128", gain=2.4,
                   basis="measured"),
            Action(text="Look at the step."),
        ),
    ).as_dict()  # fmt: skip
