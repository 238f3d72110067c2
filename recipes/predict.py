"""What a checkpoint sees in one image, or in every image of a folder.

python recipes/predict.py runs/resnet_flowers/best.safetensors photographs/

The checkpoint's JSON says which network it is and how its images were made ready. They are made ready in the same
way here, so a validation image gets the very probabilities that it got in validation.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cnn_food11
import numpy as np
import torch
import torchvision.transforms.v2 as T
import tyro

import fastload
from fastload import settings
from fastload.checkpoint import load_matching
from fastload.decode import decode
from fastload.devices import parse_device
from fastload.errors import CheckpointError, ConfigError, DecodeError, printable
from fastload.files import write_text, write_whole
from fastload.sheet import contact_sheet
from fastload.sources.scan import walk

MOST_SHOWN = 24  # images on the contact sheet


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Name what is to be seen in images."""

    checkpoint: tyro.conf.Positional[Path]
    """A .safetensors file that a recipe for photographs wrote, its .json beside it."""
    images: tyro.conf.Positional[Path]
    """An image, or a folder of them."""
    top: int = 5
    """How many of the likeliest classes are told."""
    table: Path = Path("predictions.csv")
    """CSV to write: a line per image."""
    sheet: Path = Path("predictions.png")
    """Contact sheet to write: the images of which the network is least sure."""
    batch_size: int = 64
    """Images per step."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; else the best one."""


def main(s: Settings) -> None:
    """Print what is seen, and write the table and the sheet."""
    network, about = open_checkpoint(s.checkpoint)
    device, names = parse_device(s.device), [printable(name) for name in about["display_names"]]
    network, augment = network.to(device).eval(), view(about)
    files, pixels, shares = [], [], []
    for batch in readable(s, about["images"]):
        files += [printable(file) for file, _ in batch]
        pixels += [p for _, p in batch]
        with torch.inference_mode():
            images_NHWC = torch.from_numpy(np.stack(pixels[-len(batch) :])).to(device)
            shares.append(network(augment(images_NHWC)).softmax(1).cpu())
    if not files:
        raise ConfigError(f"{printable(s.images)}: no image there that can be read; pass one, or a folder of them.")
    best = torch.cat(shares).topk(min(s.top, len(names)))
    rows = [
        [(names[c], p) for c, p in zip(classes, ps, strict=True)]
        for classes, ps in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    write(s, files, pixels, rows)
    if len(files) == 1:
        print("\n".join(f"{p:7.2%}  {name}" for name, p in rows[0]))
    else:
        counts = Counter(row[0][0] for row in rows)
        print(f"{len(files):,} images: " + ", ".join(f"{n:,} {name}" for name, n in counts.most_common()))
    print(f"wrote {s.table} and {s.sheet}")


def write(s: Settings, files: list[str], pixels: list[Any], rows: list[list[tuple[str, float]]]) -> None:
    """Write the table, and the sheet of the images with the lowest first probability."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", *(f"{what}{k + 1}" for k in range(len(rows[0])) for what in ("class", "probability"))])
    table.writerows(
        [file, *(x for name, p in row for x in (name, f"{p:.4f}"))] for file, row in zip(files, rows, strict=True)
    )
    unsure = sorted(range(len(rows)), key=lambda i: rows[i][0][1])[:MOST_SHOWN]
    drawn = io.BytesIO()
    contact_sheet(
        [pixels[i] for i in unsure], [f"{rows[i][0][0]} {rows[i][0][1]:.0%}" for i in unsure], columns=6, cell=160
    ).save(drawn, "png")
    for file in (s.table, s.sheet):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(s.table, text.getvalue())
    write_whole(s.sheet, [drawn.getvalue()])


def readable(s: Settings, stored: dict[str, Any]) -> Iterator[list[tuple[str, Any]]]:
    """Yield batches of (file, uint8 [side, side, 3]); an image that cannot be read is told and left out."""
    root, files = s.images.parent, [s.images.name]
    if s.images.is_dir():
        root, files = s.images, sorted(name for name, is_image in walk(s.images) if is_image)
    for first in range(0, len(files), s.batch_size):
        batch = []
        for file in files[first : first + s.batch_size]:
            try:
                batch.append((file, decode((root / file).read_bytes(), file, size=stored["size"], fit=stored["fit"])))
            except (DecodeError, OSError) as e:
                print(f"left out: {printable(e)}", file=sys.stderr)
        if batch:
            yield batch


def open_checkpoint(file: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return a checkpoint's network with its weights, and what its JSON says of it."""
    beside = file.with_suffix(".json")
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        options = about.get("options", {})
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


if __name__ == "__main__":
    settings.run(main, Settings)
