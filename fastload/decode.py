"""Bytes of an image file -> uint8 RGB pixels of one size.

Pillow decodes: it reads every format people have, releases the GIL while it decodes and resizes, and
its bilinear resize is antialiased.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fastload.errors import ConfigError, DecodeError

Fit = Literal["stretch", "crop", "pad"]
MAX_PIXELS = 178_000_000  # Pillow's own limit for a decompression bomb, twice its warning
MAX_SIDE = 16_384  # an image of this side has 805 MB: beyond it a typing mistake is likelier than a wish


def check_size_and_fit(size: int, fit: str) -> None:
    """Raise ConfigError where `size` (pixels) or `fit` cannot be right."""
    if not 1 <= size <= MAX_SIDE:
        raise ConfigError(f"size={size}: images need a side of 1 to {MAX_SIDE:,} pixels; try --size 256.")
    if fit not in get_args(Fit):
        raise ConfigError(f"fit={fit!r}: not one of {', '.join(get_args(Fit))}.")


def decode(data: bytes, path: str, *, size: int, fit: Fit = "stretch") -> npt.NDArray[np.uint8]:
    """Decode one image and bring it to `size` x `size`.

    EXIF orientation is applied; transparency lies on white; only the first frame counts. JPEGs far
    larger than wanted are decoded at a reduced DCT scale that keeps at least twice `size`.

    Args:
        data: the file's bytes; the content decides the format, not the name.
        path: only named in errors.
        size: side of the result in pixels.
        fit: `stretch` both sides, `crop` the centre square, or `pad` to a square with black.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        DecodeError: empty, truncated, not an image, or larger than MAX_PIXELS.
    """
    if not data:
        raise DecodeError(path, "the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and odd metadata; our own limit below speaks instead.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DecodeError(path, f"{width}x{height} is over the limit of {MAX_PIXELS:,} pixels")
                image.draft("RGB", (2 * size, 2 * size))
                rgb = _to_rgb(ImageOps.exif_transpose(image))
    except DecodeError:
        raise
    except UnidentifiedImageError as e:
        raise DecodeError(path, "not an image that Pillow can read") from e
    except Exception as e:  # Pillow's plugins raise a dozen kinds on damaged data: OSError, SyntaxError, struct.error
        raise DecodeError(path, f"damaged image ({str(e) or type(e).__name__})") from e
    return np.asarray(_fit(rgb, size, fit))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        # 16-bit greys: keep the high byte; convert() would clip everything above 255 to white.
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _fit(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    width, height = image.size
    if fit == "stretch":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new("RGB", (size, size))
    canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return canvas
