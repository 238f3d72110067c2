"""What `--resume` goes on from: one safetensors file with everything a run is, so that nothing is unpickled.

The file is replaced as a whole: a run that is killed at any moment leaves the last one that was finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open

from fastload.checkpoint import write_tensors
from fastload.config import TrainConfig
from fastload.errors import CheckpointError, printable
from fastload.loader import Loader
from fastload.results import Epoch
from fastload.settings import plain
from fastload.together import gather_numbers

STATE_NAME = "state.safetensors"
STATE_VERSION = 1
_KEYS = {"position", "loader", "scheduler", "seconds", "optimizer", "rates", "scaler"}
_STEPS = "steps and batch size"
# Settings that do not change what is learned: they may differ when a run goes on.
_FREE = {"resume", "output", "device", "log_with", "trace", "save_every_steps"}


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        phase, phase_epoch: number of the phase, and epochs of it that are done.
        batch: batches of the current epoch that are done.
        lr: when the current epoch began.
        updates: steps of the optimizer so far, in all phases.
        since_best: epochs of this phase without a new best one.
        loss_sum, num_samples: of the current epoch so far, over all ranks.
        best, epochs: figures of the epochs that are done.
    """

    phase: int = 0
    phase_epoch: int = 0
    batch: int = 0
    lr: float = 0.0
    updates: int = 0
    since_best: int = 0
    loss_sum: float = 0.0
    num_samples: float = 0.0
    best: Epoch | None = None
    epochs: list[Epoch] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what `state_dict` returned."""
        best = state["best"]
        epochs = [Epoch(**e) for e in state["epochs"]]
        vars(self).update({**state, "best": best and Epoch(**best), "epochs": epochs})


@dataclass(frozen=True, kw_only=True)
class State:
    """A saved state as it was read: tensors by name, and the rest as JSON."""

    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors whose name begins with `name.`, without that."""
        return {k.removeprefix(f"{name}."): t for k, t in self.tensors.items() if k.startswith(f"{name}.")}


def settings_of(
    config: TrainConfig, accelerator: Accelerator, phases: Sequence[Any], loaders: tuple[Loader, Loader | None]
) -> dict[str, Any]:
    """Return what must be the same when a run goes on; paths by their last part: a run may move.

    Args:
        config, accelerator: of the run.
        phases: `Phase`s.
        loaders: (train, valid) that serve phases without loaders of their own.
    """
    train, valid = loaders
    kept = {k: v for k, v in plain(config).items() if k not in _FREE}
    paths = {k: v.name for k, v in asdict(config).items() if isinstance(v, Path) and k in kept}
    # The schedule counts steps of each process, and these are fewer where more of them share an epoch.
    run = {"num_processes": accelerator.num_processes, "mixed_precision": accelerator.mixed_precision}
    parts = [[p.name, p.epochs, p.lr, p.trainable] for p in phases]
    every = [train, valid, *(loader for p in phases for loader in (p.train, p.valid))]
    data = sorted(
        {f"{x.dataset.source_name} {x.dataset.split} {x.dataset.digest[:12]}" for x in every if x is not None}
    )
    # And with batches of another size, epochs would have another number of steps than the schedule was made for.
    steps = [[len(x), x.shares.global_batch] for x in (train, *(p.train for p in phases)) if x is not None]
    return {**kept, **paths, **run, "phases": parts, "data": data, _STEPS: steps}


def write_state(
    file: Path, accelerator: Accelerator, modules: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer, about: dict[str, Any],
) -> None:  # fmt: skip
    """Save a run. Every rank must call it; the main process writes.

    Args:
        file: where to.
        accelerator: of the run.
        modules: the model, and its running mean if there is one, by name.
        optimizer: not wrapped.
        about: position, loader, scheduler and settings, fit for JSON.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    tensors = {f"{name}.{k}": t for name, module in modules.items() for k, t in module.state_dict().items()}
    tensors |= _generators(accelerator)
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": t for k, t in state.items() if isinstance(t, torch.Tensor)}
        numbers[str(index)] = {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)}
    if accelerator.is_main_process:
        about = {
            "version": STATE_VERSION, "optimizer": numbers, "rates": [g["lr"] for g in optimizer.param_groups],
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None, **about,
        }  # fmt: skip
        write_tensors(file, tensors, {"fastload": json.dumps(about)})


def find_state(file: Path, settings: dict[str, Any], accelerator: Accelerator) -> State | None:
    """Return what `read_state` does, the same on every rank.

    Raises:
        CheckpointError: as there; or ranks find different states, as their machines share no such folder.
    """
    failure: CheckpointError | None = None
    state: State | None = None
    try:
        state = read_state(file, settings)
    except CheckpointError as e:
        failure = e
    if accelerator.num_processes > 1:
        place = state.about["position"] if state is not None else {}
        own = [int(failure is not None), *(place.get(key, -1) for key in ("phase", "updates", "batch"))]
        told = gather_numbers(own, accelerator.device)
        if failure is None and any(row != told[0] for row in told):
            failure = CheckpointError(
                f"{printable(file)} is not the same for all processes; --output has to lie where all machines see it."
            )
    if failure is not None:
        raise failure
    return state


def read_state(file: Path, settings: dict[str, Any]) -> State | None:
    """Read what `write_state` wrote; None where there is no such file.

    Raises:
        CheckpointError: it is damaged, of another version, or of a run with other settings.
    """
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            about = json.loads(opened.metadata()["fastload"])
            version, saved = about["version"], about["settings"]
            missing = _KEYS - about.keys() if version == STATE_VERSION else set()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{printable(file)} cannot be read ({type(e).__name__}); without --resume training begins anew."
        ) from e
    if version != STATE_VERSION or missing:
        raise CheckpointError(
            f"{printable(file)} has version {version!r} or is not whole; begin anew, without --resume."
        )
    now = json.loads(json.dumps(settings))
    for name in sorted(saved.keys() | now.keys()):
        if saved.get(name) != now.get(name) and (name != _STEPS or name in saved):  # older states do not tell
            raise CheckpointError(
                f"{printable(file)} was saved with {name}={printable(saved.get(name))}, and now it is "
                f"{printable(now.get(name))}; go on with the same (--config {printable(file.parent)}/settings.yaml "
                "--resume), or begin anew with another --output."
            )
    return State(tensors=tensors, about=about)


def restore(state: State, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer and the scaler of gradients the state that was saved."""
    saved = {int(i): dict(numbers) for i, numbers in state.about["optimizer"].items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in state.part("optimizer").items():
        index, _, key = name.partition(".")
        like = parameters[int(index)]
        # In the parameter's memory format, as it was: another one may round differently.
        same = tensor.shape == like.shape
        saved[int(index)][key] = torch.empty_like(like).copy_(tensor) if same else tensor
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, rate in zip(optimizer.param_groups, state.about["rates"], strict=True):
        group["lr"] = rate
    if accelerator.scaler is not None and state.about["scaler"]:
        accelerator.scaler.load_state_dict(state.about["scaler"])


def restore_generators(state: State, accelerator: Accelerator) -> None:
    """Give torch's generators of this rank the state that was saved, where that was done on such a device."""
    saved, rank = state.part("generator"), accelerator.process_index
    if f"cpu.{rank}" in saved:
        torch.set_rng_state(saved[f"cpu.{rank}"])
    if accelerator.device.type == "cuda" and f"cuda.{rank}" in saved:
        torch.cuda.set_rng_state(saved[f"cuda.{rank}"], accelerator.device)


def _generators(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Return the states of torch's generators of all ranks; every rank must call it."""
    own = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    found: dict[str, torch.Tensor] = {}
    for kind, state in own.items():
        everyone = accelerator.gather(state.to(accelerator.device)[None]).cpu()
        found |= {f"generator.{kind}.{rank}": row for rank, row in enumerate(everyone)}
    return found
