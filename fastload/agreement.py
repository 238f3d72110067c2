"""Whether a loss, the labels and what a model makes of a batch go together: asked before the first step.

Shape letters: N batch, K classes, T targets.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fastload.config import Loss
from fastload.errors import ConfigError, printable
from fastload.loader import Loader
from fastload.records import UNLABELLED


def check_labels(loss: Loss, loaders: Iterable[Loader | None]) -> None:
    """Hold a loss against the labels of what it is to train and be judged on, where they are listed.

    Raises:
        ConfigError: amounts for a loss of classes, classes for mse, other than two classes for bce, or no label at all.
    """
    for dataset in (loader.dataset for loader in loaders if loader is not None):
        name, count = printable(dataset.source_name), len(dataset.classes)
        if dataset.labels is None:  # they come with the samples
            continue
        if dataset.is_regression and loss != "mse":
            raise ConfigError(f"loss={loss} is for classes, and the labels of {name} are amounts; use loss=mse.")
        if loss == "mse" and not dataset.is_regression:
            raise ConfigError(f"loss=mse is for amounts, and {name} has classes; use loss=cross_entropy.")
        if loss == "bce" and count not in (0, 2):
            raise ConfigError(f"loss=bce is for two classes, and {name} has {count:,}; use loss=cross_entropy.")
        if not dataset.is_regression and not bool((dataset.labels != UNLABELLED).any()):
            raise ConfigError(
                f"the split {printable(dataset.split)} of {name} has no labelled sample, so there is nothing to "
                "evaluate on; use another."
            )


def check_outputs(loss: Loss, outputs: torch.Tensor, labels: torch.Tensor, num_classes: int) -> None:
    """Hold what a model gives for a batch against its labels; waits for the device.

    Args:
        loss: as `loss_of` takes it.
        outputs, labels: of the model and the loader.
        num_classes: of the dataset; 0 where it does not say.

    Raises:
        ConfigError: they do not go together.
    """
    if loss == "mse":
        fits, wanted = labels.is_floating_point() and outputs.numel() == labels.numel(), "one output for each amount"
    elif loss == "bce":
        fits = outputs.flatten().shape == labels.shape and int(labels.max()) <= 1
        wanted = "one logit for each sample, and labels 0 or 1"
    elif labels.ndim == 2:
        fits = labels.is_floating_point() and outputs.shape == labels.shape
        wanted = "a logit for each class, and shares of classes"
    else:
        # One logit alone is always right: its loss is 0, and its accuracy 100%.
        num_classes = max(2, num_classes, 1 + int(labels.max()))
        fits = labels.ndim == 1 and not labels.is_floating_point() and outputs.ndim == 2
        fits, wanted = fits and outputs.shape[1] >= num_classes, f"a logit for each class, {num_classes} or more"
    if not fits:
        raise ConfigError(
            f"loss={loss} wants {wanted}, and for labels {list(labels.shape)} ({str(labels.dtype)[6:]}) the model "
            f"gives {list(outputs.shape)}; change its last layer, or use another loss."
        )
