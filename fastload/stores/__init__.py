"""Stores: samples in one kind of memory, served step by step.

A store is asked for the steps of a pass, in their order, and may look ahead in them; it serves each as new memory
that belongs to the caller, or as rows of all its samples, which stay its own. Whatever it starts for a pass (threads,
processes, open files) ends with the pass, also where that is left early: `serve` is a generator, and closing it is
enough.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]
Boxes = Callable[[Ints, Ints], Ints]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What one step of one rank wants.

    Attributes:
        ids: sample ids, int64 [B], CPU.
        num_valid: rows that count; the rest is padding.
        boxes: what is cut out of each image: of (H, W) [B, 2] and ids [B] it makes (top, left, height, width), int64
            [B, 4]; fit to be sent to another process. None takes images whole.
        drawn: what augmentation has drawn for them already; no matter of the store.
    """

    ids: torch.Tensor
    num_valid: int
    boxes: Boxes | None = None
    drawn: Any = None


@dataclass(frozen=True, kw_only=True)
class Served:
    """The samples of one step.

    Attributes:
        wanted: what was asked for.
        samples: [B, H, W, C] or [B, D], on the store's device.
        rows: which of `samples` the step is, int64 [B] beside them, where these are all that the store has:
            augmentation takes its own out of them, and no batch is copied.
        labels: where only the samples themselves know them, [B, ...]; else None.
    """

    wanted: Wanted
    samples: torch.Tensor
    rows: torch.Tensor | None = None
    labels: torch.Tensor | None = None


class Store(Protocol):
    """Samples by their ids."""

    def serve(self, steps: Iterator[Wanted]) -> Generator[Served, None, None]:
        """Serve the steps of one pass, in order."""
        ...


__all__ = ["Boxes", "Served", "Store", "Wanted"]
