"""FFCV betons: written with the real ffcv, read back by ffcv's own Loader; and what cannot be written."""

import fcntl
import importlib.util
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from betons import CLASSES, H, N, W, picture, sample, write, write_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastload.errors import ConfigError, DatasetError, DecodeError
from fastload.formats.ffcv import check_beton, find_beton_damage, open_beton, write_beton
from tests.conftest import num_threads

needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason='ffcv is not installed: pip install "fastload[ffcv]"'
)


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
    return write_all(tmp_path_factory.mktemp("betons"))


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
    before, threads = children(), num_threads()
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
    assert num_threads() == threads


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
def test_a_jpeg_that_would_not_be_opened_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("fastload.formats.ffcv_writer.MAX_PIXELS", H * W - 1)
    with pytest.raises(DatasetError, match=rf"sample 0 has {W}x{H} pixels; a JPEG in a beton has at most"):
        write(tmp_path / "a.beton", mode="jpg")
    write(tmp_path / "a.beton", mode="jpg", max_resolution=W - 1)


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
