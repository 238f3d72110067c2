"""Which device and which rank: what this process has to work with."""

from __future__ import annotations

import os
import platform
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from fastload.errors import ConfigError, printable


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process among all that train together."""

    rank: int
    world_size: int


def current_rank() -> Rank:
    """Return rank and world size from Accelerate's state or torch.distributed; (0, 1) where neither is set up.

    Raises:
        ConfigError: a launcher started several processes, and they do not know of each other.
    """
    # Not imported for this: a state that Accelerate was never loaded for cannot be set up.
    state = sys.modules.get("accelerate.state")
    rank = Rank(rank=0, world_size=1)
    if state is not None and state.PartialState._shared_state != {}:
        partial = state.PartialState()
        rank = Rank(rank=partial.process_index, world_size=partial.num_processes)
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = Rank(rank=torch.distributed.get_rank(), world_size=torch.distributed.get_world_size())
    started = os.environ.get("WORLD_SIZE", "1")
    if rank.world_size == 1 and started.isdecimal() and int(started) > 1:
        # Accelerate does so on a machine without a GPU unless told cpu=True: every process would train
        # on the same samples, and all of them write.
        raise ConfigError(
            f"this process is one of {started} (WORLD_SIZE), but trains as if it were alone; make the fastload Trainer "
            "first, or Accelerator(cpu=True) on a machine without a GPU, or pass rank and world_size."
        )
    return rank


def rank_of(rank: int | None, world_size: int | None) -> Rank:
    """Return what was passed, or this process's own."""
    if (rank is None) != (world_size is None):
        raise ConfigError("rank and world_size go together; pass both or neither.")
    return current_rank() if rank is None or world_size is None else Rank(rank=rank, world_size=world_size)


def leave_group() -> None:
    """Destroy torch.distributed's default group, if there is one, at the end of a process that did not fail.

    Gloo's threads need the GIL to let go of a tensor that Python knows, and a thread that waits for the GIL while the
    interpreter ends takes the process down (SIGABRT: "terminate called without an active exception").
    """
    # After an exception the other ranks may be waiting for this one; NCCL would wait for them here.
    failed = hasattr(sys, "last_value")
    if not failed and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def current_device() -> torch.device:
    """Return Accelerate's device where it is set up, else cuda, else mps, else cpu."""
    state = sys.modules.get("accelerate.state")
    if state is not None and state.PartialState._shared_state != {}:
        return torch.device(state.PartialState().device)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def parse_device(name: str | torch.device | None) -> torch.device:
    """Return the device called `name`, or the best one where it is None; of CUDA's, with its number.

    Raises:
        ConfigError: no such device here.
    """
    try:
        # Accelerate's is without a number where it has one GPU, and then not equal to that of any tensor.
        device = current_device() if name is None else torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {printable(repr(name))} is not known; use cpu, cuda, cuda:1 or mps.") from None
    # Of torch's others Accelerate would train on whatever it picks; what it has picked already can be watched.
    if name is not None and device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device {device} is not supported; use cpu, cuda, cuda:1 or mps.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device {device}: this machine has no CUDA GPU that torch can use; see: fastload doctor")
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ConfigError(f"device {device}: this machine has {torch.cuda.device_count()} GPUs, counted from 0.")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device mps: this machine has no Apple GPU that torch can use; use cpu.")
    return device


def set_switches(device: torch.device, *, tf32: bool, deterministic: bool) -> None:
    """Set what PyTorch keeps per process.

    Args:
        device: where training runs; only NVIDIA's have TF32 and a choice of cuDNN's algorithms.
        tf32: multiply float32 in TF32.
        deterministic: take only operations that give the same result every time.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = not deterministic


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16; x86 without them takes ten times as long as in float32."""
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def generators_kept(device: torch.device | None = None) -> Iterator[None]:
    """Put the states of Python's, NumPy's and torch's global generators back at the end.

    Args:
        device: a GPU whose generator is put back too.
    """
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
