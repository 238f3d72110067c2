"""What is installed, what is missing, and the command that brings it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

import torch

from fastload import __version__
from fastload.augment import toolchain
from fastload.memory import free_host_bytes
from fastload.placement import gib
from fastload.profiling.report import cpu_name, installed

FFCV_COMMAND = 'apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++ && pip install "fastload[ffcv]"'


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: what was looked at.
        found: version or state, in words.
        state: `ok`, `absent` (not needed, may be wanted) or `broken`.
        command: what mends it; empty where nothing is to be mended.
    """

    name: str
    found: str
    state: str
    command: str = ""


def examine() -> list[Finding]:
    """Look at Python, the packages, the devices and the optional parts."""
    findings = [
        Finding(name="fastload", found=__version__, state="ok"),
        Finding(name="python", found=f"{platform.python_version()} ({sys.prefix})", state="ok"),
        Finding(name="machine", found=f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, "
                f"{gib(free_host_bytes())} of memory free", state="ok"),
    ]  # fmt: skip
    core = installed(
        [
            "torch",
            "torchvision",
            "accelerate",
            "timm",
            "numpy",
            "numba",
            "pillow",
            "simplejpeg",
            "safetensors",
            "tensorboard",
        ]
    )
    for name, version in core.items():
        findings.append(
            Finding(name=name, found=version, state="ok") if version
            else Finding(name=name, found="not installed", state="broken", command=f"pip install {name}")
        )  # fmt: skip
    return [*findings, _torchvision_loads(), _cuda(), _ffcv()]


def _torchvision_loads() -> Finding:
    # In a process of its own: a torchvision that does not fit torch raises deep inside, or ends the process.
    loaded = subprocess.run(
        [sys.executable, "-c", "import torchvision; torchvision.ops.nms"],
        capture_output=True,
        text=True,
        check=False,
    )
    if loaded.returncode == 0:
        return Finding(name="torchvision loads", found="yes", state="ok")
    return Finding(
        name="torchvision loads", found=f"no: it does not fit torch {torch.__version__}", state="broken",
        command="pip install --force-reinstall torch torchvision",
    )  # fmt: skip


def _cuda() -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found = f"{torch.version.cuda}: {', '.join(names)}"
        if missing := toolchain.lacking():
            # Loading and training work, several times slower where images are augmented.
            found = f"{found}, whose kernels cannot be launched: {missing}"
            return Finding(name="CUDA", found=found, state="broken", command=toolchain.COMMAND)
        return Finding(name="CUDA", found=found, state="ok")
    if torch.backends.mps.is_available():
        return Finding(name="CUDA", found="none, but an Apple GPU (mps)", state="ok")
    if torch.version.cuda is None:
        return Finding(name="CUDA", found="this torch was built without it", state="absent",
                       command="see https://pytorch.org/get-started/locally for the build with CUDA")  # fmt: skip
    if shutil.which("nvidia-smi") is None:
        return Finding(name="CUDA", found="no NVIDIA driver on this machine; training runs on the CPU", state="absent")
    return Finding(name="CUDA", found="a driver is here, but torch cannot use it", state="broken",
                   command="nvidia-smi; then install a torch built for that driver's CUDA or older")  # fmt: skip


def _ffcv() -> Finding:
    version = installed(["ffcv"])["ffcv"]
    if version is None:
        return Finding(name="FFCV", found="not installed (only for .beton files)", state="absent", command=FFCV_COMMAND)
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import ffcv.writer, ffcv.loader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if loaded.returncode == 0:
        return Finding(name="FFCV", found=version, state="ok")
    reason = (loaded.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return Finding(name="FFCV", found=f"{version}, which does not load: {reason}", state="broken", command=FFCV_COMMAND)
