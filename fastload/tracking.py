"""What a run shows while it goes: the live line, a sentence per epoch, a tracker's curves, pictures and graph."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fastload.config import TrainConfig
from fastload.errors import ConfigError, printable
from fastload.profiling import WaitMeter
from fastload.results import Epoch, TrainResult, shown_settings

_TRACED_STEPS = 5
_GRID_IMAGES = 16


class Tracker:
    """Tells the main process's terminal and the tracker of `log_with` how a run goes; other ranks are silent.

    Args:
        accelerator: with `log_with` set up.
        config: of the run.
        output: folder of the run.
    """

    def __init__(self, accelerator: Accelerator, config: TrainConfig, output: Path) -> None:
        self._accelerator, self._output = accelerator, output
        self._console = Console(stderr=True, soft_wrap=True)
        accelerator.project_configuration.set_directories(str(output))
        if config.log_with == "tensorboard":
            accelerator.init_trackers("")  # the scalars lie in `output` itself
        elif config.log_with is not None:
            accelerator.init_trackers(output.name, config=shown_settings(config))

    def epoch(self, epoch: Epoch) -> None:
        """Tell the figures of an epoch."""
        figures = {k: v for k, v in asdict(epoch).items() if isinstance(v, int | float) and k != "epoch"}
        self._accelerator.log(figures, step=epoch.epoch)
        if self._accelerator.is_main_process:
            self._console.print(str(epoch), highlight=False, markup=False)

    def first_batch(self, model: torch.nn.Module, images: torch.Tensor) -> None:
        """Show some images as the model gets them, and its graph; what cannot be shown is left out.

        Args:
            model: not wrapped; left as it is.
            images: [B, C, S, T], or features [B, D], which are not shown.
        """
        if not self._accelerator.is_main_process:
            return
        # Only for the eye: neither may end a run, print, or change its draws.
        devices = [images.device] if images.is_cuda else []
        with (
            suppress(Exception), warnings.catch_warnings(), redirect_stdout(io.StringIO()),
            torch.random.fork_rng(devices), torch.no_grad(),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            for tracker in self._accelerator.trackers:
                if images.ndim == 4 and images.shape[1] in (1, 3) and hasattr(tracker, "log_images"):
                    tracker.log_images({"images": _grid(images)}, step=0, **_formats(tracker))
                if tracker.name == "tensorboard":
                    model.eval()
                    tracker.writer.add_graph(model, images[:1].float())

    def result(self, result: TrainResult) -> None:
        """Print what the run came to, with the profiler's verdict, on standard output."""
        if self._accelerator.is_main_process:
            names = ", ".join(sorted(f.name for f in self._output.iterdir()))
            print(f"{result}\nwrote {printable(self._output)}: {printable(names)}")

    def close(self) -> None:
        """End the tracker; Accelerate's own `end_training` would end the process group, too."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers = []

    @contextmanager
    def live_line(self) -> Iterator[Bar]:
        """Show a bar of steps on a terminal, for as long as the context lasts."""
        columns = (TextColumn("[bold]epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[speed]}"), TimeRemainingColumn())  # fmt: skip
        shown = self._accelerator.is_main_process and self._console.is_terminal
        with Progress(*columns, console=self._console, disable=not shown, transient=True) as progress:
            yield Bar(progress, progress.add_task("", epoch=0, speed=""))


class Bar:
    """The live line: steps of this epoch, images/s and data wait so far."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._begin, self._count = 0.0, 0

    def epoch_begins(self, number: int, num_steps: int, done: int = 0) -> None:
        """Start at step `done` of an epoch."""
        self._begin, self._count = time.perf_counter(), 0
        self._progress.reset(self._task, total=num_steps, completed=done, epoch=number, speed="")

    def step_ends(self, num_images: int, meter: WaitMeter) -> None:
        """Move on by one step of `num_images` on all ranks."""
        self._count += num_images
        if self._progress.disable:
            return
        share = meter.share_so_far
        wait = "" if share is None else f", data wait {share:.1%}"
        speed = self._count / (time.perf_counter() - self._begin)
        self._progress.update(self._task, advance=1, speed=f"{speed:,.0f} images/s{wait}")


def warn(sentence: str) -> None:
    """Say what need not stop a run."""
    Console(stderr=True, soft_wrap=True).print(sentence, style="yellow", highlight=False, markup=False)


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that Accelerate does not know or that is not installed.

    Raises:
        ConfigError: it names those that are there.
    """
    if name is None:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = [str(getattr(t, "value", t)) for t in get_available_trackers()]
    if name not in there:
        known = [str(getattr(t, "value", t)) for t in LOGGER_TYPE_TO_CLASS]
        found = "is not installed" if name in known else "is no tracker that Accelerate knows"
        raise ConfigError(f"log_with={printable(name)} {found}; here are {', '.join(there) or 'none'}; or None.")


class Trace:
    """Records a few steps with torch.profiler, from the second one on, and writes `trace.json`.

    Args:
        folder: where to; None records nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._num_steps = folder, 0
        self._profiler: torch.profiler.profile | None = None

    def step(self) -> None:
        """Say that a step has ended."""
        self._num_steps += 1
        if self._folder is not None and self._num_steps == 1:
            # Started by hand: a schedule of torch's was seen to crash where an epoch ends in its warm-up.
            self._profiler = torch.profiler.profile(acc_events=True)
            self._profiler.start()
        elif self._num_steps == 1 + _TRACED_STEPS:
            self.close()

    def close(self) -> None:
        """Write what was recorded, if anything."""
        if self._profiler is not None and self._folder is not None:
            self._profiler.stop()
            self._profiler.export_chrome_trace(str(self._folder / "trace.json"))
            self._profiler = None


def _grid(images: torch.Tensor) -> Any:
    """Return a grid of images as they were augmented, brought to 0..1 together; float32 [1, H, W, C]."""
    from torchvision.utils import make_grid

    chosen = images[:_GRID_IMAGES].detach().float().cpu()
    return make_grid(chosen, nrow=4, normalize=True).permute(1, 2, 0)[None].numpy()


def _formats(tracker: Any) -> dict[str, str]:
    return {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
