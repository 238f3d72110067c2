"""Optimizers, schedules, and which parameters train."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fastload.config import TrainConfig
from fastload.errors import ConfigError, printable


def make_optimizer(model: torch.nn.Module, config: TrainConfig, lr: float | None = None) -> torch.optim.Optimizer:
    """Return the config's optimizer of what trains; biases and norms (parameters of one axis) do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    lr = config.lr if lr is None else lr
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0)
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, lr=lr)


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int, epochs: int | None = None
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the config's schedule over `epochs`, to be stepped once after every step of the optimizer."""
    total = (config.epochs if epochs is None else epochs) * steps_per_epoch
    rise = config.warmup_epochs * steps_per_epoch

    def cosine(begin: float, step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - begin) / max(1.0, total - begin))))

    def factor(step: int) -> float:
        if config.schedule == "one_cycle":
            # From 1/25 up in 30% of the steps, then down to 0: Smith and Topin, arXiv:1708.07120, as fast.ai has it.
            top = rise or 0.3 * total
            return cosine(top, step) if step >= top else 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / top))
        if step < rise:
            return (step + 1) / (rise + 1)
        if config.schedule == "cosine":
            return cosine(rise, step)
        if config.schedule == "step":
            return float(config.gamma ** (step // (config.step_epochs * steps_per_epoch)))
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def freeze_all_but(model: torch.nn.Module, trainable: Sequence[str] | None) -> None:
    """Let the parameters train whose names begin with one of `trainable`, and no others; all where it is None.

    Raises:
        ConfigError: one of `trainable` begins no name.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in trainable or ():
        if not any(_begins(name, prefix) for name in names):
            tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise ConfigError(f"trainable {printable(prefix)}: no parameter's name begins so; this model has {tops}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable is None or any(_begins(name, prefix) for prefix in trainable))


def train_mode(model: torch.nn.Module, trainable: Sequence[str] | None = None) -> None:
    """Set the model to training, but for modules that are frozen: their batch statistics stay as they are.

    A module is what its own parameters are; those below it have their own. Of one that has statistics and no parameter
    (a norm with affine=False) the name decides, as it does of parameters: `trainable` is what `freeze_all_but` took.
    """
    model.train()
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            module.training = any(p.requires_grad for p in own)
        elif trainable is not None and getattr(module, "running_mean", None) is not None:
            module.training = any(_begins(f"{name}.", prefix) for prefix in trainable)


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix if prefix.endswith(".") else f"{prefix}.")
