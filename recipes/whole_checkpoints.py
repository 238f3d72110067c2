"""Checkpoints of the recipes for photographs, which say themselves what network they are and what images it wants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cnn_food11
import torch
import torchvision.transforms.v2 as T

import fastload
from fastload.checkpoint import load_matching
from fastload.errors import CheckpointError, printable

NEEDED = ("model", "classes", "display_names", "size", "crop", "mean", "std", "images")


def open_checkpoint(file: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return a checkpoint's network with its weights, and what its JSON says of it."""
    beside = file.with_suffix(".json")
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        if missing := [name for name in NEEDED if name not in about]:
            raise KeyError(*missing)
        # No other options: this file may be anybody's, and some of timm's open files or fetch them.
        options = {name: about["options"][name] for name in ("img_size", "patch_size", "depth") if "options" in about}
        network, _ = cnn_food11.make(about["model"], len(about["classes"]), about["size"], "none", **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(
            f"{printable(beside)} does not say what network {printable(file.name)} is ({type(e).__name__}: "
            f"{printable(e)}); pass a checkpoint that a recipe for photographs wrote, its .json beside it."
        ) from e
    if skipped := load_matching(network, file).skipped:
        raise CheckpointError(f"{printable(file)} has no {printable(skipped[0])}; pass a whole checkpoint.")
    return network, about


def view(about: dict[str, Any]) -> fastload.Augment:
    """Return how a checkpoint's images were made ready in validation."""
    return fastload.Augment([
        T.Resize((about["size"],) * 2), T.CenterCrop(about["crop"]), T.ToImage(), T.ToDtype(torch.float32, scale=True),
        T.Normalize(about["mean"], about["std"]),
    ])  # fmt: skip
