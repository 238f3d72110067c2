"""What a run comes to: the figures of an epoch, of the whole, and `result.json`."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from fastload.config import Monitor, TrainConfig
from fastload.errors import ConfigError, printable
from fastload.formats import AnyDataset
from fastload.loader import Loader
from fastload.profiling.report import described, rounded

CLAIM_NAME = ".claimed"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch's figures; None where there was nothing to measure. Shares are of wall time."""

    epoch: int
    phase: str
    lr: float
    train_loss: float
    valid_loss: float | None = None
    accuracy: float | None = None
    mean_absolute_error: float | None = None
    seconds: float
    images_per_second: float | None
    data_wait: float | None

    def is_better(self, best: Epoch | None, monitor: Monitor) -> bool:
        """Whether this is the best epoch so far; without a validation split the latest one is."""
        if best is None or self.valid_loss is None or best.valid_loss is None:
            return True
        if monitor == "loss" or self.accuracy is None or best.accuracy is None:
            return self.valid_loss < best.valid_loss or math.isnan(best.valid_loss)
        return self.accuracy > best.accuracy

    def __str__(self) -> str:
        words = [f"epoch {self.epoch:3d}", f"train loss {self.train_loss:.4f}"]
        words += [f"{name} {value}" for name, value in self.quality.items()]
        words += [f"{self.seconds:.1f} s", f"{self.images_per_second or 0:,.0f} images/s"]
        return "  ".join(words if self.data_wait is None else [*words, f"data wait {self.data_wait:.1%}"])

    @property
    def quality(self) -> dict[str, str]:
        """What the validation split said, as text by name."""
        found = {} if self.valid_loss is None else {"valid loss": f"{self.valid_loss:.4f}"}
        if self.accuracy is not None:
            found["accuracy"] = f"{self.accuracy:.2%}"
        if self.mean_absolute_error is not None:
            found["mean absolute error"] = f"{self.mean_absolute_error:.4g}"
        return found


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What `fit` came to; the same as `result.json` in `output`. `seconds` are those of all epochs."""

    output: Path
    seconds: float
    best: Epoch
    epochs: tuple[Epoch, ...]
    data_wait: float | None
    verdict: str

    def __str__(self) -> str:
        quality = self.best.quality or {"train loss": f"{self.best.train_loss:.4f}"}
        shown = ", ".join(f"{name} {value}" for name, value in reversed(quality.items()))
        return f"best: {shown} (epoch {self.best.epoch} of {len(self.epochs)}) in {self.seconds:.0f} s\n{self.verdict}"


def shown_settings(config: TrainConfig) -> dict[str, Any]:
    """Return settings as results name them: paths by their last part, floats in a readable number of digits."""
    kept = {k: v.name if isinstance(v, Path) else v for k, v in asdict(config).items()}
    return {k: shortened(v) for k, v in kept.items()}


def make_output(config: TrainConfig, is_main: bool) -> Path:
    """Make and return a run's folder, the same on every rank: without `resume`, one without an earlier run's results.

    Raises:
        ConfigError: it cannot be made.
    """
    output, number, wrong = config.output, 1, ""
    try:
        while is_main and not config.resume and not _claim(output):
            number += 1
            output = config.output.with_name(f"{config.output.name}-{number}")
    except OSError as e:
        wrong = f"cannot be read ({e.strerror})"
    except ValueError:  # of `.` and `/`: no name that -2 could go behind
        wrong = "is not empty"
    chosen = [str(output), wrong]
    broadcast_object_list(chosen)
    output, wrong = Path(chosen[0]), chosen[1]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        wrong = f"cannot be made ({e.strerror})"
    if wrong:
        raise ConfigError(f"{printable(output)} {wrong}; pass another --output, e.g. runs/NAME.")
    return output


def _claim(folder: Path) -> bool:
    """Make a folder this run's own; return False where it is another's, or holds anything."""
    if folder.exists() and any(folder.iterdir()):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Made by one of two runs that saw the folder empty; it stays, so that the other cannot come later.
        os.close(os.open(folder / CLAIM_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return not folder.is_dir()
    except OSError:  # whoever writes there says so
        return True
    return True


def names_of(dataset: AnyDataset) -> dict[str, list[str]]:
    """Return `classes` and `display_names` of a dataset, for checkpoints."""
    manifest = getattr(dataset, "manifest", None)
    classes = list(dataset.classes)
    return {"classes": classes, "display_names": classes if manifest is None else list(manifest.display_names)}


def shortened(value: Any) -> Any:
    """Return a float in a readable number of digits, anything else as it is."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def report(result: TrainResult, train: Loader, about: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Return `result.json`.

    Args:
        result: of the run.
        train: what it trained on.
        about: what the checkpoints say of themselves.
        accelerator: by which it was trained: says the number of processes, the device and the precision.
    """

    def figures(epoch: Epoch) -> dict[str, Any]:
        return {k: shortened(v) for k, v in asdict(epoch).items()}

    return {
        "schema": "fastload-train", "version": 2, **described(),
        "num_processes": accelerator.num_processes, "device": accelerator.device.type,
        "precision": accelerator.mixed_precision,
        "data": {
            "name": train.dataset.source_name, "digest": train.dataset.digest,
            "image": list(train.dataset.sample_shape), "train": train.shares.num_samples,
            "placement": train.placement.kind,
        },
        "seconds": rounded(result.seconds, 1), "data_wait": rounded(result.data_wait), "verdict": result.verdict,
        "best": figures(result.best), "epochs": [figures(e) for e in result.epochs],
        **{k: v for k, v in about.items() if k not in ("classes", "display_names")},
    }  # fmt: skip
