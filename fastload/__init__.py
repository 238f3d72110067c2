"""fastload: ends dataloader-bound training.

convert         an image folder -> a memory-resident dataset
open_dataset    one split of it
Loader          batches from the fastest memory that fits, in exact shares per rank
Augment         a torchvision Compose for whole batches, every image with its own draw
profile         where the time of a training loop goes
Trainer, TrainConfig, Phase    a training loop on Accelerate
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Name -> where it lives. Loaded at first use: importing torch takes seconds, `fastload --help` must not.
_PUBLIC = {
    "Augment": "fastload.augment",
    "FastloadError": "fastload.errors",
    "Loader": "fastload.loader",
    "Phase": "fastload.phases",
    "Profile": "fastload.profiler",
    "TrainConfig": "fastload.config",
    "Trainer": "fastload.train",
    "convert": "fastload.conversion",
    "open_dataset": "fastload.formats",
    "profile": "fastload.profiler",
}

__all__ = [  # noqa: RUF022 - in the order in which one meets them
    "convert", "open_dataset", "Loader", "Augment", "profile", "Profile", "Trainer", "TrainConfig", "Phase",
    "FastloadError", "__version__",
]  # fmt: skip

if TYPE_CHECKING:
    from fastload.augment import Augment
    from fastload.config import TrainConfig
    from fastload.conversion import convert
    from fastload.errors import FastloadError
    from fastload.formats import open_dataset
    from fastload.loader import Loader
    from fastload.phases import Phase
    from fastload.profiler import Profile, profile
    from fastload.train import Trainer


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastload' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
