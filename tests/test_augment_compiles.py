"""Triton's real compiler and NVIDIA's assembler take the kernels, on a machine without a GPU."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fastload import doctor, toolchain

HERE = Path(__file__).parent


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.processes
def test_the_kernels_compile_for_hopper_and_spill_nothing() -> None:
    # In a process of its own: the tests' own kernels run in Triton's interpreter, which is chosen at import.
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    words = [sys.executable, str(HERE / "kernels_for_gpus.py"), "90", "jitter", "two", "each"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    # Once each, for batches of 8, 3 and 1: of "two" twice, for its passes, and of "each", for what follows its blur.
    kernels = sorted(m["kernel"] for m in made)
    assert kernels == ["apply"] * 5 + ["blur_down"] + ["draw"] * 3 + ["equalizing_table", "measure", "measure"]
    # The stack's 48 bytes are those of sine and cosine of large numbers.
    assert all(m["local"] == 0 and m["stack"] <= 64 and m["reg"] <= 168 for m in made), made


@pytest.fixture
def anew() -> Iterator[None]:
    toolchain.can_launch.cache_clear()
    yield
    toolchain.can_launch.cache_clear()


@pytest.mark.usefixtures("anew")
def test_without_a_compiler_a_gpu_takes_the_slow_way_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda name: name)
    monkeypatch.delenv("CC", raising=False)
    include, bin = tmp_path / "include", tmp_path / "bin"
    monkeypatch.setattr(toolchain.sysconfig, "get_paths", lambda scheme: {"include": str(include)})
    monkeypatch.setenv("PATH", str(bin))
    include.mkdir()
    bin.mkdir()
    (include / "Python.h").touch()
    assert toolchain.lacking() == "there is no C compiler"
    with pytest.warns(UserWarning, match=r"no C compiler; apt-get install gcc"):
        assert not toolchain.can_launch()
    assert not toolchain.can_launch()  # without another word: a warning is an error here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H200")
    found = doctor._cuda()
    assert (found.state, found.command) == ("broken", toolchain.COMMAND)

    (bin / "gcc").touch(mode=0o755)
    assert toolchain.lacking() == ""
    assert doctor._cuda().state == "ok"
    (include / "Python.h").unlink()
    assert toolchain.lacking() == "Python.h is missing"
