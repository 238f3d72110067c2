"""How to train: one frozen dataclass, which every recipe extends by its own fields. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fastload.errors import ConfigError, printable

Loss = Literal["cross_entropy", "bce", "mse"]
Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["cosine", "step", "one_cycle", "constant"]
Precision = Literal["no", "bf16", "fp16"]
Monitor = Literal["accuracy", "loss"]

_CHOICES = {
    "loss": Loss,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "monitor": Monitor,
    "mixed_precision": Precision,
}
_COUNTS = ("epochs", "step_epochs", "accumulate", "patience", "max_steps", "save_every_steps")
_MAX_SEED = 2**32 - 1  # of NumPy's generator
_ABOVE_ZERO = ("lr", "gamma", "clip_grad_norm")
# Name -> the limit that its number stays below.
_FROM_ZERO = {"weight_decay": math.inf, "warmup_epochs": math.inf, "momentum": 1, "label_smoothing": 1, "ema": 1}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Every field is checked when the config is made; a wrong one is a ConfigError.

    A recipe's settings are a subclass with defaults and fields of its own; `fastload.settings.run` makes every field
    a flag, and the line below a field its help.
    """

    epochs: int = 10
    """Passes over the training split."""
    loss: Loss = "cross_entropy"
    """cross_entropy of class numbers or soft rows; bce of one logit and labels 0 or 1; mse of amounts."""
    optimizer: Optimizer = "adamw"
    """adamw, adam or sgd."""
    lr: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.05
    """Of weights; biases and norms do not decay."""
    momentum: float = 0.9
    """SGD's, Nesterov; 0 for none."""
    schedule: Schedule = "cosine"
    """cosine to 0; step: times gamma every step_epochs; one_cycle: up, then down by cosine; constant."""
    step_epochs: int = 10
    """Epochs between the steps of schedule step."""
    gamma: float = 0.1
    """What schedule step multiplies the learning rate by."""
    warmup_epochs: float = 0.0
    """Linear from 0 in the beginning; fractions are fine. Of one_cycle: its way up, where not 0."""
    label_smoothing: float = 0.0
    """Of the cross entropy."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one step of the optimizer."""
    clip_grad_norm: float | None = None
    """Largest norm of all gradients together; None does not clip."""
    ema: float | None = None
    """Decay of a running mean of the weights, e.g. 0.999, which is then evaluated and kept; None has none."""
    mixed_precision: Precision | None = None
    """no, bf16 or fp16; None takes what accelerate launch was told."""
    tf32: bool = True
    """On NVIDIA GPUs from Ampere on: multiply float32 in TF32, faster and a little less exact."""
    channels_last: bool = True
    """Memory format of the model."""
    compile: bool = False
    """torch.compile the model; the first steps then take long."""
    sync_batchnorm: bool = False
    """Batch statistics over all GPUs instead of each one's own."""
    monitor: Monitor = "accuracy"
    """What makes an epoch the best one, on the validation split; amounts (mse) are always judged by loss."""
    patience: int | None = None
    """Stop a phase after so many epochs without a new best one; None never stops early."""
    tta: bool = False
    """Evaluate the mean over each image and its mirror image; of tables it changes nothing."""
    max_steps: int | None = None
    """End each epoch after so many batches, to try things out; then nothing is drawn."""
    seed: int = 0
    """Of weights, order and draws."""
    deterministic: bool = False
    """The same result every time on one machine, at a cost in speed on GPUs."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; None takes the best one, or this process's own under a launcher."""
    output: Path = Path("runs/train")
    """Folder of checkpoints, scalars, tables and result.json; a full one is left alone and NAME-2 taken."""
    resume: bool = False
    """Go on with what output holds, to the result of a run that was never stopped; from the start if nothing."""
    save_every_steps: int | None = None
    """Save what --resume goes on from after so many steps of the optimizer, too, and not only after each epoch."""
    log_with: str | None = "tensorboard"
    """Tracker: tensorboard, wandb, mlflow, ... whatever Accelerate knows; None writes none."""
    trace: bool = False
    """Write what torch.profiler sees of a few steps, for chrome://tracing or Perfetto: trace.json."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", Path(self.output))
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: at least 1 is needed.")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value:g}: a number above 0 is needed.")
        for name, limit in _FROM_ZERO.items():
            value = getattr(self, name)
            if value is not None and not 0 <= value < limit:
                raise ConfigError(f"{name}={value:g}: a number from 0 to below {limit:g} is needed.")
        for name, choice in _CHOICES.items():
            value = getattr(self, name)
            if value not in get_args(choice) and not (name == "mixed_precision" and value is None):
                raise ConfigError(f"{name}={printable(repr(value))}: not one of {', '.join(get_args(choice))}.")
        if not 0 <= self.seed <= _MAX_SEED:
            raise ConfigError(f"seed={self.seed}: a whole number from 0 to {_MAX_SEED:,} is needed.")
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ConfigError(f"label_smoothing={self.label_smoothing:g}: only loss=cross_entropy takes it.")
