"""The notes' table for flowers, made again by resnet_flowers.py: their figures beside ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import fastload
from fastload.errors import ConfigError, printable
from fastload.results import TrainResult

if TYPE_CHECKING:
    from resnet_flowers import Settings

# The notes' table, for ResNet-18 on 102 flowers: (size, epochs of each phase) -> accuracy and time of head and all.
NOTES = {
    (96, 10): {"head": "39.36% in 5m35s", "all": "76.77% in 5m38s"},
    (256, 10): {"head": "87.16% in 13m01s", "all": "95.35% in 16m27s"},
    (256, 30): {"head": "90.95% in 43m13s", "all": "95.11% in 46m20s"},
}

Train = Callable[["Settings"], tuple[fastload.Trainer, TrainResult, str]]


def sweep(s: Settings, train: Train) -> None:
    """Train at each size and for as many epochs as the notes did, and print both tables as one."""
    stored = fastload.open_dataset(s.dataset).sample_shape[0]
    if stored < min(size for size, _ in NOTES):
        raise ConfigError(f"--sweep: {printable(s.dataset.name)} stores {stored} px; convert it with --size 256.")
    lines = ["| size | epochs | phase | model | augmentation | weights | notes | ours |", "|---" * 8 + "|"]
    for (size, epochs), theirs in NOTES.items():
        if size > stored:
            lines.append(f"| {size} | {epochs} | left out: {s.dataset.name} stores {stored} px |")
            continue
        output = s.output / f"{size}px-{epochs}epochs"
        trainer, result, origin = train(replace(s, size=size, crop=None, epochs=epochs, output=output))
        for phase, notes in theirs.items():
            if ours := [e for e in result.epochs if e.phase == phase]:
                accuracy = max(e.accuracy or 0 for e in ours)
                minutes, seconds = divmod(sum(e.seconds for e in ours), 60)
                cells = [size, len(ours), phase, s.model, s.augment, origin, notes]
                lines.append(f"| {' | '.join(map(str, cells))} | {accuracy:.2%} in {minutes:.0f}m{seconds:02.0f}s |")
    if trainer.is_main:
        print("\n".join(lines))
