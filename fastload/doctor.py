"""What is installed, what is missing, and the command that brings it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

from fastload import __version__, toolchain
from fastload.errors import printable
from fastload.machine import INSTALL_FFCV, cpu_name, installed
from fastload.memory import free_host_bytes

CORE = (
    "torch", "torchvision", "accelerate", "timm", "numpy", "numba", "pillow", "simplejpeg", "safetensors", "fsspec",
    "nvidia-ml-py", "tensorboard", "typer", "rich", "tyro", "pyyaml",
)  # fmt: skip
# Extra -> its package, and what it is for.
EXTRAS = {
    "hf": ("datasets", "hf:NAME"), "parquet": ("pyarrow", ".parquet files"), "dask": ("distributed", "--dask"),
    "plot": ("matplotlib", "pictures of a run, --png"),
}  # fmt: skip
MEND_TORCH = "pip install --force-reinstall torch torchvision"


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
    # Both at once: each takes seconds.
    imported = [_imported(p) for p in ("import torchvision; torchvision.ops.nms", "import ffcv.writer, ffcv.loader")]
    return [
        Finding(name="fastload", found=__version__, state="ok"),
        Finding(name="python", found=f"{platform.python_version()} ({sys.prefix})", state="ok"),
        Finding(name="machine", found=f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, "
                f"{free_host_bytes() / 2**30:.1f} GiB of memory free", state="ok"),
        *packages(), _torchvision_loads(imported[0]), _cuda(), _ffcv(imported[1]),
    ]  # fmt: skip


def packages() -> list[Finding]:
    """Look at what fastload needs, and at what its extras bring."""
    findings = []
    for name, version in installed(CORE).items():
        findings.append(
            Finding(name=name, found=version, state="ok") if version
            else Finding(name=name, found="not installed", state="broken", command=f"pip install {name}")
        )  # fmt: skip
    versions = installed([name for name, _ in EXTRAS.values()])
    for extra, (name, purpose) in EXTRAS.items():
        findings.append(
            Finding(name=name, found=found, state="ok") if (found := versions[name])
            else Finding(name=name, found=f"not installed (only for {purpose})", state="absent",
                         command=f'pip install "fastload[{extra}]"')
        )  # fmt: skip
    return findings


def _imported(program: str) -> subprocess.Popen[str]:
    # In a process of its own: a library that does not fit another raises deep inside, or ends the process.
    words = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or ["it ended without a word"])[-1]


def _torchvision_loads(imported: subprocess.Popen[str]) -> Finding:
    _, said = imported.communicate()
    if imported.returncode == 0:
        return Finding(name="torchvision loads", found="yes", state="ok")
    return Finding(
        name="torchvision loads", found=f"no: it does not fit torch {installed(['torch'])['torch']} "
        f"({_last_line(said)})", state="broken", command=MEND_TORCH,
    )  # fmt: skip


def _cuda() -> Finding:
    try:
        import torch
    except Exception as e:  # what a library of the system that is missing or of another version comes to
        found = f"no: {type(e).__name__}: {printable(e)}"
        return Finding(name="torch loads", found=found, state="broken", command=MEND_TORCH)
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
        return Finding(name="FFCV", found="not installed (only for .beton files)", state="absent", command=INSTALL_FFCV)
    if imported.returncode == 0:
        return Finding(name="FFCV", found=version, state="ok")
    found = f"{version}, which does not load: {_last_line(said)}"
    return Finding(name="FFCV", found=found, state="broken", command=INSTALL_FFCV)
