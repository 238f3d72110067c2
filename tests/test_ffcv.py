"""FFCV betons: written with the real ffcv, read back by ffcv's own Loader, cut, flipped, killed."""

import fcntl
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastload.errors import ConfigError, DatasetError, DecodeError
from fastload.formats import beton
from fastload.formats.ffcv import check_beton, find_beton_damage, open_beton, write_beton

needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason='ffcv is not installed: pip install "fastload[ffcv]"'
)
CLASSES = ["ant", "bee", "\udcffcrab"]
H, W, N = 37, 53, 11


def picture(index, height=H, width=W):
    """A smooth image, so that JPEG keeps it, and another one for every index."""
    y, x, c = np.meshgrid(np.linspace(0, 3, height), np.linspace(0, 3, width), np.arange(3), indexing="ij")
    return (127.5 + 127.5 * np.sin(y + 0.7 * x * (1 + c / 5) + index)).astype(np.uint8)


def sample(index):
    return picture(index), index % 3


def write(out, num_samples=N, sample=sample, workers=2, **options):
    told = []
    write_beton(
        out,
        num_samples,
        sample,
        classes=CLASSES,
        workers=workers,
        info={"source": "made"},
        advance=told.append,
        **options,
    )
    assert sum(told) == num_samples
    return out


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def children():
    return {
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One beton of each mode, written once."""
    folder = tmp_path_factory.mktemp("betons")
    return {mode: write(folder / f"{mode}.beton", mode=mode) for mode in ("raw", "jpg", "proportion")}


@pytest.fixture
def copy(made, tmp_path):
    """A beton of our own to damage, without its JSON."""
    return Path(shutil.copy(made["raw"], tmp_path / "copy.beton"))


def patch(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


# Written by us, read by ffcv and by us


@needs_ffcv
@pytest.mark.parametrize("mode", ["raw", "jpg", "proportion"])
def test_ffcv_reads_what_we_wrote(made, mode):
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    loader = Loader(
        str(made[mode]), batch_size=4, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
        os_cache=mode != "proportion", pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()]},
    )  # fmt: skip
    batches = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in loader]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert labels.ravel().tolist() == [i % 3 for i in range(N)]
    ours = open_beton(made[mode])
    num_exact = 0
    for index in range(N):
        wanted = picture(index)
        exact = np.array_equal(images[index], wanted)
        num_exact += exact
        assert exact or psnr(images[index], wanted) > 35
        image, label = ours[index]
        assert label == index % 3
        # libjpeg-turbo with two settings, so a grey level or two apart
        assert exact == np.array_equal(image.numpy(), wanted)
        assert np.abs(image.numpy().astype(int) - images[index]).max() <= (0 if exact else 4)
    assert num_exact == {"raw": N, "jpg": 0}.get(mode, num_exact)
    assert mode != "proportion" or 0 < num_exact < N


@needs_ffcv
def test_what_open_beton_says(made):
    opened = open_beton(str(made["raw"]))
    assert len(opened) == N
    assert opened.classes == tuple(CLASSES)
    assert opened.labels.tolist() == [i % 3 for i in range(N)]
    assert opened.sizes.tolist() == [[H, W]] * N
    assert opened[-1][1] == opened[N - 1][1]
    with pytest.raises(IndexError):
        opened[N]
    info = check_beton(made["raw"])
    assert info == opened.info
    assert [(f.name, f.kind) for f in info.fields] == [("image", "image"), ("label", "int")]
    assert (info.num_samples, info.page_size) == (N, 8 << 20)
    assert info.num_bytes == made["raw"].stat().st_size == info.table_start + 24 * N
    about = json.loads(made["raw"].with_suffix(".json").read_text())
    assert about["classes"] == CLASSES
    assert about["counts"] == {"0": 4, "1": 4, "2": 3}
    assert (about["count"], about["mode"], about["info"]) == (N, "raw", {"source": "made"})
    assert not list(find_beton_damage(made["raw"]))


@needs_ffcv
def test_the_bytes_do_not_depend_on_the_workers(made, tmp_path):
    for mode, path in made.items():
        again = write(tmp_path / f"{mode}.beton", mode=mode, workers=5)
        assert again.read_bytes() == path.read_bytes()
        assert again.with_suffix(".json").read_bytes() == path.with_suffix(".json").read_bytes()


class Foreign:
    def __len__(self):
        return N

    def __getitem__(self, index):
        return (index / 2, np.full(index + 1, index, np.uint8), {"index": int(index)}, np.full((2, 3), index, np.int32),
                index, picture(index))  # fmt: skip


@needs_ffcv
@pytest.mark.processes
@pytest.mark.timeout(60)  # ffcv waits for ever for a worker that raised
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_betons_that_ffcv_wrote_itself(made, tmp_path):
    from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    path = tmp_path / "foreign.beton"
    fields = {
        "a_very_long_name_of_a_field": FloatField(), "bytes": BytesField(), "json": JSONField(),
        "array": NDArrayField(np.dtype("int32"), (2, 3)), "class": IntField(), "picture": RGBImageField(),
    }  # fmt: skip
    DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(Foreign(), chunksize=3)
    found = [(f.name, f.kind) for f in check_beton(path).fields]
    assert found[0] == ("a_very_long_name", "float")
    assert found[1:] == [
        ("bytes", "bytes"), ("json", "json"), ("array", "ndarray"), ("class", "int"), ("picture", "image")
    ]  # fmt: skip
    opened = open_beton(path)
    assert opened.classes == ()
    for index in range(N):
        image, label = opened[index]
        assert label == index
        assert np.array_equal(image.numpy(), picture(index))

    class Own:
        def __len__(self):
            return N

        def __getitem__(self, index):
            return sample(index)

    own = {"image": RGBImageField(), "label": IntField()}
    DatasetWriter(str(path), own, num_workers=1).from_indexed_dataset(Own())
    assert path.read_bytes() == made["raw"].read_bytes()


@needs_ffcv
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(-1, 2)), min_size=1, max_size=9),
    workers=st.integers(1, 4),
)
def test_raw_images_of_any_size_come_back(tmp_path, shapes, workers):
    def sample(index):
        height, width, label = shapes[index]
        # From a larger array, mirrored: neither contiguous nor in order.
        return np.random.default_rng(index).integers(0, 256, (2 * height, width, 4), np.uint8)[::-2, ::-1, 1:], label

    path = tmp_path / "any.beton"
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    opened = open_beton(write(path, len(shapes), sample, workers))
    for index in range(len(shapes)):
        wanted, label = sample(index)
        image, found = opened[index]
        assert np.array_equal(image.numpy(), wanted)
        assert found == label


@needs_ffcv
def test_max_resolution_is_met_exactly(tmp_path):
    # 64 / 98 * 98 is below 64 in floating point: ffcv's own resizer makes 63 of it, and 0 of the last one
    shapes = [(98, 50), (50, 98), (64, 64), (20, 30), (1, 1000)]
    opened = open_beton(
        write(tmp_path / "a.beton", 5, lambda i: (picture(i, *shapes[i]), 0), mode="jpg", max_resolution=64)
    )
    assert opened.sizes.tolist() == [[64, 33], [33, 64], [64, 64], [20, 30], [1, 64]]
    assert [list(opened[i][0].shape) for i in range(5)] == [[*size, 3] for size in opened.sizes.tolist()]


@needs_ffcv
def test_an_image_larger_than_a_page_makes_pages_larger(tmp_path):
    large = np.random.default_rng(0).integers(0, 256, (1700, 1700, 3), np.uint8)
    opened = open_beton(write(tmp_path / "a.beton", 5, lambda i: (large if i == 3 else picture(i), 1)))
    assert opened.info.page_size == 16 << 20
    assert np.array_equal(opened[3][0].numpy(), large)
    assert np.array_equal(opened[4][0].numpy(), picture(4))


# Samples and outputs that cannot be


def refuse(folder, error, match, bad, at=7, **options):
    def some(index):
        if index == at:
            return bad() if callable(bad) else bad
        return sample(index)

    with pytest.raises(error, match=match) as caught:
        write(folder / "a.beton", N, some, **options)
    assert not list(folder.iterdir())
    return caught.value


@needs_ffcv
def test_a_bad_image_ends_the_run_at_once(tmp_path):
    write(tmp_path / "warm.beton")  # what stays for good is there now: the tracker of shared memory
    before, threads = children(), threading.active_count()
    folder = tmp_path / "out"
    folder.mkdir()

    def bad():
        assert children() == before  # nobody there who could be killed
        raise DecodeError("b/0007.jpg", "not an image")

    for workers in (1, 3):
        for at in (0, 7, N - 1):
            start = time.monotonic()
            caught = refuse(folder, DecodeError, "b/0007.jpg: not an image", bad, at, workers=workers)
            assert caught.path == "b/0007.jpg"
            assert time.monotonic() - start < 5
    assert children() == before
    assert threading.active_count() == threads


def raises(error):
    def bad():
        raise error

    return bad


@needs_ffcv
@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ((np.zeros((0, 0, 3), np.uint8), 0), "sample 7 has 0x0 pixels"),
        ((np.zeros((5, 0, 3), np.uint8), 0), "sample 7 has 0x5 pixels"),
        ((np.zeros((1, 65536, 3), np.uint8), 0), "sample 7 has 65536x1 pixels"),
        ((np.zeros((5, 5, 3), np.float32), 0), r"sample 7 is float32 \[5, 5, 3\]"),
        ((np.zeros((5, 5), np.uint8), 0), r"sample 7 is uint8 \[5, 5\]"),
        ((np.zeros((5, 5, 4), np.uint8), 0), r"sample 7 is uint8 \[5, 5, 4\]"),
        (("\x1b[31m", 0), "sample 7 is str"),
        ((picture(0), 3), "sample 7 has label 3; there are 3 classes"),
        ((picture(0), -2), "sample 7 has label -2"),
        ((picture(0), 1.0), "sample 7 has label 1.0"),
        (raises(MemoryError()), "sample 7: out of memory"),
        (raises(PermissionError(13, "Permission denied")), "sample 7 cannot be read .Permission denied"),
    ],
)
def test_samples_that_cannot_be_stored(tmp_path, bad, match):
    refuse(tmp_path, DatasetError, match, bad)


@needs_ffcv
def test_a_mistake_in_the_callers_code_is_left_as_it_is(tmp_path):
    refuse(tmp_path, ZeroDivisionError, "division", lambda: 1 / 0)


@needs_ffcv
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "smart"}, "smart"),
        ({"quality": 0}, "quality=0"),
        ({"jpeg_share": 1.5}, "jpeg_share=1.5"),
        ({"max_resolution": 0}, "max_resolution=0"),
        ({"max_resolution": 65536}, "max_resolution=65536"),
        ({"workers": 0}, "workers=0"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"out": "a.ffcv"}, "ends in .beton"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, match):
    out = tmp_path / options.pop("out", "a.beton")
    with pytest.raises(ConfigError, match=match):
        write(out, **options)
    assert not list(tmp_path.iterdir())


@needs_ffcv
def test_nothing_is_overwritten_and_nobody_is_disturbed(tmp_path):
    out = tmp_path / "a.beton"
    for name in ("a.beton", "a.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(DatasetError, match=f"{name} exists"):
            write(out)
        assert [f.name for f in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()

    def bad():
        with pytest.raises(DatasetError, match="being written by another process"):
            write(out)
        raise DecodeError("x", "seen")

    refuse(tmp_path, DecodeError, "seen", bad)
    (tmp_path / ".a.beton.tmp").write_text("what a killed run left")
    with (tmp_path / ".a.beton.tmp").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match="being written by another process"):
            write(out)
    write(out)


@needs_ffcv
@pytest.mark.parametrize("limit", [1 << 10, 4 << 20, 12 << 20, (16 << 20) + 5])
def test_a_full_disk(tmp_path, limit):
    # 12 MiB: a page is cut in the middle, which write() reports as a smaller number and ffcv does not see
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DatasetError, match="make room"):
            write(tmp_path / "a.beton")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@needs_ffcv
def test_a_disk_that_was_full_for_a_moment(tmp_path):
    # The first page is cut without an error, and then there is room again: every later page would lie askew.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = []

    def advance(count):
        told.append(count)
        if len(told) == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, before[1]))
    try:
        with pytest.raises(DatasetError, match="took 29,360,128 of 33,554,432 bytes; make room"):
            write_beton(
                tmp_path / "a.beton", 6, lambda i: (picture(i, 1000, 1000), 0), classes=CLASSES, workers=1, info={},
                advance=advance,
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_without_ffcv(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(ConfigError, match="libopencv-dev libturbojpeg0-dev pkg-config") as caught:
        write(tmp_path / "a.beton")
    assert 'pip install "fastload[ffcv]"' in str(caught.value)
    assert not list(tmp_path.iterdir())


@needs_ffcv
def test_reading_needs_no_ffcv(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv", None)
    for path in made.values():
        assert open_beton(path)[3][0].shape == (H, W, 3)


# Killed

KILLED = """
import os, signal, sys, time
from pathlib import Path
import ffcv.memory_allocator, ffcv.writer
sys.path.insert(0, {tests!r})
from test_ffcv import N, sample, write

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(owner, name, number):
    real, calls = getattr(owner, name), []
    def wrapped(*args, **kwargs):
        calls.append(0)
        if len(calls) > number:
            die()
        return real(*args, **kwargs)
    setattr(owner, name, wrapped)

import fastload.formats.ffcv_writer as w
(Path({folder!r}) / "warm").mkdir()
write(Path({folder!r}) / "warm" / "a.beton")
points = (
    [(ffcv.memory_allocator.MemoryAllocator, "malloc", k) for k in (0, 5, N - 1)]
    + [(ffcv.memory_allocator.MemoryAllocator, "flush_page", k) for k in (0, 1)]
    + [(ffcv.writer.DatasetWriter, name, 0) for name in ("prepare", "finalize")]
    + [(w, name, 0) for name in ("check_beton", "sha256_of")]
    + [(w, "sync", k) for k in range(4)]
    + [(Path, "replace", k) for k in range(2)]
)
for number in range(len(points) + 6):
    folder = Path({folder!r}) / str(number)
    folder.mkdir()
    child = os.fork()
    if child == 0:
        try:
            if number < len(points):
                at_call(*points[number])
                write(folder / "a.beton")
            else:
                write(folder / "a.beton", sample=lambda i: (time.sleep(0.03), sample(i))[1], workers=1)
        finally:
            os._exit(3)
    if number >= len(points):
        time.sleep(0.03 * (number - len(points)))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (number, status)
print(len(points) + 6)
"""


@needs_ffcv
@pytest.mark.processes
def test_a_killed_writer_leaves_no_file_that_looks_whole(made, tmp_path):
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    num_whole = num_finished = 0
    for number in range(int(done.stdout)):
        out = tmp_path / str(number) / "a.beton"
        if out.with_suffix(".json").exists():  # killed behind the last rename
            num_finished += 1
        else:
            if out.exists():  # killed between the two renames: the next run finishes it
                check_beton(out)
                num_whole += 1
            write(out)
        assert sorted(f.name for f in out.parent.iterdir()) == ["a.beton", "a.json"]
        assert out.read_bytes() == made["raw"].read_bytes()
        about = made["raw"].with_suffix(".json").read_bytes()
        assert out.with_suffix(".json").read_bytes() == about.replace(b"raw.beton", b"a.beton")
        shutil.rmtree(out.parent)
    assert (num_whole, num_finished) == (2, 1)


# Cut, flipped, hostile


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
