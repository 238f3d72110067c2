"""What a loader, its dataset and a batch are, as far as they say, and which line of the script asks."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

import torch


def describe(loader: Any, dataset: Any, site: str) -> dict[str, Any]:
    """Return what a loader is, as far as it says."""
    placement = getattr(loader, "placement", None)
    root, library = origin(dataset)
    return {
        "site": site, "loader": type(loader).__name__, "dataset": type(dataset).__name__,
        "num_samples": _length(dataset), "root": root, "library": library, "batch_size": _batch_size(loader),
        "num_workers": getattr(loader, "num_workers", None), "pin_memory": getattr(loader, "pin_memory", None),
        "persistent_workers": getattr(loader, "persistent_workers", None),
        "placement": None if placement is None else str(getattr(placement, "kind", placement)),
        "in_main_thread": threading.current_thread() is threading.main_thread(), "passes": 0, "batch_shape": None,
    }  # fmt: skip


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except Exception:  # an IterableDataset, or whatever a script's own __len__ raises
        return None


def origin(dataset: Any) -> tuple[str | None, str | None]:
    """Return (folder, class) that a dataset of torchvision's kind reads, through what is wrapped around it.

    The class is the name of torchvision's own one that knows what lies in the folder (CIFAR10); None where these are
    class folders of images, or something of the script's own.
    """
    for _ in range(4):
        root = getattr(dataset, "root", None)
        if isinstance(root, (str, os.PathLike)) and isinstance(os.fspath(root), str) and os.fspath(root):
            return os.fspath(root), _torchvision_class(type(dataset))
        dataset = getattr(dataset, "dataset", None)
    return None, None


def _torchvision_class(kind: type) -> str | None:
    of_torchvision = (base.__name__ for base in kind.__mro__ if base.__module__.startswith("torchvision.datasets."))
    name = next(of_torchvision, None)
    return None if name in ("ImageFolder", "DatasetFolder", "VisionDataset") else name


def _batch_size(loader: Any) -> int | None:
    for holder in (loader, getattr(loader, "batch_sampler", None), getattr(loader, "shares", None)):
        size = getattr(holder, "batch_size", None)
        if isinstance(size, int):
            return size
    return None


def shape_of(batch: Any, depth: int = 0) -> list[int] | None:
    """Return the shape of the first tensor found in a batch; its first axis counts samples."""
    if isinstance(batch, torch.Tensor):
        return list(batch.shape) or [1]
    if depth > 4:
        return None
    inner = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((shape for shape in (shape_of(value, depth + 1) for value in inner) if shape), None)


def call_site() -> tuple[str, bool]:
    """Return the script's own line that asks for an iterator, and whether fastload's own Loader asks for it."""
    frame: Any = sys._getframe(1)
    last = "?"
    while frame is not None:
        file = frame.f_code.co_filename
        if "/fastload/stores/" in file:
            return last, True
        if not file.startswith(_HERE):
            last = f"{os.path.basename(file)}:{frame.f_lineno}"  # noqa: PTH119
            if not _is_library(file):
                return last, False
        frame = frame.f_back
    return last, False


def _is_library(file: str) -> bool:
    return "-packages/" in file or file.startswith(("<frozen", _STDLIB, _PACKAGE))


_HERE = os.path.dirname(os.path.abspath(__file__)) + "/"  # noqa: PTH100, PTH120
_STDLIB = os.path.dirname(os.__file__) + "/"  # noqa: PTH120
_PACKAGE = os.path.dirname(os.path.dirname(_HERE[:-1])) + "/"  # noqa: PTH120
