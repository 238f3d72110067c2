"""Betons that were cut, flipped or made up, ours and as ffcv leaves them: always an error, never a wrong pixel."""

import importlib.util
import json
import os
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from betons import CLASSES, H, N, W, patch, write_all

from fastload.errors import DatasetError
from fastload.formats import beton
from fastload.formats.ffcv import check_beton, find_beton_damage, open_beton

needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason='ffcv is not installed: pip install "fastload[ffcv]"'
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One beton of each mode, written once."""
    return write_all(tmp_path_factory.mktemp("betons"))


@pytest.fixture
def copy(made, tmp_path):
    """A beton of our own to damage, without its JSON."""
    return Path(shutil.copy(made["raw"], tmp_path / "copy.beton"))


@needs_ffcv
def test_a_file_cut_at_any_length(copy):
    size, table = copy.stat().st_size, check_beton(copy).table_start
    fields, metadata = 24 + 2 * 1041, 24 + 2 * 1041 + 24 * N
    lengths = {size - 1, size - 24, size - 25, table + 24, table + 1, table, table - 1, table - (8 << 20), 8 << 20,
               (8 << 20) - 1, metadata + 1, metadata, metadata - 1, fields, fields - 1, 1065, 24, 23, 1, 0,
               *np.random.default_rng(0).integers(0, size, 20).tolist()}  # fmt: skip
    for longer in (1, 24, 24 * N):
        os.truncate(copy, size + longer)
        with pytest.raises(DatasetError, match="cut or changed"):
            check_beton(copy)
    for length in sorted(lengths, reverse=True):
        os.truncate(copy, length)
        for read in (check_beton, open_beton):
            with pytest.raises(DatasetError):
                read(copy)


@needs_ffcv
def test_a_file_cut_after_it_was_opened(copy):
    opened = open_beton(copy)
    os.truncate(copy, 8 << 20)
    with pytest.raises(DatasetError, match="sample 2 is not whole"):
        opened[2]


@needs_ffcv
def test_what_ffcv_leaves_behind_when_it_is_killed(copy):
    patch(copy, 16, bytes(8))
    with pytest.raises(DatasetError, match="unfinished"):
        check_beton(copy)


@needs_ffcv
@pytest.mark.parametrize(
    ("offset", "data", "match"),
    [
        (0, b"\x03", "no .beton of version 2"),
        (2, b"\x00\x00", "so nothing"),
        (2, b"\xff\xff", "its 65535 fields alone need more"),
        (2, b"\x03\x00", "broken image"),
        (4, (1 << 20).to_bytes(4, "little"), "pages of 1,048,576 bytes"),
        (4, (12 << 20).to_bytes(4, "little"), "not a power of 2"),
        (8, bytes(8), "so nothing"),
        (8, (N + 1).to_bytes(8, "little"), "cut or changed"),
        (8, b"\xff" * 8, "cut or changed"),
        (16, b"\xff" * 8, "cut or changed"),
        (24, b"\x07", "only its writer"),
        (24, b"\xff", "only its writer"),
        (25, bytes(16), "no readable name"),
        (25, b"\xc3\xa9", "no readable name"),
        (24 + 1041 + 1, b"image", "two fields of one name"),
    ],
)
def test_numbers_that_cannot_be(copy, offset, data, match):
    patch(copy, offset, data)
    with pytest.raises(DatasetError, match=match):
        check_beton(copy)


@needs_ffcv
@pytest.mark.parametrize(
    ("value", "match"),
    [
        ((1, 0, 0), "image: sample 3 has mode 1, width 0, height 0"),
        ((1, 0, H), "width 0"),
        ((0, W, 0), "height 0"),
        ((1, W, H + 1), "sample 3"),
        ((2, W, H), "mode 2"),
        ((1, H, W), None),
        ((0, 65_000, 65_000), "mode 0, width 65000, height 65000"),
    ],
)
def test_images_of_no_size(copy, value, match):
    row = np.array([value], [("mode", "u1"), ("width", "<u2"), ("height", "<u2")])
    patch(copy, check_beton(copy).metadata_start + 3 * 24, row.tobytes())
    if match is None:
        assert open_beton(copy)[3][0].shape == (W, H, 3)
    else:
        with pytest.raises(DatasetError, match=match):
            check_beton(copy)


@needs_ffcv
@pytest.mark.parametrize(
    ("start", "size"),
    [
        (lambda info: info.table_start, 5),
        (lambda info: info.table_start - 5, 6),
        (lambda info: info.data_start - 5, 5),
        (lambda info: info.data_start + 7, 2**64 - 7),  # their sum is 0 in 64 bits
        (lambda info: 2**64 - 1, 2),
    ],
)
def test_data_outside_of_the_pages(made, tmp_path, start, size):
    path = Path(shutil.copy(made["jpg"], tmp_path / "a.beton"))
    info = check_beton(path)
    place = np.array(start(info), "<u8").tobytes()
    patch(path, info.metadata_start + 3 * 24 + 5, place)
    patch(path, info.table_start + 3 * 24 + 8, place + np.array(size, "<u8").tobytes())
    with pytest.raises(DatasetError, match=f"puts {size:,} bytes of sample 3 at {start(info):,}"):
        check_beton(path)


@needs_ffcv
@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_a_flipped_bit_is_found_or_harmless(made, tmp_path, mode):
    """Whatever bit outside of the pixels is flipped: an error, or the same pixels."""
    path = Path(shutil.copy(made[mode], tmp_path / "a.beton"))
    info, before = check_beton(path), open_beton(path)
    places = [*range(42), *range(1065, 1083), *range(info.metadata_start, info.metadata_end),
              *range(info.table_start, info.num_bytes)]  # fmt: skip
    data = path.read_bytes()
    num_found = 0
    for place in places:
        for bit in (0, 3, 7) if place > 24 else range(8):
            patch(path, place, bytes([data[place] ^ 1 << bit]))
            try:
                opened = open_beton(path)
                rows = [opened[i][0] for i in ((place - info.metadata_start) // 24 % N, 0)]
            except DatasetError as e:
                assert "\n" not in str(e)  # noqa: PT017
                num_found += 1
            else:
                assert place >= 24 or place in range(4, 8)  # pages of 2 or 4 MiB would hold these small images too
                assert len(opened) == N
                for image, i in zip(rows, ((place - info.metadata_start) // 24 % N, 0), strict=True):
                    assert image.equal(before[i][0])
        patch(path, place, data[place : place + 1])
    assert num_found > 1000
    assert path.read_bytes() == data


@needs_ffcv
def test_a_hostile_header_costs_neither_memory_nor_time(copy):
    info = check_beton(copy)
    num_samples = 1 << 33
    table = (-(-(info.metadata_start + num_samples * 24) // info.page_size) + 1) * info.page_size
    patch(copy, 8, num_samples.to_bytes(8, "little") + table.to_bytes(8, "little"))
    try:
        os.truncate(copy, table + num_samples * 24)  # a hole of 400 GB: every size agrees
    except OSError:
        pytest.skip("this file system has no files of 400 GB, not even with holes")
    start = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match="puts 0 bytes of sample 0 at 0"):
            open_beton(copy)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        copy.unlink()
    assert peak_bytes < 64 << 20
    assert time.monotonic() - start < 5


@needs_ffcv
def test_two_hundred_thousand_samples_are_checked_in_a_moment(copy):
    """Memory is bounded by what is there; made by hand, since writing them would take a while."""
    info = check_beton(copy)
    num_samples = 200_000
    rows, table = np.zeros(num_samples, info.metadata_type), np.zeros(num_samples, beton.TABLE_ENTRY)
    data_start = -(-(info.metadata_start + rows.nbytes) // info.page_size) * info.page_size
    table_start = data_start + info.page_size
    rows["f0"]["mode"], rows["f0"]["width"], rows["f0"]["height"] = 1, 2, 1
    rows["f0"]["start"] = data_start + 6 * np.arange(num_samples)
    order = np.random.default_rng(0).permutation(num_samples)  # as several workers of ffcv would leave it
    table["sample"], table["start"], table["size"] = order, rows["f0"]["start"][order], 6
    os.truncate(copy, table_start)
    patch(copy, 8, num_samples.to_bytes(8, "little") + table_start.to_bytes(8, "little"))
    patch(copy, info.metadata_start, rows.tobytes())
    patch(copy, table_start, table.tobytes())
    tracemalloc.start()
    try:
        start = time.monotonic()
        assert check_beton(copy).num_samples == num_samples
        assert time.monotonic() - start < 2
        assert tracemalloc.get_traced_memory()[1] < 100 * num_samples + (32 << 20)
    finally:
        tracemalloc.stop()
    table["sample"][1] = table["sample"][0]
    patch(copy, table_start, table.tobytes())
    with pytest.raises(DatasetError, match=f"sample {order[1]:,} has no data"):
        check_beton(copy)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe\n.beton")
    (tmp_path / "short\x1b.beton").write_bytes(b"x" * 23)
    for name, match in (
        ("pipe\n.beton", r"pipe\\n.beton is no file"),
        ("short\x1b.beton", r"short\\x1b.beton has 23 bytes"),
        ("none.beton", "does not exist"),
        ("", "is no file"),
    ):
        with pytest.raises(DatasetError, match=match):
            check_beton(tmp_path / name)


@needs_ffcv
def test_the_json_beside_it(made, copy):
    about = json.loads(made["raw"].with_suffix(".json").read_text())
    file = copy.with_suffix(".json")
    assert open_beton(copy).classes == ()
    assert "checksum" in next(find_beton_damage(copy))
    file.write_text('{"annotations": []}')  # somebody else's
    assert open_beton(copy).classes == ()
    for change, match in (
        ({"version": 2}, "version 2, not 1"),
        ({"count": 10}, "of another file"),
        ({"classes": None}, "no classes"),
        ({"classes": ["ant"]}, "labels from 0 to 2"),
    ):
        file.write_text(json.dumps(about | change))
        with pytest.raises(DatasetError, match=match):
            open_beton(copy)
    file.write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        open_beton(copy)
    file.write_text(json.dumps(about))
    assert open_beton(copy).classes == tuple(CLASSES)
    assert not list(find_beton_damage(copy))
    patch(copy, (8 << 20) + 5, bytes([copy.read_bytes()[(8 << 20) + 5] ^ 1]))
    assert ["not those that were written" in sentence for sentence in find_beton_damage(copy)] == [True]
    os.truncate(copy, 9 << 20)
    assert ["was cut" in sentence for sentence in find_beton_damage(copy)] == [True]
