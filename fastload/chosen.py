"""Which samples a loader gives: all of a dataset, or those that somebody names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Subset

from fastload.errors import ConfigError
from fastload.formats import AnyDataset, MapDataset
from fastload.records import UNLABELLED


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Samples of a dataset.

    Attributes:
        dataset: what they are of.
        ids: int64 [n], as they come where they are not shuffled; None where they are all, one after another.
        digest: (hex) of the ids that were named; None where none were.
    """

    dataset: AnyDataset
    ids: torch.Tensor | None
    digest: str | None


def choose_samples(dataset: Any, indices: Any, *, shuffle: bool) -> Chosen:
    """Return which samples a loader gives.

    Args:
        dataset: one that `open_dataset` opened, a torch Subset of it, or any map-style dataset.
        indices: whole numbers [n], of any length: sequence, array or tensor; None takes all.
        shuffle: leave out those that have no label: they are there for prediction, in a fixed order.

    Raises:
        ConfigError: there are no such samples.
    """
    # Only torch's own Subset: another class may do something with a sample on its way.
    while type(dataset) is Subset and isinstance(_innermost(dataset), AnyDataset):
        own = _parsed(dataset.indices, len(dataset.dataset))  # type: ignore[arg-type]
        indices = own if indices is None else own[_parsed(indices, len(own))]
        dataset = dataset.dataset
    opened: AnyDataset = dataset if isinstance(dataset, AnyDataset) else MapDataset(dataset)
    named = None if indices is None else _parsed(indices, len(opened))
    ids = None if named is None else torch.from_numpy(named)
    if shuffle and opened.labels is not None and not opened.is_regression:
        labelled = (opened.labels if ids is None else opened.labels[ids]) != UNLABELLED
        if not bool(labelled.all()):
            ids = torch.nonzero(labelled).flatten() if ids is None else ids[labelled]
    return Chosen(dataset=opened, ids=ids, digest=None if named is None else _digest(named))


def _innermost(dataset: Any) -> Any:
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return dataset


def _parsed(indices: Any, count: int) -> npt.NDArray[np.int64]:
    """Return ids of `count` samples as int64 [n] of their own memory."""
    if isinstance(indices, torch.Tensor):
        indices = indices.detach().cpu().numpy()
    try:
        found = np.asarray(indices)
    except ValueError:  # lists of several lengths
        found = np.empty((), object)
    if found.ndim == 1 and not found.size:
        raise ConfigError("indices is empty; name at least one sample, or leave it out.")
    if found.ndim != 1 or found.dtype.kind not in "iu":
        is_mask = found.dtype.kind == "b"
        instead = "pass where the mask is true: numpy.flatnonzero(mask)" if is_mask else "pass a list of int"
        raise ConfigError(
            f"indices are {found.dtype} {list(found.shape)}, and the ids of samples are whole numbers [n]; {instead}."
        )
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= count:
        raise ConfigError(f"indices go from {low:,} to {high:,}, and there are {count:,} samples, counted from 0.")
    return found.astype(np.int64)


def _digest(ids: npt.NDArray[np.int64]) -> str:
    return hashlib.blake2b(ids.astype("<i8").tobytes(), digest_size=16).hexdigest()
