"""What a checkpoint sees in one image, or in every image of a folder.

python recipes/predict.py runs/resnet_flowers/best.safetensors photographs/

The checkpoint's JSON says which network it is and how its images were made ready. They are made ready in the same
way here, so a validation image gets the very probabilities that it got in validation.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from whole_checkpoints import open_checkpoint, view

from fastload import settings
from fastload.decode import decode
from fastload.devices import parse_device
from fastload.errors import ConfigError, DecodeError, printable
from fastload.files import write_table, write_whole, writing
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

    def __post_init__(self) -> None:
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: at least 1 is needed.")


def main(s: Settings) -> None:
    """Print what a checkpoint sees in images, and write a table and a contact sheet of it."""
    network, about = open_checkpoint(s.checkpoint)
    device, names = parse_device(s.device), [printable(name) for name in about["display_names"]]
    network, augment = network.to(device).eval(), view(about)
    seen: list[tuple[str, list[tuple[str, float]]]] = []  # file, and (name, probability) of its likeliest classes
    unsure: list[tuple[float, str, npt.NDArray[np.uint8]]] = []
    for files, images_NHWC in batches(s, about["images"]):
        with torch.inference_mode():
            top = network(augment(images_NHWC.to(device))).float().softmax(1).topk(min(s.top, len(names)))
        for file, image, classes, shares in zip(
            files, images_NHWC, top.indices.tolist(), top.values.tolist(), strict=True
        ):
            told = [(names[c], share) for c, share in zip(classes, shares, strict=True)]
            seen.append((file, told))
            unsure.append((told[0][1], f"{told[0][0]} {told[0][1]:.0%}", image.numpy()))
        unsure = sorted(unsure, key=lambda one: one[0])[:MOST_SHOWN]
    if not seen:
        raise ConfigError(f"{printable(s.images)}: no image there that can be read; pass one, or a folder of them.")
    if len(seen) == 1:
        print("\n".join(f"{share:7.2%}  {name}" for name, share in seen[0][1]))
    else:
        counts = Counter(told[0][0] for _, told in seen)
        print(f"{len(seen):,} images: " + ", ".join(f"{n:,} {name}" for name, n in counts.most_common()))

    head = ("file", *(f"{what}{k + 1}" for k in range(len(seen[0][1])) for what in ("class", "probability")))
    rows = ((file, *(x for name, share in told for x in (name, f"{share:.4f}"))) for file, told in seen)
    sheet = contact_sheet(
        [image for *_, image in unsure], [told for _, told, _ in unsure], columns=min(6, len(unsure)), cell=160
    )
    sheet.save(drawn := io.BytesIO(), "png")
    with writing(s.table):
        s.table.parent.mkdir(parents=True, exist_ok=True)
        write_table(s.table, head, rows)
    with writing(s.sheet):
        s.sheet.parent.mkdir(parents=True, exist_ok=True)
        write_whole(s.sheet, [drawn.getvalue()])
    print(f"wrote {printable(s.table)} and {printable(s.sheet)}")


def batches(s: Settings, stored: dict[str, Any]) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Yield (files, uint8 [N, side, side, 3]); an image that cannot be read is told and left out."""
    root, files = s.images.parent, [s.images.name]
    if s.images.is_dir():
        root, files = s.images, sorted(name for name, is_image in walk(s.images) if is_image)
    for first in range(0, len(files), s.batch_size):
        read = {}
        for file in files[first : first + s.batch_size]:
            try:
                read[printable(file)] = decode((root / file).read_bytes(), file, size=stored["size"], fit=stored["fit"])
            except (DecodeError, OSError) as e:
                print(f"left out: {printable(e)}", file=sys.stderr)
        if read:
            yield list(read), torch.from_numpy(np.stack(list(read.values())))


if __name__ == "__main__":
    settings.run(main, Settings)
