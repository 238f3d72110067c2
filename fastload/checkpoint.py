"""Checkpoints: weights as safetensors, what they are as JSON beside them. Nothing is pickled."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fastload.errors import CheckpointError, printable


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What `load_matching` did: names that were loaded, and names that were left as they were."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]


def save_checkpoint(file: Path, model: torch.nn.Module, info: dict[str, Any]) -> None:
    """Write `file` (.safetensors) and `info` as JSON beside it, each whole or not at all.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    # Cloned: safetensors refuses tensors that share memory, and tied weights do.
    state = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}
    beside = file.with_suffix(".json")
    weights_tmp, info_tmp = (f.with_name(f".{f.name}.tmp") for f in (file, beside))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        info_tmp.touch()
        mode = info_tmp.stat().st_mode
        save_file(state, weights_tmp)
        weights_tmp.chmod(mode)
        info_tmp.write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
        weights_tmp.replace(file)
        info_tmp.replace(beside)
    except (OSError, SafetensorError) as e:
        for temporary in (weights_tmp, info_tmp):
            with suppress(OSError):
                temporary.unlink()
        raise CheckpointError(
            f"{printable(file)} cannot be written ({printable(e)}); make room or pass --output."
        ) from e


def load_weights(file: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors, or from .pth/.pt with `weights_only=True`, onto the CPU.

    Raises:
        CheckpointError: missing, damaged, or not a state dict.
    """
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"{printable(file)}: no such weights file; check the path.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # torch.load raises whatever the damaged bytes happen to hit
        raise CheckpointError(
            f"{printable(file)} cannot be read as weights ({type(e).__name__}); pass a .safetensors file, "
            "or a .pth file that holds a state dict."
        ) from e
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise CheckpointError(f"{printable(file)} holds no state dict; save model.state_dict() into it.")
    return state


def load_matching(model: torch.nn.Module, file: str | Path) -> Matched:
    """Load from `file` what fits `model` by name and shape; a changed head is normal and stays as it is.

    Raises:
        CheckpointError: as `load_weights`, or less than half of the model's weights fit.
    """
    given, own = load_weights(file), model.state_dict()
    fitting = {name: t for name, t in given.items() if name in own and own[name].shape == t.shape}
    num_loaded, num_own = (sum(t.numel() for t in tensors) for tensors in (fitting.values(), own.values()))
    if 2 * num_loaded < num_own:
        raise CheckpointError(
            f"{printable(file)} fits {num_loaded:,} of this model's {num_own:,} weights; "
            "it is of another model: choose that one with --model."
        )
    model.load_state_dict(fitting, strict=False)
    return Matched(loaded=tuple(fitting), skipped=tuple(name for name in own if name not in fitting))
