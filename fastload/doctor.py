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
    # Both at once: each takes seconds.
    imported = [_imported(p) for p in ("import torchvision; torchvision.ops.nms", "import ffcv.writer, ffcv.loader")]
    return [*findings, _torchvision_loads(imported[0]), _cuda(), _ffcv(imported[1])]


def _imported(program: str) -> subprocess.Popen[str]:
    # In a process of its own: a library that does not fit another raises deep inside, or ends the process.
    words = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _torchvision_loads(imported: subprocess.Popen[str]) -> Finding:
    imported.communicate()
    if imported.returncode == 0:
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
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding(name="CUDA", found="hidden by CUDA_VISIBLE_DEVICES; training runs on the CPU", state="absent",
                       command="unset CUDA_VISIBLE_DEVICES")  # fmt: skip
    return Finding(name="CUDA", found="a driver is here, but torch cannot use it", state="broken",
                   command="nvidia-smi; then install a torch built for that driver's CUDA or older")  # fmt: skip


def _ffcv(imported: subprocess.Popen[str]) -> Finding:
    _, said = imported.communicate()
    version = installed(["ffcv"])["ffcv"]
    if version is None:
        return Finding(name="FFCV", found="not installed (only for .beton files)", state="absent", command=FFCV_COMMAND)
    if imported.returncode == 0:
        return Finding(name="FFCV", found=version, state="ok")
    reason = (said.strip().splitlines() or ["it ended without a word"])[-1]
    return Finding(name="FFCV", found=f"{version}, which does not load: {reason}", state="broken", command=FFCV_COMMAND)
