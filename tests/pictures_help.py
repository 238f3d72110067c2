"""One picture in every format that people have, as bytes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 13
FITS = ("stretch", "crop", "pad")


def picture(width: int = 61, height: int = 47, mode: str = "RGB", seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    rgba = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    if mode == "P":
        return rgba.convert("RGB").quantize(64)
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgba.convert("L")).astype(np.uint16) * 257)
    return rgba.convert(mode) if mode != "RGBA" else rgba


def file(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(rows: np.ndarray, *, bits: int, colour: int, width: int, height: int, interlaced: bool = False) -> bytes:
    """Write a PNG by hand: Pillow cannot write 16-bit colours or interlacing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b"".join(
        b"".join(b"\0" + line.tobytes() for line in rows[y::down, x::right])
        for x, y, right, down in passes
        if rows[y::down, x::right].size
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def wide_png(interlaced: bool = False) -> bytes:
    rows = (np.asarray(picture()).astype(">u2") * 257).astype(">u2")
    return png(rows, bits=16, colour=2, width=61, height=47, interlaced=interlaced)


PLAIN = np.asarray(picture())
GREY = np.asarray(picture(mode="L"))
WHITE_UNDER = np.asarray(
    Image.alpha_composite(Image.new("RGBA", (61, 47), "white"), picture(mode="RGBA")).convert("RGB")
)

# name -> (file, what it shows, how far lossy formats may be from it on average)
CORPUS: dict[str, tuple[bytes, np.ndarray, float]] = {
    "jpeg": (file(picture(), "JPEG", quality=95), PLAIN, 3),
    "jpeg 4:4:4": (file(picture(), "JPEG", quality=95, subsampling=0), PLAIN, 3),
    "jpeg 4:2:2": (file(picture(), "JPEG", quality=95, subsampling=1), PLAIN, 3),
    "jpeg progressive": (file(picture(), "JPEG", quality=95, progressive=True), PLAIN, 3),
    "jpeg restart markers": (file(picture(), "JPEG", quality=95, restart_marker_rows=1), PLAIN, 3),
    "jpeg grey": (file(picture(mode="L"), "JPEG", quality=95), GREY, 3),
    "jpeg kept RGB": (file(picture(), "JPEG", quality=95, keep_rgb=True), PLAIN, 3),
    "jpeg CMYK": (file(picture().convert("CMYK"), "JPEG", quality=95), PLAIN, 3),
    "png": (file(picture(), "PNG"), PLAIN, 0.5),
    "png grey": (file(picture(mode="L"), "PNG"), GREY, 0.5),
    "png palette": (file(picture(mode="P"), "PNG"), np.asarray(picture(mode="P").convert("RGB")), 0.5),
    "png alpha": (file(picture(mode="RGBA"), "PNG"), WHITE_UNDER, 1),
    "png 1 bit": (file(picture(mode="1"), "PNG"), np.asarray(picture(mode="1").convert("L")), 0.5),
    "png 16-bit grey": (file(picture(mode="I;16"), "PNG"), GREY, 0.5),
    "png 16-bit RGB": (wide_png(), PLAIN, 0.5),
    "png interlaced": (
        png(PLAIN, bits=8, colour=2, width=61, height=47, interlaced=True), PLAIN, 0.5,
    ),
    "png 16-bit RGB interlaced": (wide_png(interlaced=True), PLAIN, 0.5),
    "webp": (file(picture(), "WEBP", quality=95), PLAIN, 5),
    "webp lossless alpha": (file(picture(mode="RGBA"), "WEBP", lossless=True, exact=True), WHITE_UNDER, 1),
    "bmp": (file(picture(), "BMP"), PLAIN, 0.5),
    "bmp palette": (file(picture(mode="P"), "BMP"), np.asarray(picture(mode="P").convert("RGB")), 0.5),
    "tiff": (file(picture(), "TIFF"), PLAIN, 0.5),
    "tiff deflate": (file(picture(), "TIFF", compression="tiff_adobe_deflate"), PLAIN, 0.5),
    "tiff 16-bit grey": (file(picture(mode="I;16"), "TIFF"), GREY, 0.5),
    "tiff CMYK": (file(picture().convert("CMYK"), "TIFF"), PLAIN, 1),
    "tiff alpha": (file(picture(mode="RGBA"), "TIFF"), WHITE_UNDER, 1),
    "tiff 1 bit": (
        file(picture(mode="1"), "TIFF", compression="group4"), np.asarray(picture(mode="1").convert("L")), 0.5,
    ),
    "gif": (file(picture(mode="P"), "GIF"), np.asarray(picture(mode="P").convert("RGB")), 0.5),
    "ppm": (file(picture(), "PPM"), PLAIN, 0.5),
    "pgm": (file(picture(mode="L"), "PPM"), GREY, 0.5),
    "pgm 16 bit": (b"P5 61 47 65535\n" + (GREY.astype(">u2") * 257).astype(">u2").tobytes(), GREY, 0.5),
}  # fmt: skip
