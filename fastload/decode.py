"""Bytes of an image file -> uint8 pixels of one size.

Pillow reads every format, checks the file and resizes: it is the reference. The common case, an upright JPEG
of one or three components, goes past it: simplejpeg's decoder (libjpeg-turbo, three bytes per pixel, where
Pillow has four) and torch's antialiased uint8 resize. Whatever that path refuses, Pillow gets to judge, and
libjpeg's mere warnings are a refusal there. bench/results/convert_*.json has the figures; slower were
torchvision's decoder (by 10%), OpenCV's INTER_AREA (by five times), Pillow's resize (by six).

Both release the GIL while they decode and resize, and no state is shared but what `_quiet_pillow` guards:
any number of threads may call `decode`.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from simplejpeg import decode_jpeg

from fastload.errors import ConfigError, DecodeError, printable

Fit = Literal["stretch", "crop", "pad"]
MAX_PIXELS = 178_000_000  # Pillow's own limit for a decompression bomb, twice its warning
MAX_SIDE = 16_384  # an image of this side has 805 MB: beyond it a typing mistake is likelier than a wish
# The only plugins that see unchecked bytes: among Pillow's others are some that run programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")
# All of them now, else Pillow imports its forty plugins at the first image, in each process that decodes.
for _name in ("Jpeg", "Png", "WebP", "Bmp", "Tiff", "Gif", "Ppm"):
    import_module(f"PIL.{_name}ImagePlugin")
# A JPEG decoded at a reduced scale keeps at least so many times the wanted side: the resize then still
# decides the pixels. And so many pixels: its last column may stand for 1 to 8 of the original's, a stretch
# of at most 1/256.
REDUCED_TIMES, REDUCED_SIDE = 2, 256
_SEGMENT, _FRAME = struct.Struct(">BH").unpack_from, struct.Struct(">BHHB").unpack_from
_ORIENTATION_TAG = 0x0112
# What interpolate(mode="bilinear", antialias=True) calls, without the Python before it.
_interpolate: Callable[..., torch.Tensor] = torch._C._nn._upsample_bilinear2d_aa
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def check_size_and_fit(size: int, fit: str) -> None:
    """Raise ConfigError where `size` (pixels) or `fit` cannot be right."""
    if not 1 <= size <= MAX_SIDE:
        raise ConfigError(f"size={size}: images need a side of 1 to {MAX_SIDE:,} pixels; try --size 256.")
    if fit not in get_args(Fit):
        raise ConfigError(f"fit={fit!r}: not one of {', '.join(get_args(Fit))}.")


def decode(
    data: bytes,
    path: str,
    *,
    size: int,
    fit: Fit = "stretch",
    max_pixels: int = MAX_PIXELS,
    num_channels: int = 3,
) -> npt.NDArray[np.uint8]:
    """Decode one image and bring it to `size` x `size`.

    EXIF orientation is applied; transparency lies on white; only the first frame counts. JPEGs far
    larger than wanted are decoded at a reduced DCT scale that keeps at least twice `size`.

    Args:
        data: the file's bytes; the content decides the format, not the name.
        path: only named in errors.
        size: side of the result in pixels.
        fit: `stretch` both sides, `crop` the centre square, or `pad` to a square with black.
        max_pixels: pixels that the file may have; its header is asked before anything is decoded.
        num_channels: C; 3 for RGB, 1 for grey (luma).

    Returns:
        uint8 [size, size, C], contiguous.

    Raises:
        DecodeError: empty, truncated, damaged, not an image, or of more than `max_pixels`.
    """
    if num_channels not in (1, 3):
        raise ConfigError(f"num_channels={num_channels}: images are stored with 3 channels, or 1 for grey.")
    if not data:
        raise DecodeError(path, "the file is empty")
    shape = _plain_jpeg(data)
    if shape is not None and shape[0] * shape[1] <= max_pixels:
        try:
            rgb = _decode_plain(data, shape, size, fit)
        except (ValueError, RuntimeError, MemoryError):
            pass  # Pillow decides whether this is an image, and says why not
        else:
            return rgb if num_channels == 3 else np.array(Image.fromarray(rgb).convert("L"))[..., None]
    return decode_reference(data, path, size=size, fit=fit, max_pixels=max_pixels, num_channels=num_channels)


def decode_reference(
    data: bytes, path: str, *, size: int, fit: Fit, max_pixels: int = MAX_PIXELS, num_channels: int = 3
) -> npt.NDArray[np.uint8]:
    """Do what `decode` says, with Pillow alone."""
    mode = "RGB" if num_channels == 3 else "L"
    return _with_pillow(
        data, path, max_pixels, (_least_side(size),) * 2, lambda image: _fit_pillow(image.convert(mode), size, fit)
    )


def decode_whole(data: bytes, path: str, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode one image at its own size, otherwise as `decode`.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DecodeError: as `decode`.
    """
    if not data:
        raise DecodeError(path, "the file is empty")
    return _with_pillow(data, path, max_pixels, None, lambda image: np.array(image.convert("RGB")))


def _with_pillow(
    data: bytes,
    path: str,
    max_pixels: int,
    least: tuple[int, int] | None,
    finish: Callable[[Image.Image], npt.NDArray[np.uint8]],
) -> npt.NDArray[np.uint8]:
    """Open, check, decode and turn an image; `least` sides may be had from a reduced DCT scale."""
    shown = ""
    try:
        with _quiet_pillow(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            shown = f" of {width}x{height}"
            if width * height > max_pixels or _tile_pixels(image) > max_pixels:
                raise DecodeError(path, f"{width}x{height} is over the limit of {max_pixels:,} pixels")
            if least is not None:
                image.draft(None, least)
            image.load()
            return finish(_eight_bit(_upright(image), path))
    except DecodeError:
        raise
    except UnidentifiedImageError as e:
        raise DecodeError(path, f"not an image in a known format (it begins with {_beginning(data)})") from e
    except MemoryError as e:
        raise DecodeError(path, f"not enough memory for an image{shown}; use fewer workers") from e
    except Exception as e:  # Pillow's plugins raise a dozen kinds on damaged data: OSError, SyntaxError, struct.error
        raise DecodeError(path, f"damaged image{shown} ({printable(e) or type(e).__name__})") from e


def fit_pixels(
    pixels_HWC: npt.NDArray[np.uint8], *, size: int, fit: Fit, num_channels: int = 3
) -> npt.NDArray[np.uint8]:
    """Bring pixels that need no decoding, uint8 [H, W, 1 or 3], to uint8 [size, size, num_channels]."""
    image = Image.fromarray(pixels_HWC.squeeze(2) if pixels_HWC.shape[2] == 1 else pixels_HWC)
    return _fit_pillow(image.convert("RGB" if num_channels == 3 else "L"), size, fit)


def _decode_plain(data: bytes, shape: tuple[int, int], size: int, fit: Fit) -> npt.NDArray[np.uint8]:
    """Decode an upright JPEG of `shape` (width, height) and one or three components to RGB.

    Raises:
        ValueError: libjpeg refused it, or warned of something.
    """
    # The power of two that Pillow takes. simplejpeg looks for the smallest scale that has these sides.
    times, enough = 1, min(shape) // _least_side(size)
    while times < 8 and 2 * times <= enough:
        times *= 2
    width, height = -(-shape[0] // times), -(-shape[1] // times)
    # Not fastdct, which saves 5% and darkens red and blue by 1.2 levels in the mean; nor fastupsample, which
    # saves 10% where colours are subsampled, and whose worst of 100 photographs was at 37 dB.
    pixels_HWC = decode_jpeg(data, min_height=height, min_width=width)
    if pixels_HWC.shape != (height, width, 3):
        raise ValueError(f"pixels {pixels_HWC.shape} of {width}x{height}")
    if fit == "crop":
        side = min(width, height)
        top, left = (height - side) // 2, (width - side) // 2
        pixels_HWC = np.ascontiguousarray(pixels_HWC[top : top + side, left : left + side])
    if fit != "pad":
        return _resize(pixels_HWC, size, size)
    canvas = np.zeros((size, size, 3), np.uint8)
    rows, columns = _inner(width, height, size)
    canvas[rows, columns] = _resize(pixels_HWC, rows.stop - rows.start, columns.stop - columns.start)
    return canvas


def _resize(pixels_HWC: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Do what interpolate(mode="bilinear", antialias=True) does."""
    rows, columns, channels = pixels_HWC.shape
    # Strides that are channels_last, the batch's as well: only then the vectorized kernel is taken. Few calls: each
    # costs 5 microseconds beside pixels that have driven its code out of the cache.
    strides = (rows * columns * channels, 1, columns * channels, channels)
    image_NCHW = torch.from_numpy(pixels_HWC).as_strided((1, channels, rows, columns), strides)
    resized_NCHW = _interpolate(image_NCHW, [height, width], False, None, None)
    return np.ascontiguousarray(resized_NCHW.numpy()[0].transpose(1, 2, 0))


def _inner(width: int, height: int, size: int) -> tuple[slice, slice]:
    """Return (rows, columns) that a picture of width x height takes in the middle of a square canvas."""
    scale = size / max(width, height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size - inner_width) // 2, (size - inner_height) // 2
    return slice(top, top + inner_height), slice(left, left + inner_width)


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG that simplejpeg decodes as Pillow would, else None.

    That is: 8 bit, Huffman coded, grey or three components, and no orientation but the upright one.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, shape = 2, None
    try:
        while data[at] == 0xFF:
            marker, length = _SEGMENT(data, at + 1)
            if marker == 0xDA:  # the pixels begin
                return shape
            if marker in (0xC0, 0xC1, 0xC2):
                bits, height, width, num_components = _FRAME(data, at + 4)
                shape = (width, height) if bits == 8 and num_components in (1, 3) else None
                if not shape or 0 in shape:
                    return None
            elif marker == 0xE1:
                if data.startswith(b"Exif\0\0", at + 4) and not _is_upright(data[at + 10 : at + 2 + length]):
                    return None
            elif marker == 0xFF or (0xC3 <= marker <= 0xCF and marker != 0xC4):
                return None
            at += 2 + length
    except (IndexError, struct.error):
        pass
    return None


def _is_upright(tiff: bytes) -> bool:
    """Say whether an EXIF block surely asks for no turning."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return False
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    (num_entries,) = struct.unpack_from(order + "H", tiff, directory)
    for entry in range(directory + 2, directory + 2 + 12 * num_entries, 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == _ORIENTATION_TAG and (kind, value) != (3, 1):
            return False
    return True


def _least_side(size: int) -> int:
    """Return the side in pixels that a JPEG keeps where it is decoded at a reduced scale."""
    return max(REDUCED_TIMES * size, REDUCED_SIDE)


def _tile_pixels(image: Image.Image) -> int:
    """Return the pixels of one tile of a TIFF: memory that its decoder takes, whatever the image's size."""
    tags = getattr(image, "tag_v2", None) or {}
    width, height = tags.get(322, 0), tags.get(323, 0)
    return width * height if isinstance(width, int) and isinstance(height, int) else 0


def _upright(image: Image.Image) -> Image.Image:
    """Turn a loaded image as its EXIF block says; a block that cannot be read says nothing."""
    try:
        # After load(), which turns a TIFF by itself and takes the tag away.
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # as many kinds as for pixels; every viewer shows such an image as it lies
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info  # with it the transparent colour of a palette
    return turned


def _eight_bit(image: Image.Image, path: str) -> Image.Image:
    """Return an image of 8 bits per channel without transparency."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise DecodeError(path, "its pixels are 32-bit numbers of no known range; save it with 8 or 16 bits")
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        # 16-bit greys: keep the high byte; convert() would clip everything above 255 to white.
        wide = np.asarray(image)
        grey = (wide >> 8).clip(0, 255).astype(np.uint8)
        if isinstance(transparent, int):
            grey[wide == transparent] = 255
        return Image.fromarray(grey)
    if transparent is not None or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _fit_pillow(image: Image.Image, size: int, fit: Fit) -> npt.NDArray[np.uint8]:
    width, height = image.size
    if fit == "pad":
        rows, columns = _inner(width, height, size)
        canvas = Image.new(image.mode, (size, size))
        inner = (columns.stop - columns.start, rows.stop - rows.start)
        canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), (columns.start, rows.start))
        return np.array(canvas).reshape(size, size, -1)
    if fit == "crop":
        # Not resize's own box: it would let pixels outside of the square in.
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, -1)


def _beginning(data: bytes) -> str:
    text = data[:12].decode("ascii", "replace")
    return repr(text) if text.isascii() and text.isprintable() else f"bytes {data[:8].hex(' ')}"


class _Pillow:
    """What Pillow and `warnings` keep per process, and how many threads are inside `_quiet_pillow`."""

    lock = threading.Lock()
    num_inside = 0
    max_image_pixels: int | None = None
    filter: object = None


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings of odd metadata, and take its own limit of pixels away: ours speaks.

    The first thread in sets both, the last one out puts them back. `warnings.catch_warnings` would leave
    its filter behind where two threads overlap.
    """
    with _Pillow.lock:
        _Pillow.num_inside += 1
        if _Pillow.num_inside == 1:
            _Pillow.max_image_pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _Pillow.filter = warnings.filters[0]
    try:
        yield
    finally:
        with _Pillow.lock:
            _Pillow.num_inside -= 1
            if _Pillow.num_inside == 0:
                Image.MAX_IMAGE_PIXELS = _Pillow.max_image_pixels
                # Somebody may have put other filters in the place of all meanwhile.
                filters = cast(list[object], warnings.filters)
                filters[:] = [f for f in filters if f is not _Pillow.filter]
