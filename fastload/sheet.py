"""A contact sheet: a few images in a grid, each with its name below, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fastload.errors import printable

_MARGIN = 8
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


def contact_sheet(
    images: Sequence[npt.NDArray[np.uint8]], names: Sequence[str], *, columns: int = 3, cell: int = 224
) -> Image.Image:
    """Draw `images` (uint8 [H, W, C], any sizes, grey or RGB) with their names.

    Small images are enlarged by whole factors without smoothing, so that stored pixels stay visible.

    Args:
        images, names: the same number of each.
        columns: images per row.
        cell: about the side of the square that holds one image, in pixels.
    """
    pictures = [_fitted(Image.fromarray(i.squeeze(2) if i.shape[2] == 1 else i).convert("RGB"), cell) for i in images]
    cell = max((max(p.size) for p in pictures), default=cell)
    rows = math.ceil(len(images) / columns)
    font = ImageFont.load_default(size=16)
    line = 24
    width, height = columns * (cell + _MARGIN) + _MARGIN, rows * (cell + line + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        left = _MARGIN + (number % columns) * (cell + _MARGIN)
        top = _MARGIN + (number // columns) * (cell + line + _MARGIN)
        sheet.paste(picture, (left + (cell - picture.width) // 2, top + (cell - picture.height) // 2))
        text = printable(name)
        while len(text) > 1 and draw.textlength(text, font=font) > cell:
            text = text[:-2] + "…"
        draw.text((left + cell / 2, top + cell + line / 2), text, _INK, font=font, anchor="mm")
    return sheet


def _fitted(picture: Image.Image, cell: int) -> Image.Image:
    longer = max(picture.size)
    if longer <= cell:
        factor = round(cell / longer)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    scale = cell / longer
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BILINEAR)
