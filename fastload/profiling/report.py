"""Measurements as JSON and for the terminal: no figure without machine, versions, data, command and date."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastload import __version__
from fastload.files import write_text
from fastload.memory import meminfo_bytes

PACKAGES = ("torch", "torchvision", "accelerate", "timm", "numpy", "pillow", "simplejpeg", "safetensors", "ffcv")


def environment() -> dict[str, Any]:
    """Return what a figure must not be quoted without: machine, versions and date."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(meminfo_bytes("MemTotal") / 2**30, 1),
            "gpus": gpus,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), "fastload": __version__, **installed(PACKAGES)},
    }


def installed(names: Sequence[str]) -> dict[str, str | None]:
    """Return the installed version of each package, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def command() -> str:
    """Return this process's command with absolute paths cut to their last part: a result is read elsewhere."""
    words = [word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in sys.argv[1:]]
    script = Path(sys.argv[0])
    name = f"{script.resolve().parent.name}/{script.name}" if script.suffix == ".py" else script.name
    return shlex.join([name, *words])


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content, indent=1) + "\n")


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Round for a JSON result; None, which means not measured, stays None."""
    return None if value is None else round(value, digits)


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
