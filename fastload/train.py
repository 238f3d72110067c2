"""A training loop on Accelerate: any number of GPUs or CPU processes, one config, one `fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from fastload.checkpoint import save_checkpoint
from fastload.devices import parse_device
from fastload.errors import ConfigError, TrainError
from fastload.loader import Loader
from fastload.profiling import WaitMeter, judge
from fastload.profiling.report import command, environment, rounded, write_json
from fastload.records import UNLABELLED

Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["cosine", "step", "constant"]
Precision = Literal["no", "bf16", "fp16"]
Monitor = Literal["accuracy", "loss"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Every field is checked when the config is made; a wrong one is a ConfigError.

    Attributes:
        epochs: passes over the training split.
        optimizer, lr, weight_decay, momentum: momentum is SGD's (Nesterov).
        schedule: `cosine` to 0 per step, `step` times `gamma` every `step_epochs`, or `constant`.
        warmup_epochs: linear from 0 at the start; fractions are fine.
        label_smoothing: of the cross entropy.
        clip_grad_norm: largest norm of all gradients together; None does not clip.
        mixed_precision: `no`, `bf16`, `fp16`; None takes what `accelerate launch` was told.
        channels_last: memory format of the model.
        monitor: what makes an epoch the best one, on the validation split.
        patience: stop after so many epochs without a new best one; None never stops early.
        max_steps: end each epoch after so many steps, to try things out; None runs them all.
        seed: of weights and, by the recipes, of order and draws.
        output: folder of checkpoints, TensorBoard scalars and `result.json`.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None takes the best one, or this process's under a launcher.
    """

    epochs: int = 10
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    step_epochs: int = 10
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    clip_grad_norm: float | None = None
    mixed_precision: Precision | None = None
    channels_last: bool = True
    monitor: Monitor = "accuracy"
    patience: int | None = None
    max_steps: int | None = None
    seed: int = 0
    output: Path = Path("runs/train")
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "step_epochs", "patience", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: at least 1 is needed.")
        for name in ("lr", "gamma", "clip_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value:g}: a number above 0 is needed.")
        for name in ("weight_decay", "momentum", "warmup_epochs", "label_smoothing"):
            limit = 1 if name in ("momentum", "label_smoothing") else math.inf
            if not 0 <= getattr(self, name) < limit:
                raise ConfigError(f"{name}={getattr(self, name):g}: a number from 0 to below {limit:g} is needed.")
        choices = {"optimizer": Optimizer, "schedule": Schedule, "monitor": Monitor}
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                raise ConfigError(f"{name}={getattr(self, name)!r}: not one of {', '.join(get_args(choice))}.")
        if self.mixed_precision not in (None, *get_args(Precision)):
            raise ConfigError(f"mixed_precision={self.mixed_precision!r}: not one of {', '.join(get_args(Precision))}.")


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch's figures. `valid_*` are None without a validation split; shares are of wall time."""

    epoch: int
    lr: float
    train_loss: float
    valid_loss: float | None
    accuracy: float | None
    seconds: float
    images_per_second: float | None
    data_wait: float | None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What `fit` came to; the same as `result.json` in `output`."""

    output: Path
    seconds: float
    best: Epoch
    epochs: tuple[Epoch, ...]
    data_wait: float | None
    verdict: str


@dataclass
class _Run:
    """What one `fit` works on."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    train: Loader
    valid: Loader | None
    meter: WaitMeter
    steps_per_epoch: int
    epochs: list[Epoch] = field(default_factory=list)


class Trainer:
    """Trains one classifier. Make it first: loaders made afterwards know their rank and device from it.

    Args:
        config: how to train.

    Attributes:
        accelerator: Accelerate's, set up.
        is_main: whether this process is the one that prints and writes.

    Raises:
        ConfigError: the device is not there.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        device = parse_device(config.device)
        if config.device is not None and device.type == "cuda":
            torch.cuda.set_device(device)
        # Said also where there is nothing else: only then does Accelerate let several CPU processes train together.
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=config.mixed_precision)
        self.is_main: bool = self.accelerator.is_main_process
        set_seed(config.seed)  # the same weights on every rank

    def fit(
        self,
        model: torch.nn.Module,
        train: Loader,
        valid: Loader | None = None,
        *,
        info: dict[str, Any] | None = None,
    ) -> TrainResult:
        """Train `model`, keeping its best and its last state as checkpoints.

        Args:
            model: images [B, C, S, T] -> logits [B, number of classes].
            train, valid: batches; without `valid` the last epoch is the best one.
            info: what the checkpoints should say of themselves, e.g. model name and normalization.

        Raises:
            TrainError: the loss is no longer a number.
            CheckpointError: a checkpoint cannot be written.
        """
        begin = time.perf_counter()
        output = self._fresh_output()
        run = self._prepare(model, train, valid)
        about = {
            "classes": list(train.dataset.classes),
            "config": _plain(asdict(self.config)),
            **(info or {}),
        }
        writer = SummaryWriter(str(output)) if self.is_main else None
        best: Epoch | None = None
        try:
            with self._progress() as bar:
                for number in range(self.config.epochs):
                    epoch = self._epoch(run, number, bar)
                    self._say(epoch, writer)
                    files = ["last"]
                    if best is None or self._is_better(epoch, best):
                        best, files = epoch, ["last", "best"]
                    if self.is_main:
                        unwrapped = self.accelerator.unwrap_model(run.model)
                        for name in files:
                            save_checkpoint(output / f"{name}.safetensors", unwrapped, {**about, **asdict(epoch)})
                    if self.config.patience is not None and number - best.epoch >= self.config.patience:
                        break
        finally:
            if writer is not None:
                writer.close()
        assert best is not None  # epochs >= 1
        timing = run.meter.result()
        result = TrainResult(
            output=output, seconds=time.perf_counter() - begin, best=best, epochs=tuple(run.epochs),
            data_wait=timing.wait_share,
            verdict=str(judge(timing.wait_share, timing.num_steps, self.accelerator.device.type)),
        )  # fmt: skip
        if self.is_main:
            write_json(output / "result.json", self._report(result, train, about))
        self.accelerator.wait_for_everyone()
        return result

    def evaluate(self, model: torch.nn.Module, loader: Loader) -> tuple[float, float]:
        """Return (mean loss, accuracy) over the loader's split, every sample counted once on any number of ranks."""
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        with torch.no_grad():
            for images, labels in loader:
                with self.accelerator.autocast():
                    logits = model(images)
                logits, labels = logits[: loader.num_valid].float(), labels[: loader.num_valid]
                loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
                num_labelled = (labels != UNLABELLED).sum()
                sums += torch.stack([loss, (logits.argmax(1) == labels).sum(), num_labelled]).double()
        total = self.accelerator.reduce(sums, "sum").tolist()
        if not total[2]:
            raise ConfigError(f"{loader.dataset.split} has no labelled sample, so there is nothing to evaluate on.")
        return total[0] / total[2], total[1] / total[2]

    def _prepare(self, model: torch.nn.Module, train: Loader, valid: Loader | None) -> _Run:
        config = self.config
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model = model.to(self.accelerator.device)
        steps = min(len(train), config.max_steps or len(train))
        prepared, optimizer = self.accelerator.prepare(model, make_optimizer(model, config))
        # Left out of prepare(): Accelerate would step it once per process.
        scheduler = make_scheduler(optimizer.optimizer, config, steps)
        meter = WaitMeter(self.accelerator.device, num_warmup=3)
        return _Run(model=prepared, optimizer=optimizer, scheduler=scheduler, train=train, valid=valid, meter=meter,
                    steps_per_epoch=steps)  # fmt: skip

    def _epoch(self, run: _Run, number: int, bar: _Bar) -> Epoch:
        begin, config = time.perf_counter(), self.config
        run.model.train()
        run.train.set_epoch(number)
        bar.epoch_begins(number, run.steps_per_epoch)
        lr = run.optimizer.param_groups[0]["lr"]
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        before = run.meter.result()
        for step, (images, labels) in enumerate(run.meter.watch(run.train), start=1):
            with self.accelerator.autocast():
                logits = run.model(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
            self.accelerator.backward(loss)
            if config.clip_grad_norm is not None:
                self.accelerator.clip_grad_norm_(run.model.parameters(), config.clip_grad_norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.scheduler.step()
            sums += torch.stack([loss.detach() * len(labels), loss.new_tensor(len(labels))]).double()
            bar.step_ends(len(labels) * self.accelerator.num_processes, run.meter)
            if step == run.steps_per_epoch:
                break
        seconds = time.perf_counter() - begin
        loss_sum, count = self.accelerator.reduce(sums, "sum").tolist()
        if not math.isfinite(loss_sum):
            raise TrainError(f"the training loss is {loss_sum} in epoch {number}; use a smaller lr than {config.lr:g}.")
        valid_loss, accuracy = self.evaluate(run.model, run.valid) if run.valid is not None else (None, None)
        after = run.meter.result()
        wall = after.wall_seconds - before.wall_seconds
        epoch = Epoch(
            epoch=number, lr=lr, train_loss=loss_sum / count, valid_loss=valid_loss, accuracy=accuracy, seconds=seconds,
            images_per_second=count / seconds,
            data_wait=(after.wait_seconds - before.wait_seconds) / wall if wall > 0 else None,
        )  # fmt: skip
        run.epochs.append(epoch)
        return epoch

    def _is_better(self, epoch: Epoch, best: Epoch) -> bool:
        if epoch.accuracy is None or best.accuracy is None or epoch.valid_loss is None or best.valid_loss is None:
            return True
        if self.config.monitor == "loss":
            return epoch.valid_loss < best.valid_loss
        return epoch.accuracy > best.accuracy

    def _fresh_output(self) -> Path:
        """Return a folder without results of an earlier run, the same on every rank."""
        output, number = self.config.output, 1
        while self.is_main and output.exists() and any(output.iterdir()):
            number += 1
            output = self.config.output.with_name(f"{self.config.output.name}-{number}")
        chosen = [str(output)]
        broadcast_object_list(chosen)
        output = Path(chosen[0])
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ConfigError(f"{output} cannot be made ({e.strerror}); pass another --output.") from e
        return output

    def _say(self, epoch: Epoch, writer: SummaryWriter | None) -> None:
        if writer is None:
            return
        for name, value in asdict(epoch).items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, epoch.epoch)
        valid = "" if epoch.accuracy is None else f"valid loss {epoch.valid_loss:.4f}  accuracy {epoch.accuracy:.2%}  "
        wait = "" if epoch.data_wait is None else f"data wait {epoch.data_wait:.1%}"
        self._console().print(
            f"epoch {epoch.epoch:3d}  train loss {epoch.train_loss:.4f}  {valid}{epoch.seconds:.1f} s  "
            f"{epoch.images_per_second:,.0f} images/s  {wait}", highlight=False,
        )  # fmt: skip

    def _report(self, result: TrainResult, train: Loader, about: dict[str, Any]) -> dict[str, Any]:
        return {
            "schema": "fastload-train", "version": 1, "command": command(), **environment(),
            "num_processes": self.accelerator.num_processes, "device": self.accelerator.device.type,
            "precision": self.accelerator.mixed_precision,
            "data": {
                "name": train.dataset.source_name, "digest": train.dataset.digest,
                "image": list(train.dataset.sample_shape), "train": len(train.dataset),
                "placement": train.placement.kind,
            },
            "seconds": rounded(result.seconds, 1), "data_wait": rounded(result.data_wait), "verdict": result.verdict,
            "best": _plain(asdict(result.best)), "epochs": [_plain(asdict(e)) for e in result.epochs],
            **{k: v for k, v in about.items() if k != "classes"},
        }  # fmt: skip

    def _console(self) -> Console:
        return Console(stderr=True, soft_wrap=True)

    @contextmanager
    def _progress(self) -> Iterator[_Bar]:
        columns = (TextColumn("[bold]epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[speed]}"), TimeRemainingColumn())  # fmt: skip
        console = self._console()
        shown = self.is_main and console.is_terminal
        with Progress(*columns, console=console, disable=not shown, transient=True) as progress:
            yield _Bar(progress, progress.add_task("", epoch=0, speed=""))


class _Bar:
    """The live line: steps of this epoch, images/s and data wait so far."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._begin, self._count = 0.0, 0

    def epoch_begins(self, number: int, num_steps: int) -> None:
        self._begin, self._count = time.perf_counter(), 0
        self._progress.reset(self._task, total=num_steps, epoch=number, speed="")

    def step_ends(self, num_images: int, meter: WaitMeter) -> None:
        self._count += num_images
        if self._progress.disable:
            return
        share = meter.share_so_far
        wait = "" if share is None else f", data wait {share:.1%}"
        speed = self._count / (time.perf_counter() - self._begin)
        self._progress.update(self._task, advance=1, speed=f"{speed:,.0f} images/s{wait}")


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the config's optimizer; biases and norms (parameters of one axis) do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, lr=config.lr)


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the config's schedule, to be stepped once after every optimizer step."""
    total, warmup = config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))
        if config.schedule == "step":
            return float(config.gamma ** (step // (config.step_epochs * steps_per_epoch)))
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as JSON takes them: paths by name, floats in a readable number of digits."""
    kept = {k: v.name if isinstance(v, Path) else v for k, v in settings.items()}
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in kept.items()}
