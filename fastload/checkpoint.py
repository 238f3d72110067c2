"""Checkpoints: weights as safetensors, what they are as JSON beside them. Nothing is pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fastload.errors import CheckpointError, printable
from fastload.files import Draft, sync, write_text

_HEAD_TENSORS = 4  # weights and biases of two layers
Convert = Callable[[dict[str, torch.Tensor], torch.nn.Module], dict[str, torch.Tensor]]


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
    write_tensors(file, model.state_dict())
    beside = file.with_suffix(".json")
    try:
        write_text(beside, json.dumps(info, indent=1) + "\n")
    except OSError as e:
        raise _unwritten(beside, e) from e


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to `file` (.safetensors), flushed, whole or not at all.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    # Cloned: safetensors refuses tensors that share memory, and tied weights do.
    state = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = Draft(file)
    except OSError as e:
        raise _unwritten(file, e) from e
    # Not into the draft: safetensors makes a file of its own. The draft keeps others away from it.
    temporary = file.with_name(f".{file.name}.new")
    try:
        save_file(state, temporary, metadata)
        temporary.chmod(os.fstat(draft.descriptor).st_mode)  # safetensors writes for the owner alone
        sync(temporary)
        temporary.replace(file)
    except (OSError, SafetensorError) as e:
        raise _unwritten(file, e) from e
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        draft.discard()


def _unwritten(file: Path, e: Exception) -> CheckpointError:
    return CheckpointError(f"{printable(file)} cannot be written ({printable(e)}); make room or pass another path.")


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
    for key in ("state_dict", "model"):  # as training scripts wrap them
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise CheckpointError(f"{printable(file)} holds no state dict; save model.state_dict() into it.")
    return state


def load_matching(model: torch.nn.Module, file: str | Path, *, convert: Convert | None = None) -> Matched:
    """Load from `file` what fits `model` by name and shape; a changed head is normal and stays as it is.

    Args:
        model: what to load into.
        file: as of `load_weights`.
        convert: turns a state dict into one for this model, as timm's own do.

    Raises:
        CheckpointError: as `load_weights`; or less than half of the model's weights fit, or of many tensors less
            than three quarters: ResNet-18's are 56% of ResNet-34's, and no head.
    """
    given, own = load_weights(file), model.state_dict()
    if convert is not None:
        with suppress(Exception):  # of a foreign file anything may be missing; what then fits is counted below
            given = convert(dict(given), model)
    fitting = {name: t for name, t in given.items() if name in own and own[name].shape == t.shape}
    num_loaded, num_own = (sum(t.numel() for t in tensors) for tensors in (fitting.values(), own.values()))
    skipped = tuple(name for name in own if name not in fitting)
    if 2 * num_loaded < num_own or (len(skipped) > _HEAD_TENSORS and 4 * len(fitting) < 3 * len(own)):
        raise CheckpointError(
            f"{printable(file)} fits {num_loaded:,} of this model's {num_own:,} weights, "
            f"{len(fitting)} of {len(own)} tensors; "
            "it is of another model: choose that one with --model."
        )
    model.load_state_dict(fitting, strict=False)
    return Matched(loaded=tuple(fitting), skipped=skipped)
