"""Phases, and what a run works on in each: the model as Accelerate prepared it, its optimizer, its schedule."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fastload.config import TrainConfig
from fastload.errors import CheckpointError, ConfigError, printable
from fastload.loader import Loader
from fastload.optim import freeze_all_but, make_optimizer, make_scheduler
from fastload.profiling import WaitMeter
from fastload.resuming import STATE_NAME, Position, State, restore, write_state
from fastload.tracking import Tracker


@dataclass(frozen=True)
class Phase:
    """A part of training with an optimizer and a schedule of its own.

    Attributes:
        name: as results call it.
        epochs: how many.
        lr: highest learning rate; the config's where it is None.
        trainable: beginnings of the names of parameters that train, e.g. ("fc",); the rest is frozen, its batch
            statistics too. None trains all.
        train, valid: loaders of this phase, e.g. of smaller images; `fit`'s where they are None.
    """

    name: str
    epochs: int
    lr: float | None = None
    trainable: tuple[str, ...] | None = None
    train: Loader | None = None
    valid: Loader | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.lr is not None and not 0 < self.lr < math.inf) or self.trainable == ():
            raise ConfigError(
                f"phase {self.name}: epochs={self.epochs}, lr={self.lr}, trainable={self.trainable}; at least 1 epoch, "
                "an lr above 0 and something to train are needed."
            )


class Run:
    """What one `fit` works on.

    Args:
        accelerator, config, output: of the run.
        model: as the user gave it.
        settings: what must be the same when the run goes on.
        resumed: what it goes on from.

    Attributes:
        model: not wrapped, on the device.
        prepared: what Accelerate made of it for this phase.
        kept: what is evaluated and saved: the running mean of the weights, where there is one, else the model.
        resumed: until the first batch; then None.
        steps: batches per epoch.
    """

    phase: Phase
    train: Loader
    valid: Loader | None
    steps: int
    optimizer: Any
    scheduler: torch.optim.lr_scheduler.LambdaLR

    def __init__(
        self, accelerator: Accelerator, config: TrainConfig, model: torch.nn.Module, output: Path,
        settings: dict[str, Any], resumed: State | None,
    ) -> None:  # fmt: skip
        self._accelerator, self._config, self._settings = accelerator, config, settings
        if config.sync_batchnorm and accelerator.num_processes > 1:
            from timm.layers.norm_act import convert_sync_batchnorm  # knows timm's own kinds, too

            model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = self.prepared = model.to(accelerator.device)
        if config.compile:
            # Graphs of earlier runs fit their own prepared models alone, and count towards Dynamo's limit of graphs,
            # beyond which it would leave this one uncompiled.
            torch.compiler.reset()
            model.compile()  # in place: a wrapper would put its name before every key of a checkpoint
        self.ema: Any = None
        if config.ema is not None:
            from timm.utils.model_ema import ModelEmaV3  # not above: timm takes seconds to import

            self.ema = ModelEmaV3(model, config.ema, use_warmup=True)
        self.kept: torch.nn.Module = model if self.ema is None else self.ema.module
        self.output, self.position, self.resumed = output, Position(), resumed
        self.meter = WaitMeter(accelerator.device, num_warmup=3)
        self._begin = time.perf_counter()
        if resumed is not None:
            self._begin -= resumed.about["seconds"]
            self.position.load_state_dict(resumed.about["position"])
            for name, module in self._modules.items():
                try:
                    module.load_state_dict(resumed.part(name))
                except RuntimeError as e:
                    raise CheckpointError(
                        f"{printable(output)}/{STATE_NAME} is of another model; go on with the same, or "
                        "begin anew with another --output."
                    ) from e
        self.tracker = Tracker(accelerator, config, output)

    def begin_phase(self, phase: Phase, train: Loader, valid: Loader | None) -> None:
        """Freeze and unfreeze, and prepare anew: what unfreezes in a prepared model would not be synchronized."""
        config = self._config
        self.unwrap()
        freeze_all_but(self.model, phase.trainable)
        self.phase, self.train, self.valid = phase, phase.train or train, phase.valid or valid
        self.steps = min(len(self.train), config.max_steps or len(self.train))
        optimizer = make_optimizer(self.model, config, phase.lr)
        # Left out of prepare(): Accelerate would step it once per process.
        self.scheduler = make_scheduler(optimizer, config, math.ceil(self.steps / config.accumulate), phase.epochs)
        if self.resumed is not None and (self.position.phase_epoch or self.position.batch):
            restore(self.resumed, self._accelerator, optimizer)
            self.scheduler.load_state_dict(self.resumed.about["scheduler"])
        self.prepared, self.optimizer = self._accelerator.prepare(self.model, optimizer)

    def unwrap(self) -> None:
        """Take away what Accelerate put around the model and onto it."""
        self.prepared, self.optimizer = self.model, None
        self._accelerator.free_memory()
        self._accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        vars(self.model).pop("_is_accelerate_prepared", None)

    def save(self) -> None:
        """Save where the run stands; every rank must call it."""
        about = {
            "settings": self._settings, "position": self.position.state_dict(), "seconds": self.seconds,
            "loader": self.train.state_dict(), "scheduler": self.scheduler.state_dict(),
        }  # fmt: skip
        write_state(self.output / STATE_NAME, self._accelerator, self._modules, self.optimizer.optimizer, about)

    @property
    def seconds(self) -> float:
        """How long the run took, without the time between an interruption and its end."""
        return time.perf_counter() - self._begin

    @property
    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"model": self.model} if self.ema is None else {"model": self.model, "ema": self.ema.module}
