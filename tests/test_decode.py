"""decode: every format, whatever is wrong with the file; the fast path against Pillow alone."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastload import decode as module
from fastload.decode import decode, decode_reference
from fastload.errors import ConfigError, DecodeError
from tests.pictures_help import CORPUS, FITS, PLAIN, SIDE, file, picture, png


def expected(shown: np.ndarray, size: int, fit: str, channels: int) -> np.ndarray:
    image = Image.fromarray(shown).convert("RGB" if channels == 3 else "L")
    return decode_reference(file(image, "PNG"), "x.png", size=size, fit=fit, num_channels=channels)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("name", CORPUS)
def test_every_format_shows_its_picture(name: str, fit: str) -> None:
    data, shown, mean_distance = CORPUS[name]
    for channels in (3, 1):
        image = decode(data, "a", size=SIDE, fit=fit, num_channels=channels)
        assert image.shape == (SIDE, SIDE, channels)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        distance = np.abs(image.astype(int) - expected(shown, SIDE, fit, channels)).mean()
        assert distance <= mean_distance, distance


@pytest.mark.parametrize("size", [13, 40, 200])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("name", [n for n in CORPUS if n.startswith("jpeg")])
def test_the_fast_path_gives_the_pixels_of_pillow(name: str, fit: str, size: int) -> None:
    data = CORPUS[name][0]
    fast = decode(data, "a", size=size, fit=fit).astype(int)
    assert np.abs(fast - decode_reference(data, "a", size=size, fit=fit)).max() <= 2


@pytest.mark.parametrize("name", CORPUS)
def test_only_upright_three_component_and_grey_jpegs_take_the_fast_path(name: str) -> None:
    plain = module._plain_jpeg(CORPUS[name][0])
    assert plain == ((61, 47) if name.startswith("jpeg") and name != "jpeg CMYK" else None)


def test_no_other_plugin_of_pillow_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing all of them takes each decoding process a quarter of a second, and some run programs."""
    monkeypatch.delattr(Image, "init")
    for data, _, _ in CORPUS.values():
        decode_reference(data, "a", size=SIDE, fit="stretch")


def test_ycck() -> None:
    """Photoshop's CMYK: inverted, as Pillow writes it, and with C, M and Y turned into Y, Cb and Cr."""
    inks = picture().convert("CMYK")
    ycc = Image.fromarray(np.asarray(inks)[..., :3]).convert("YCbCr")
    # What Pillow is given it stores inverted; black stays as it is.
    bands = [Image.eval(band, lambda v: 255 - v) for band in ycc.split()]
    data = bytearray(file(Image.merge("CMYK", [*bands, inks.split()[3]]), "JPEG", quality=95))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2  # YCCK
    image = decode(bytes(data), "a", size=SIDE)
    assert np.abs(image.astype(int) - expected(PLAIN, SIDE, "stretch", 3)).mean() <= 3


def test_transparent_colours_of_palettes_and_grey() -> None:
    palette = picture(mode="P")
    shown = np.asarray(palette.convert("RGB")).copy()
    indices = np.asarray(palette)
    shown[indices == indices[0, 0]] = 255
    for kind in ("PNG", "GIF"):
        data = file(palette, kind, transparency=int(indices[0, 0]))
        assert np.abs(decode(data, "a", size=SIDE).astype(int) - expected(shown, SIDE, "stretch", 3)).mean() < 1
    bytes_per_index = bytes(0 if i == indices[0, 0] else 255 for i in range(64))
    data = file(palette, "PNG", transparency=bytes_per_index)
    assert np.abs(decode(data, "a", size=SIDE).astype(int) - expected(shown, SIDE, "stretch", 3)).mean() < 1


def test_the_first_frame_counts() -> None:
    first, second = picture(mode="P"), picture(mode="P", seed=5)
    data = file(first, "GIF", save_all=True, append_images=[second])
    assert np.array_equal(decode(data, "a", size=SIDE), decode(file(first, "GIF"), "a", size=SIDE))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", FITS)
def test_exif_orientation(kind: str, orientation: int, fit: str) -> None:
    back = {1: lambda i: i, 2: lambda i: i[:, ::-1], 3: lambda i: i[::-1, ::-1], 4: lambda i: i[::-1],
            5: lambda i: i.transpose(1, 0, 2), 6: lambda i: np.rot90(i), 7: lambda i: np.rot90(i, 2).transpose(1, 0, 2),
            8: lambda i: np.rot90(i, -1)}  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(back[orientation](PLAIN)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    data = file(stored, kind, exif=exif, **options)
    image = decode(data, "a", size=SIDE, fit=fit)
    assert np.abs(image.astype(int) - expected(PLAIN, SIDE, fit, 3)).mean() < (3 if kind == "JPEG" else 0.5)


def test_a_damaged_exif_block_loses_no_image() -> None:
    for block in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ):
        image = decode(file(picture(), "JPEG", quality=95, exif=block), "a", size=SIDE)
        assert np.abs(image.astype(int) - expected(PLAIN, SIDE, "stretch", 3)).mean() < 3


def test_a_large_jpeg_is_decoded_at_a_reduced_scale_and_looks_the_same() -> None:
    large = picture(1027, 1104)  # a quarter of it has 256.75 columns
    data = file(large, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(data, "a", size=SIDE) - full).mean() <= 2


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("side", [512, 1023, 1024, 1025, 2051])
def test_the_fast_path_takes_the_scale_of_pillow(side: int, fit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = file(picture(side + 6, side), "JPEG", quality=95)
    shown = decode_reference(data, "a", size=SIDE, fit=fit).astype(int)
    assert np.abs(decode(data, "a", size=SIDE, fit=fit) - shown).max() <= 2
    monkeypatch.setattr(module, "decode_reference", None)  # and it is the fast path that decodes
    decode(data, "a", size=SIDE, fit=fit)


def test_what_libjpeg_warns_of_is_for_pillow_to_judge() -> None:
    """An end that comes too early is a warning: Pillow shows the image, and so do we, with its pixels."""
    data = CORPUS["jpeg"][0]
    odd = data[:-42] + data[-2:]
    with pytest.raises(ValueError, match="premature end"):
        module._decode_plain(odd, (61, 47), SIDE, "stretch")
    assert np.array_equal(decode(odd, "a", size=SIDE), decode_reference(odd, "a", size=SIDE, fit="stretch"))


REASONS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"<!DOCTYPE html><html>", "not an image in a known format.*DOCTYPE"),
    "bytes": (b"\x00\x01\x02" * 9, "not an image in a known format.*00 01 02"),
    "EPS, which runs programs": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "float TIFF": (file(Image.new("F", (9, 9)), "TIFF"), "32-bit numbers"),
    "int TIFF": (file(Image.new("I", (9, 9)), "TIFF"), "32-bit numbers"),
    "cut JPEG": (CORPUS["jpeg"][0][:-300], "damaged image of 61x47.*truncated"),
    "cut PNG": (CORPUS["png"][0][:-300], "damaged image of 61x47.*truncated"),
    "only the first bytes": (CORPUS["jpeg"][0][:3], "image"),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_is_said(name: str) -> None:
    data, reason = REASONS[name]
    with pytest.raises(DecodeError, match=f"(?s)some/file.jpg: .*{reason}") as caught:
        decode(data, "some/file.jpg", size=SIDE)
    assert caught.value.path == "some/file.jpg"
    assert "\n" not in str(caught.value)


def bombs() -> dict[str, bytes]:
    side = 50_000
    zeros = png(np.zeros((1, 1), np.uint8), bits=1, colour=0, width=side, height=side)
    jpeg = bytearray(CORPUS["jpeg"][0])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    gif = bytearray(CORPUS["gif"][0])
    gif[6:10] = struct.pack("<HH", side, side)
    bmp = bytearray(CORPUS["bmp"][0])
    bmp[18:26] = struct.pack("<ii", side, side)
    tiff = CORPUS["tiff"][0]
    huge = Image.open(io.BytesIO(tiff))
    assert huge.tag_v2[256] == 61
    # Width and height are little-endian entries of the directory: tag, type, count, value.
    for tag in (256, 257):
        entry = struct.pack("<H", tag)
        place = next(
            i for i in range(len(tiff) - 12) if tiff[i : i + 2] == entry and tiff[i + 4 : i + 8] == b"\1\0\0\0"
        )
        tiff = tiff[: place + 2] + struct.pack("<HII", 4, 1, side) + tiff[place + 12 :]
    return {"png": zeros, "jpeg": bytes(jpeg), "gif": bytes(gif), "bmp": bytes(bmp), "tiff": tiff,
            "ppm": b"P6 50000 50000 255\n" + bytes(99)}  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_by_its_header(name: str) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodeError, match="50000x50000 is over the limit of 178,000,000 pixels"):
        decode(bombs()[name], "a", size=SIDE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_a_tiff_of_one_monstrous_tile_is_refused() -> None:
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 65_536, 323: 65_536}
    data = b"x" * 16
    entries = b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags.items())
    entries += struct.pack("<HHIIHHII", 324, 4, 1, 8, 325, 4, 1, len(data))
    ifd = 8 + len(data)
    tiff = b"II*\0" + struct.pack("<I", ifd) + data + struct.pack("<H", len(tags) + 2) + entries + bytes(4)
    with pytest.raises(DecodeError, match="over the limit"):
        decode(tiff, "a", size=SIDE)


@pytest.mark.parametrize("name", ["jpeg", "png", "jpeg CMYK"])
def test_max_pixels_is_exact(name: str) -> None:
    data = CORPUS[name][0]
    decode(data, "a", size=SIDE, max_pixels=61 * 47)
    with pytest.raises(DecodeError, match="61x47 is over the limit of 2,866 pixels"):
        decode(data, "a", size=SIDE, max_pixels=61 * 47 - 1)


def test_max_pixels_may_be_above_pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 2,867 pixels are more than twice that
    assert decode(CORPUS["png"][0], "a", size=SIDE).shape == (SIDE, SIDE, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def decodes_or_says_why(data: bytes, size: int = SIDE) -> None:
    for num_channels in (3, 1):
        try:
            image = decode(data, "a", size=size, max_pixels=1_000_000, num_channels=num_channels)
        except DecodeError as e:
            reason = str(e)
            assert reason.isprintable()
        else:
            assert image.shape == (size, size, num_channels)


@pytest.mark.parametrize("name", CORPUS)
def test_cut_anywhere(name: str) -> None:
    data = CORPUS[name][0]
    for end in {*range(0, min(64, len(data)), 3), *range(0, len(data), max(1, len(data) // 25)), len(data) - 1}:
        decodes_or_says_why(data[:end])


@settings(max_examples=250, deadline=None)
@given(
    name=st.sampled_from(sorted(CORPUS)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8),
    head=st.booleans(),
)
def test_flipped_anywhere(name: str, flips: list[tuple[float, int]], head: bool) -> None:
    data = bytearray(CORPUS[name][0])
    span = min(len(data), 200) if head else len(data)  # what matters most stands in front
    for place, bits in flips:
        data[int(place * span)] ^= bits
    decodes_or_says_why(bytes(data))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200), start=st.sampled_from([b"", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"P6 "]))
def test_any_bytes(data: bytes, start: bytes) -> None:
    decodes_or_says_why(start + data)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 70),
    fit=st.sampled_from(FITS), channels=st.sampled_from([1, 3]), kind=st.sampled_from(["JPEG", "PNG"]),
)  # fmt: skip
def test_any_shape(width: int, height: int, size: int, fit: str, channels: int, kind: str) -> None:
    data = file(picture(width, height), kind)
    image = decode(data, "a", size=size, fit=fit, num_channels=channels).astype(int)
    assert image.shape == (size, size, channels)
    assert np.abs(image - decode_reference(data, "a", size=size, fit=fit, num_channels=channels)).max() <= 3


def test_many_threads_leave_warnings_and_pillow_as_they_were() -> None:
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    names = sorted(CORPUS)
    alone = {name: decode(CORPUS[name][0], name, size=SIDE) for name in names}
    wrong: list[str] = []

    def work(first: int) -> None:
        for turn in range(2 * len(names)):
            name = names[(first + turn) % len(names)]
            if not np.array_equal(decode(CORPUS[name][0], name, size=SIDE), alone[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(7 * k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert list(warnings.filters) == filters
    assert limit == Image.MAX_IMAGE_PIXELS


def test_pillows_warnings_stay_inside() -> None:
    """A palette with transparency per index, and a TIFF whose tags are odd, make Pillow warn."""
    exif = Image.Exif()
    exif[0x0112] = 1
    broken = file(picture(), "TIFF", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (broken[:-4] + b"\xff\xff\xff\xff", broken, CORPUS["png palette"][0]):
            decodes_or_says_why(data)


def test_what_simplejpeg_refuses_goes_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Callable[..., object]:
        raise ValueError("no")

    monkeypatch.setattr(module, "decode_jpeg", refuse)
    data = CORPUS["jpeg"][0]
    assert np.array_equal(decode(data, "a", size=40), decode_reference(data, "a", size=40, fit="stretch"))


def test_too_little_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "_eight_bit", short)
    with pytest.raises(DecodeError, match="not enough memory for an image of 61x47"):
        decode(CORPUS["png"][0], "a", size=SIDE)


def test_num_channels_is_one_or_three() -> None:
    with pytest.raises(ConfigError, match="num_channels=2"):
        decode(b"", "a", size=SIDE, num_channels=2)
