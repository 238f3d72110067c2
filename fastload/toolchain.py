"""What Triton needs beside itself: it compiles the C code that launches a kernel where the kernel is first used."""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

COMMAND = "apt-get install gcc python3-dev"


def lacking() -> str:
    """Return what is missing to launch kernels, in words; empty where nothing is. As triton/runtime/build.py looks."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not os.environ.get("CC") and shutil.which("gcc") is None and shutil.which("clang") is None:
        return "there is no C compiler"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not (Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h").exists():
        return "Python.h is missing"
    return ""


@cache
def can_launch() -> bool:
    """Return whether nothing is lacking; warns, once, of what is."""
    missing = lacking()
    if missing:
        warnings.warn(
            f"augmentation takes torch's operations instead of one kernel, several times slower: {missing}; {COMMAND}",
            stacklevel=2,
        )
    return not missing
