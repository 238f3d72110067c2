"""Whole splits that are in memory now: a second loader of the same split in the same memory takes the same copy.

Nothing is kept for its own sake: a copy goes with the last store that serves from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import torch


@dataclass(frozen=True, kw_only=True)
class Name:
    """What tells one copy from another.

    Attributes:
        path, digest, split: of the dataset; a digest covers its content.
        kind: the memory, `gpu` or `host`.
        device: whose memory; None of the host.
        together: the ranks of a node have it in common.
    """

    path: Path
    digest: str
    split: str
    kind: str
    device: torch.device | None = None
    together: bool = False


_copies: WeakValueDictionary[Name, torch.Tensor] = WeakValueDictionary()


def find(name: Name) -> torch.Tensor | None:
    """Return the copy of that name; None where no store serves from one."""
    return _copies.get(name)


def keep(name: Name, samples: torch.Tensor) -> torch.Tensor:
    """Let others find `samples`, for as long as somebody holds them; nobody may write to them from now on."""
    _copies[name] = samples
    return samples
