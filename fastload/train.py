"""A training loop on Accelerate: any number of GPUs or CPU processes, one config, one `fit`."""

from __future__ import annotations

import atexit
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed

from fastload.agreement import check_labels, check_outputs
from fastload.checkpoint import save_checkpoint
from fastload.config import TrainConfig
from fastload.devices import computes_bfloat16, leave_group, parse_device, set_switches
from fastload.errors import ConfigError, TrainError
from fastload.evaluation import Evaluation, Totals, draw_confusion, loss_of, sums_on, write_confusion
from fastload.loader import Loader
from fastload.optim import train_mode
from fastload.phases import Phase, Run
from fastload.profiling import Timing, judge
from fastload.profiling.report import write_json
from fastload.results import Epoch, TrainResult, make_output, names_of, report, shown_settings
from fastload.resuming import STATE_NAME, find_state, restore_generators, settings_of
from fastload.settings import save
from fastload.tracking import Bar, Trace, check_tracker, warn


class Trainer:
    """Trains one model. Make it first: loaders made afterwards know their rank and device from it.

    Args:
        config: how to train.

    Attributes:
        accelerator: Accelerate's, set up.
        is_main: whether this process is the one that prints and writes.

    Raises:
        ConfigError: the device or the tracker is not there.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        check_tracker(config.log_with)
        device = parse_device(config.device)
        if config.device is not None and device.type == "cuda":
            torch.cuda.set_device(device)
        set_switches(device, tf32=config.tf32, deterministic=config.deterministic)
        if config.mixed_precision == "fp16" and device.type == "cpu":
            raise ConfigError("mixed_precision=fp16 is for GPUs; use bf16 or no on the CPU.")
        # Said also where there is nothing else: only then does Accelerate let several CPU processes train together.
        self.accelerator = Accelerator(
            cpu=device.type == "cpu", mixed_precision=config.mixed_precision, log_with=config.log_with,
            project_dir=config.output,
        )  # fmt: skip
        atexit.register(leave_group)
        self.is_main: bool = self.accelerator.is_main_process
        if config.sync_batchnorm and self.accelerator.num_processes > 1 and device.type == "cpu":
            raise ConfigError("sync_batchnorm: PyTorch has it for GPUs alone; leave it out on the CPU.")
        if self.accelerator.mixed_precision == "bf16" and self.is_main and not computes_bfloat16(device):
            warn("mixed_precision=bf16: this CPU has no instructions for it; float32 is several times as fast here.")
        set_seed(config.seed)  # the same weights on every rank

    def fit(
        self, model: torch.nn.Module, train: Loader, valid: Loader | None = None, *,
        phases: Sequence[Phase] | None = None, info: dict[str, Any] | None = None,
    ) -> TrainResult:  # fmt: skip
        """Train `model`, keeping its best and its last state as checkpoints in `output`, and print what it came to.

        Args:
            model: a batch of the loader -> outputs, as the config's loss takes them; left with its last weights.
            train, valid: batches; without `valid` the last epoch is the best one.
            phases: one after the other; without any there is one of all the config's epochs.
            info: what checkpoints and `result.json` should say, e.g. model name, normalization, origin of weights.

        Raises:
            ConfigError: loss, labels and outputs do not fit, `output` cannot be written, a phase names no parameter.
            TrainError: the loss is no longer a number.
            CheckpointError: a checkpoint cannot be written, or `resume` found one of other settings.
        """
        config, phases = self.config, list(phases or [Phase("all", self.config.epochs)])
        check_labels(config.loss, [train, valid, *(loader for p in phases for loader in (p.train, p.valid))])
        output = make_output(config, self.is_main)
        settings = settings_of(config, self.accelerator, phases, (train, valid))
        resumed = find_state(output / STATE_NAME, settings, self.accelerator) if config.resume else None
        about = {**names_of(train.dataset), "config": shown_settings(config), **(info or {})}
        if self.is_main:
            save(replace(config, output=output), output / "settings.yaml")
        run = Run(self.accelerator, config, model, output, settings, resumed)
        try:
            with run.tracker.live_line() as bar:
                while (number := run.position.phase) < len(phases):
                    run.begin_phase(phases[number], train, valid)
                    while run.position.phase == number:
                        self._end_epoch(run, *self._epoch(run, bar), about)
        finally:
            run.tracker.close()
            run.unwrap()
        return self._end(run, train, about)

    def evaluate(self, model: torch.nn.Module, loader: Loader) -> Evaluation:
        """Return means over the loader's split, every sample counted once on any number of ranks.

        Raises:
            ConfigError: no sample of the split has a label.
        """
        totals = Totals(self.config.loss, self.accelerator.device)
        for outputs, labels in self._outputs(model, loader):
            totals.add(outputs[: loader.num_valid], labels[: loader.num_valid])
        return totals.result(lambda sums: self.accelerator.reduce(sums, "sum"))

    def predict(self, model: torch.nn.Module, loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (outputs [N, K] float32, labels) of the loader's samples in its order, on the CPU of every rank."""
        batches = [[t.cpu() for t in self.accelerator.gather(batch)] for batch in self._outputs(model, loader)]
        # Padding is all at the end, of the last step in the order of ranks.
        outputs, labels = (torch.cat(parts)[: loader.shares.num_samples] for parts in zip(*batches, strict=True))
        return outputs, labels

    @torch.no_grad()
    def _outputs(self, model: torch.nn.Module, loader: Loader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        model = self.accelerator.unwrap_model(model).to(self.accelerator.device).eval()
        if self.accelerator.num_processes > 1:
            for buffer in model.buffers():  # each rank has batch statistics of its own
                broadcast(buffer)
        for images, labels in loader:
            with self.accelerator.autocast():
                outputs = model(images)
                if self.config.tta and images.ndim == 4:
                    outputs = (outputs + model(images.flip(-1))) / 2
            yield outputs.float(), labels

    def _epoch(self, run: Run, bar: Bar) -> tuple[Epoch, Evaluation | None]:
        begin, position, accelerator = time.perf_counter(), run.position, self.accelerator
        number, done, before = len(position.epochs), position.num_samples, run.meter.result()
        if position.batch and run.resumed is not None:
            run.train.load_state_dict(run.resumed.about["loader"])
        else:
            run.train.set_epoch(number)
            position.lr = run.optimizer.param_groups[0]["lr"]
            if run.resumed is not None:
                restore_generators(run.resumed, accelerator)
        bar.epoch_begins(number, run.steps, position.batch)
        sums = sums_on(accelerator.device, position.loss_sum, done) / accelerator.num_processes
        train_mode(run.model, run.phase.trainable)
        with closing(Trace(run.output if self.config.trace and self.is_main and number == 0 else None)) as trace:
            for images, labels in run.meter.watch(run.train):
                if run.resumed is not None:
                    if position.batch:
                        # Only now: a DataLoader below the loader has drawn a number again when it began.
                        restore_generators(run.resumed, accelerator)
                    run.resumed = None
                elif number == position.batch == 0:
                    run.tracker.first_batch(run.model, images)
                    train_mode(run.model, run.phase.trainable)
                position.batch += 1
                loss, has_stepped = self._batch(run, images, labels)
                sums += torch.stack([loss * len(labels), torch.full_like(loss, len(labels))]).to(sums)
                bar.step_ends(len(labels) * accelerator.num_processes, run.meter)
                trace.step()
                if position.batch == run.steps:
                    break
                if has_stepped and self.config.save_every_steps and not position.updates % self.config.save_every_steps:
                    position.loss_sum, position.num_samples = accelerator.reduce(sums, "sum").tolist()
                    run.save()
        return self._figures(run, sums, begin=begin, count_before=done, timing_before=before)

    def _figures(
        self, run: Run, sums: torch.Tensor, *, begin: float, count_before: float, timing_before: Timing
    ) -> tuple[Epoch, Evaluation | None]:
        """Evaluate, and return what an epoch came to whose losses and samples are in `sums`."""
        loss_sum, count = self.accelerator.reduce(sums, "sum").tolist()  # waits for the device
        seconds = time.perf_counter() - begin
        number, lr, timing = len(run.position.epochs), run.position.lr, run.meter.result()
        if not math.isfinite(loss_sum):
            raise TrainError(f"the training loss is {loss_sum} in epoch {number}; use a smaller lr than {lr:g}.")
        if run.valid is not None:
            run.valid.set_epoch(number)  # what it draws, if anything, is the epoch's, also of a run that goes on
        found = None if run.valid is None else self.evaluate(run.kept, run.valid)
        wall = timing.wall_seconds - timing_before.wall_seconds
        return Epoch(
            epoch=number, phase=run.phase.name, lr=lr, train_loss=loss_sum / count, seconds=seconds,
            images_per_second=(count - count_before) / seconds, **({} if found is None else found.figures),
            data_wait=(timing.wait_seconds - timing_before.wait_seconds) / wall if wall > 0 else None,
        ), found  # fmt: skip

    def _batch(self, run: Run, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Add a batch's gradients, and step after `accumulate` of them; return the loss, and whether it stepped."""
        config, accelerator, batch = self.config, self.accelerator, run.position.batch
        first = (batch - 1) // config.accumulate * config.accumulate
        window = min(config.accumulate, run.steps - first)  # the last one of an epoch may be smaller
        is_last = batch == first + window
        with nullcontext() if is_last else accelerator.no_sync(run.prepared):
            with accelerator.autocast():
                outputs = run.prepared(images)
            if not run.position.updates:
                check_outputs(config.loss, outputs, labels, len(run.train.dataset.classes))
            loss = loss_of(config.loss, outputs, labels, smoothing=config.label_smoothing)
            accelerator.backward(loss / window)
        if is_last:
            if config.clip_grad_norm is not None:
                accelerator.clip_grad_norm_(run.model.parameters(), config.clip_grad_norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
            if not run.optimizer.step_was_skipped:  # fp16 leaves a step out where gradients overflow
                run.scheduler.step()
            run.position.updates += 1
            if run.ema is not None:
                run.ema.update(run.model, run.position.updates)
        return loss.detach(), is_last

    def _end_epoch(self, run: Run, epoch: Epoch, found: Evaluation | None, about: dict[str, Any]) -> None:
        """Keep what the epoch gave: figures, checkpoints, and where the run stands."""
        position, config = run.position, self.config
        run.tracker.epoch(epoch)
        position.epochs.append(epoch)
        position.batch, position.loss_sum, position.num_samples = 0, 0.0, 0.0
        position.phase_epoch, position.since_best = position.phase_epoch + 1, position.since_best + 1
        if is_best := epoch.is_better(position.best, config.monitor):
            position.best, position.since_best = epoch, 0
        if position.phase_epoch == run.phase.epochs or position.since_best == config.patience:
            position.phase, position.phase_epoch, position.since_best = position.phase + 1, 0, 0
        if self.is_main:
            for name in ("last", "best") if is_best else ("last",):
                save_checkpoint(run.output / f"{name}.safetensors", run.kept, {**about, **asdict(epoch)})
            if is_best and found is not None and found.confusion is not None:
                write_confusion(run.output, found.confusion, about["display_names"])
        run.save()

    def _end(self, run: Run, train: Loader, about: dict[str, Any]) -> TrainResult:
        timing, best, device = run.meter.result(), run.position.best, self.accelerator.device.type
        assert best is not None  # every phase has an epoch
        result = TrainResult(
            output=run.output, seconds=run.seconds, best=best, epochs=tuple(run.position.epochs),
            data_wait=timing.wait_share, verdict=str(judge(timing.wait_share, timing.num_steps, device)),
        )  # fmt: skip
        # A run that had ended before has measured nothing now.
        if self.is_main and (run.resumed is None or not (run.output / "result.json").exists()):
            write_json(run.output / "result.json", report(result, train, about, self.accelerator))
            if self.config.max_steps is None:  # drawing takes longer than trying things out
                draw_confusion(run.output)
        run.tracker.result(result)
        self.accelerator.wait_for_everyone()
        return result
