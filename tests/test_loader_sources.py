"""The placements that read sample by sample: a folder or any dataset through DataLoader, a .beton through ffcv."""

import importlib.util
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from betons import CLASSES, H, N, W, picture
from betons import write as write_beton
from PIL import Image
from torchvision.datasets import ImageFolder

from fastload import Augment, Loader, open_dataset
from fastload.cut import Cut, parse_cut
from fastload.errors import ConfigError, DatasetError, TransformError
from fastload.stores import beton as beton_store
from fastload.stores.beton import jpeg_size
from fastload.stores.folder import cut as cut_by_pillow
from tests.conftest import TRAIN, comes_true, num_threads, write_image

needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason='ffcv is not installed: pip install "fastload[ffcv]"'
)
CROP = Augment([v2.RandomCrop(9), v2.RandomHorizontalFlip()])


def same(a: Loader, b: Loader) -> None:
    for (images_a, labels_a), (images_b, labels_b) in zip(a, b, strict=True):
        assert torch.equal(images_a, images_b)
        assert torch.equal(labels_a, labels_b)
        assert torch.equal(a.batch_ids, b.batch_ids)


# --- folder ---


@pytest.mark.parametrize("workers", [0, 2])
def test_one_flag_compares_a_dataset_with_dataloader(dataset: Path, workers: int) -> None:
    opened = open_dataset(dataset)
    slow = Loader(opened, 4, augment=CROP, placement="folder", workers=workers, seed=3)
    assert slow.placement.kind == "folder"
    same(slow, Loader(opened, 4, augment=CROP, seed=3))


def test_an_image_folder_is_read_through_image_folder(folder: Path) -> None:
    opened = open_dataset(folder, size=20)
    assert opened.classes == ("ant", "bee", "wasp")
    assert opened.sample_shape == (20, 20, 3)
    loader = Loader(opened, 4, augment=CROP, shuffle=False, workers=0)
    assert loader.placement.kind == "folder"
    labels = torch.cat([labels for _, labels in loader])
    assert torch.bincount(labels).tolist() == [TRAIN["ant"], TRAIN["bee"], TRAIN["wasp"]]
    assert len(open_dataset(folder, "valid", size=20)) == 7
    with pytest.raises(DatasetError, match="no split test; its split folders are: train, valid"):
        open_dataset(folder, "test", size=20)
    with pytest.raises(DatasetError, match="size="):
        open_dataset(folder)


def test_ranks_share_a_folder_exactly(folder: Path) -> None:
    opened = open_dataset(folder, size=20)
    seen: list[int] = []
    for rank in range(3):
        loader = Loader(opened, 2, drop_last=False, rank=rank, world_size=3, workers=0)
        for images, _ in loader:
            assert len(images) == 2
            seen += loader.batch_ids[: loader.num_valid].tolist()
    assert sorted(seen) == list(range(13))


def test_any_map_style_dataset_will_do() -> None:
    generator = torch.Generator().manual_seed(0)
    floats = torch.utils.data.TensorDataset(torch.rand(7, 3, 5, 5, generator=generator), torch.arange(7))
    loader = Loader(floats, 3, shuffle=False, workers=0)
    got = torch.cat([images for images, _ in loader])
    assert torch.equal(got, floats.tensors[0])  # its own transforms are done
    with pytest.raises(ConfigError, match="gives floats"):
        Loader(floats, 3, augment=CROP)
    planar = torch.utils.data.TensorDataset((floats.tensors[0] * 255).byte(), torch.arange(7))
    images, labels = next(iter(Loader(planar, 3, shuffle=False, workers=0)))
    assert torch.allclose(images, planar.tensors[0][:3] / 255)
    assert labels.tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match='placement="host" is for'):
        Loader(planar, 3, placement="host")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_named(folder: Path, workers: int) -> None:
    bad = folder / "train" / "bee" / "002.jpg"
    bad.write_bytes(b"no image")
    loader = Loader(open_dataset(folder, size=20), 4, shuffle=False, workers=workers)
    with pytest.raises(DatasetError) as caught:
        list(loader)
    said = r"\w+: sample \d+ \(.*002\.jpg\) cannot be read \(UnidentifiedImageError: .*\); mend it, or leave it out\."
    assert re.fullmatch(said, str(caught.value))  # one sentence, whoever read it


def remember(text: str) -> DatasetError:
    FRAMES.append(sys._getframe())
    return DatasetError(text)


FRAMES: list[object] = []


def test_a_bad_sample_ends_the_workers_though_its_error_holds_their_frames(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As errors do that were unpickled by tblib, which Dask installs."""
    (folder / "train" / "bee" / "002.jpg").write_bytes(b"no image")
    monkeypatch.setattr(DatasetError, "__reduce__", lambda error: (remember, (str(error),)))
    before = num_threads()
    try:
        with pytest.raises(DatasetError, match="cannot be read"):
            list(Loader(open_dataset(folder, size=20), 4, shuffle=False, workers=1))
        assert FRAMES
        assert comes_true(lambda: num_threads() <= before, 5)
    finally:
        FRAMES.clear()


def test_images_of_their_own_sizes_are_cut(tmp_path: Path) -> None:
    for number in range(5):
        write_image(tmp_path / "ant" / f"{number}.jpg", number, width=30 + 3 * number, height=25)
    images = ImageFolder(str(tmp_path))
    with pytest.raises(DatasetError, match="own sizes"):
        list(Loader(images, 2, workers=0))
    loader = Loader(images, 2, cut=v2.RandomResizedCrop(12), augment=Augment(), workers=0)
    assert [tuple(batch.shape) for batch, _ in loader] == [(2, 3, 12, 12)] * 2
    again = Loader(images, 1, cut=v2.RandomResizedCrop(12), augment=Augment(), workers=2)
    loader.set_epoch(0)
    singles = [image for image, _ in again]
    for k, (pair, _) in enumerate(loader):
        assert torch.equal(pair, torch.cat(singles[2 * k : 2 * k + 2]))  # whatever the batch size
    sizes = np.array([image.size[::-1] for image, _ in images])
    for epoch, (pair, _) in ((epoch, batch) for epoch in (1, 2) for batch in loader):
        ids = loader.batch_ids.numpy()
        boxes = parse_cut(v2.RandomResizedCrop(12)).boxes(sizes[ids], ids, seed=0, epoch=epoch)
        for image, box, i in zip(pair, boxes.tolist(), ids.tolist(), strict=True):
            stored = torch.from_numpy(np.array(images[i][0]))
            torch.testing.assert_close(image, cut_by_pillow(stored, box, (12, 12)).permute(2, 0, 1) / 255)


# --- cut ---


def test_boxes_are_those_of_torchvision_in_distribution_and_bounds() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 400, (4000, 2))
    cut = parse_cut(v2.RandomResizedCrop(16, scale=(0.2, 0.7)))
    boxes = cut.boxes(sizes, np.arange(4000), seed=1, epoch=2)
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2:].min() >= 1
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    square = np.full((4000, 2), 200)
    drawn = cut.boxes(square, np.arange(4000), seed=1, epoch=2)
    area = drawn[:, 2] * drawn[:, 3] / 200**2
    torch.manual_seed(0)
    image = torch.empty(3, 200, 200)
    crop = v2.RandomResizedCrop(16, scale=(0.2, 0.7))
    theirs = np.array([[p["height"], p["width"]] for p in (crop.make_params([image]) for _ in range(2000))])
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(area, share) == pytest.approx(np.quantile(theirs.prod(1) / 200**2, share), abs=0.03)
    assert not np.array_equal(boxes, cut.boxes(sizes, np.arange(4000), seed=1, epoch=3))
    assert np.array_equal(boxes[7:9], cut.boxes(sizes[7:9], np.arange(7, 9), seed=1, epoch=2))


def test_boxes_in_the_middle() -> None:
    sizes, ids = np.array([[100, 50], [30, 90]]), np.arange(2)

    def boxes(transform: object) -> list[list[int]]:
        return parse_cut(transform).boxes(sizes, ids, seed=0, epoch=0).tolist()

    assert boxes(v2.Resize((8, 9))) == [[0, 0, 100, 50], [0, 0, 30, 90]]
    assert boxes(v2.CenterCrop(20)) == [[40, 15, 20, 20], [5, 35, 20, 20]]
    assert boxes(v2.Compose([v2.Resize(25), v2.CenterCrop(20)])) == [[30, 5, 40, 40], [3, 33, 24, 24]]
    assert parse_cut(v2.Resize((8, 9))) == Cut(size=(8, 9))
    cubic = v2.RandomResizedCrop(8, interpolation=v2.InterpolationMode.BICUBIC)
    limited = [v2.Resize(25, max_size=30), v2.CenterCrop(20)]
    magnified = [v2.Resize(25), v2.CenterCrop((20, 26))]
    middle = [v2.CenterCrop(3), v2.Resize(4)]
    for wrong in (v2.Resize(8), v2.RandomHorizontalFlip(), middle, cubic, limited, magnified):
        with pytest.raises(TransformError, match=r"cut[=:]"):
            parse_cut(wrong)
    with pytest.raises(TransformError, match=r"CenterCrop takes 20x60, and an image has 100x50; pass Resize"):
        boxes(v2.CenterCrop((20, 60)))


# --- ffcv ---


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("betons")
    for mode in ("raw", "jpg"):
        write_beton(folder / f"{mode}.beton", mode=mode)
        write_beton(folder / f"{mode}_sizes.beton", mode=mode, sample=own_size)
    return folder


def own_size(index: int) -> tuple[np.ndarray, int]:
    return picture(index, H + index, W - index), index % 3


@needs_ffcv
@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_a_beton_behind_the_same_loader(betons: Path, mode: str) -> None:
    opened = open_dataset(betons / f"{mode}.beton")
    fast = Loader(opened, 4, augment=CROP, workers=3)
    assert fast.placement.kind == "ffcv"
    slow = Loader(opened, 4, augment=CROP, placement="folder", workers=0)
    for (a, la), (b, lb) in zip(fast, slow, strict=True):
        # Pillow and ffcv decode with other settings of libjpeg-turbo: a grey level or two apart.
        assert (a - b).abs().max() * 255 < (0.01 if mode == "raw" else 4.5)
        assert torch.equal(la, lb)
    assert opened.classes == tuple(CLASSES)


@needs_ffcv
@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_cuts_by_ffcv_are_those_boxes(betons: Path, mode: str) -> None:
    opened = open_dataset(betons / f"{mode}_sizes.beton")
    with pytest.raises(ConfigError, match="own sizes"):
        Loader(opened, 4)
    with pytest.raises(TransformError, match="CenterCrop takes 400x400"):
        Loader(opened, 4, cut=v2.CenterCrop(400))
    for transform in (v2.RandomResizedCrop(16), v2.Compose([v2.Resize(20), v2.CenterCrop(16)])):
        loader = Loader(
            opened, 4, cut=transform, augment=Augment(dtype=torch.uint8), drop_last=False, workers=2, seed=5
        )
        # Two passes: an epoch has boxes of its own.
        for epoch, (images, labels) in ((epoch, batch) for epoch in (0, 1) for batch in loader):
            ids = loader.batch_ids.numpy()
            boxes = parse_cut(transform).boxes(opened.sizes.numpy()[ids], ids, seed=5, epoch=epoch)
            for image, box, label, i in zip(images, boxes, labels, ids, strict=True):
                expected = cut_by_pillow(opened[int(i)][0], box.tolist(), (16, 16))
                # An area average beside a triangle filter, on smooth pictures.
                assert (image.permute(1, 2, 0).int() - expected.int()).abs().float().mean() < 3
                assert label == i % 3


@needs_ffcv
def test_batches_are_distinct_ranks_share_and_resuming_is_exact(betons: Path) -> None:
    opened = open_dataset(betons / "raw.beton")
    kept = list(Loader(opened, 2, augment=Augment(dtype=torch.uint8), shuffle=False))
    whole = torch.cat([images for images, _ in kept])
    assert torch.equal(whole, torch.stack([opened[i][0] for i in range(N)]).permute(0, 3, 1, 2))
    seen: list[int] = []
    for rank in range(2):
        loader = Loader(opened, 2, drop_last=False, rank=rank, world_size=2)
        for _ in loader:
            seen += loader.batch_ids[: loader.num_valid].tolist()
    assert sorted(seen) == list(range(N))
    expected = [images for images, _ in Loader(opened, 2, augment=CROP)]
    loader = Loader(opened, 2, augment=CROP)
    loader.skip(3)
    assert all(torch.equal(a, b) for (a, _), b in zip(loader, expected[3:], strict=True))


@needs_ffcv
@pytest.mark.usefixtures("nothing_compiles")
def test_what_ffcv_leaves_behind_is_not_left(betons: Path) -> None:
    def held() -> int:
        return len(list(Path("/proc/self/task").iterdir()))  # threads that Python knows nothing of, too

    opened = open_dataset(betons / "jpg.beton")
    list(Loader(opened, 2, workers=7))  # more threads than cores; and augmentation's own, which stay
    before = held()
    for _ in range(5):
        loader = Loader(opened, 2, workers=2)
        for _images in loader:
            break
    iterator = iter(loader)
    next(iterator)
    del iterator
    assert comes_true(lambda: held() <= before)


@needs_ffcv
@pytest.mark.parametrize("what", ["torn", "other size", "cut", "gone"])
def test_a_damaged_image_is_an_error_and_no_wait(tmp_path: Path, what: str) -> None:
    file = write_beton(tmp_path / "train.beton", mode="jpg")
    opened = open_dataset(file)
    loader = Loader(opened, 4, shuffle=False)
    start, size = (int(n) for n in opened.places_N2[6])
    data = bytearray(file.read_bytes())
    if what == "torn":
        data[start : start + size] = bytes(size)
    elif what == "other size":
        at = data.index(b"\xff\xc0", start)
        data[at + 6] += 1
    elif what == "cut":
        data = data[: start + size // 2]
    if what == "gone":
        file.unlink()
    else:
        file.write_bytes(data)
    with pytest.raises(DatasetError, match="cannot be read" if what == "gone" else "sample 6"):
        list(loader)


def test_without_ffcv_a_beton_goes_through_dataloader(betons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beton_store.load_library.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    try:
        opened = open_dataset(betons / "raw.beton")
        assert Loader(opened, 4, workers=0).placement.kind == "folder"
        with pytest.raises(ConfigError, match=r'needs ffcv \(it is not installed\).*placement="folder"'):
            Loader(opened, 4, placement="ffcv")
    finally:
        beton_store.load_library.cache_clear()
    with pytest.raises(ConfigError, match="use placement=ffcv or folder"):
        Loader(opened, 4, placement="mapped")


def test_the_size_in_a_jpegs_header(tmp_path: Path) -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0, "quality": 40}):
        Image.fromarray(picture(0)).save(tmp_path / "a.jpg", **options)
        assert jpeg_size((tmp_path / "a.jpg").read_bytes()) == (H, W)
    assert jpeg_size(b"\xff\xd8") is jpeg_size(b"") is jpeg_size(bytes(40)) is None


def test_a_dataset_of_one_size_is_not_cut(dataset: Path) -> None:
    with pytest.raises(ConfigError, match="crop in augment"):
        Loader(open_dataset(dataset), 4, cut=v2.RandomResizedCrop(9))
    with pytest.raises(ConfigError, match=r"for \.beton files"):
        Loader(open_dataset(dataset), 4, placement="ffcv")


@pytest.fixture(autouse=True)
def _no_threads_left(nothing_compiles: None) -> Iterator[None]:
    before = num_threads()
    yield
    assert comes_true(lambda: num_threads() <= before), [t.name for t in threading.enumerate()]
