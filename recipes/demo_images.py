"""Writes the demo's image folder: a few hundred JPEG photographs cut from seven pictures.

The pictures are those that scikit-image's wheel carries, public domain or CC0: astronaut (NASA), brick,
grass and gravel (CC0 Textures), cat (S. van der Walt), coffee (R. Michetti), rocket (SpaceX). Each is a
class. Training photographs are cut from the left 62% of a picture, validation ones from the right 34%,
so the two share no pixel. It is a demo, not a benchmark: no accuracy on it means anything elsewhere.
"""

from __future__ import annotations

import random
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.progress import track

from fastload.cli import run
from fastload.errors import ConfigError

PICTURES = {
    "astronaut": "astronaut.png", "brick": "brick.png", "cat": "chelsea.png", "coffee": "coffee.png",
    "grass": "grass.png", "gravel": "gravel.png", "rocket": "rocket.jpg",
}  # fmt: skip
REGIONS = {"train": (0.0, 0.62), "valid": (0.66, 1.0)}
SIZE = (500, 375)


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write: OUT/train/CLASS and OUT/valid/CLASS.")],
    per_class: Annotated[int, typer.Option(help="Training photographs of each class; half as many to validate.")] = 60,
) -> None:
    """Write the demo's image folder."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ConfigError(
            'the pictures come from scikit-image, which is not installed; run: pip install "fastload[demo]"'
        )
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} exists; delete it first, or pass another folder.")
    counts = {"train": per_class, "valid": max(1, per_class // 2)}
    jobs = [(split, name, number) for split, n in counts.items() for name in PICTURES for number in range(n)]
    pictures = {n: Image.open(Path(spec.origin).parent / "data" / f).convert("RGB") for n, f in PICTURES.items()}
    for split, name, number in track(jobs, description="cut photographs", disable=not sys.stderr.isatty()):
        file = out / split / name / f"{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        cut(pictures[name], REGIONS[split], random.Random(f"{split} {name} {number}")).save(file, quality=90)
    print(f"wrote {out}: {counts['train'] * len(PICTURES)} train, {counts['valid'] * len(PICTURES)} valid, "
          f"{len(PICTURES)} classes, {SIZE[0]}x{SIZE[1]} JPEG")  # fmt: skip


def cut(picture: Image.Image, region: tuple[float, float], rng: random.Random) -> Image.Image:
    """Return a random window of the vertical strip `region` (shares of the width), as a photograph of SIZE."""
    left, right = (round(share * picture.width) for share in region)
    # As wide as the strip allows, or down to half of that; always with SIZE's ratio.
    widest = min(right - left, picture.height * SIZE[0] / SIZE[1])
    width = rng.uniform(0.5, 1) * widest
    height = width * SIZE[1] / SIZE[0]
    x, y = rng.uniform(left, right - width), rng.uniform(0, picture.height - height)
    return picture.resize(SIZE, Image.Resampling.BICUBIC, box=(x, y, x + width, y + height))


if __name__ == "__main__":
    run(main)
