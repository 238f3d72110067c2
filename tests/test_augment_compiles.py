"""Triton's real compiler and NVIDIA's assembler take the kernels, on a machine without a GPU."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.processes
def test_the_kernels_compile_for_hopper_and_spill_nothing() -> None:
    # In a process of its own: the tests' own kernels run in Triton's interpreter, which is chosen at import.
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    words = [sys.executable, str(HERE / "kernels_for_gpus.py"), "90", "jitter", "each"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert {m["kernel"] for m in made} == {"draw", "measure", "equalizing_table", "blur_down", "apply"}
    # The stack's 48 bytes are those of sine and cosine of large numbers.
    assert all(m["local"] == 0 and m["stack"] <= 64 and m["reg"] <= 168 for m in made), made
