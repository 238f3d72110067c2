import math

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from fastload.augment import Augment, RandomErasing, philox, sampling
from fastload.augment.arithmetic import HostNumbers, Keys, below
from fastload.augment.plan import Pass
from fastload.augment.spec import parse, plan
from fastload.errors import TransformError
from tests.augment_help import batch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def assert_close(got: torch.Tensor, expected: torch.Tensor, atol: float = 2e-4) -> None:
    """The one tolerance, in 0..255 units: float32 rounding of a resampling, far below one grey level."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max().item() <= atol * 255


# --- Philox ---


# Known-answer vectors of Random123, philox4x32-10: counter, key, words.
KNOWN_ANSWERS = [
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, words) -> None:  # type: ignore[no-untyped-def]
    for make in (lambda n: np.array([n]), lambda n: torch.tensor([n])):
        c = tuple(make(n) for n in counter)
        assert tuple(int(w[0]) for w in philox.philox4x32(c, key)) == words  # type: ignore[arg-type]


def test_draws_depend_on_each_key_and_on_nothing_else() -> None:
    ids = np.array([5, 2**40 + 5, 7])
    base = philox.draw_words(ids, seed=1, epoch=2, transform=3, count=6)
    assert base.shape == (6, 3)
    assert len(np.unique(base)) == 18
    assert np.array_equal(philox.draw_words(ids[::-1], seed=1, epoch=2, transform=3, count=6)[:, ::-1], base)
    assert np.array_equal(philox.draw_words(ids, seed=1, epoch=2, transform=3, count=3), base[:3])
    for other in ({"seed": 0}, {"epoch": 3}, {"transform": 4}, {"seed": 2**62}, {"epoch": 2**40}):
        words = philox.draw_words(ids, **{"seed": 1, "epoch": 2, "transform": 3, "count": 6, **other})
        assert not np.any(words == base)


def test_whole_numbers_below_a_limit_are_even() -> None:
    words = philox.draw_words(np.arange(60_000), seed=0, epoch=0, transform=0, count=1)[0]
    counts = np.bincount(below(words, 17), minlength=17)
    expected = 60_000 / 17
    assert ((counts - expected) ** 2 / expected).sum() < 39.3  # chi-square, 16 degrees of freedom, p = 0.001


# --- against torchvision, with our draws ---


def crops(spec_index: int, transforms: object, num: int, height: int, width: int) -> list[tuple[int, ...]]:
    number, op = parse(transforms).parts[spec_index]  # type: ignore[misc]
    boxes = op.boxes(HostNumbers(np.arange(num), Keys(3, 4)), height, width, number)  # type: ignore[attr-defined]
    return list(zip(*(a.astype(int).tolist() for a in boxes), strict=True))


def flips(number: int, num: int, p: float = 0.5) -> list[bool]:
    words = philox.draw_words(np.arange(num), seed=3, epoch=4, transform=number, count=1)
    return [bool(b) for b in words[0] * 2.0**-32 < p]


@pytest.mark.parametrize(
    ("height", "width", "size"), [(1, 1, 3), (7, 13, 5), (33, 29, 24), (29, 33, 64), (255, 257, 96)]
)
def test_random_resized_crop_and_flip(height: int, width: int, size: int) -> None:
    images = batch(5, height, width)
    pipeline = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    got = Augment(pipeline).reference(images, seed=3, epoch=4) * 255
    boxes, mirrored = crops(0, pipeline, 5, height, width), flips(1, 5)
    for i in range(5):
        top, left, h, w = boxes[i]
        expected = F.resized_crop(images[i].permute(2, 0, 1).float(), top, left, h, w, [size, size], antialias=True)
        assert_close(got[i], expected.flip(2) if mirrored[i] else expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "pipeline",
    [
        v2.Resize(11),
        v2.Resize((11, 40)),
        v2.Resize(20, max_size=31),
        v1.Resize(9),
        v2.CenterCrop(12),
        v2.CenterCrop((40, 9)),
        v1.CenterCrop((12, 45)),
        v2.Compose([v2.Resize(14), v2.CenterCrop(9)]),
        v2.Compose([v2.Resize((9, 40)), v2.CenterCrop((20, 20))]),
        v2.Compose([v2.CenterCrop((20, 45)), v2.Resize((13, 21))]),
    ],
    ids=str,
)
def test_fixed_geometry_is_that_of_torchvision(pipeline: object, channels: int) -> None:
    for height, width in ((23, 37), (37, 23)):
        images = batch(3, height, width, channels)
        expected = pipeline(images.permute(0, 3, 1, 2).float())  # type: ignore[operator]
        assert_close(Augment(pipeline).reference(images) * 255, expected)


@pytest.mark.parametrize("version", [v1, v2])
@pytest.mark.parametrize("padding", [None, 3, (2, 5), (1, 2, 3, 4)])
def test_random_crop_with_padding(version, padding) -> None:  # type: ignore[no-untyped-def]
    images = batch(9, 13, 17)
    got = Augment(version.RandomCrop((12, 15), padding=padding, fill=7), dtype=torch.uint8)(images, seed=3, epoch=4)
    left, top, right, bottom = (0,) * 4 if padding is None else (np.resize(padding, 4) if padding != 3 else (3,) * 4)
    padded = F.pad(images.permute(0, 3, 1, 2), [int(left), int(top), int(right), int(bottom)], fill=7)
    seen = set()
    for i in range(9):
        positions = [
            (y, x)
            for y in range(padded.shape[2] - 11)
            for x in range(padded.shape[3] - 14)
            if torch.equal(padded[i, :, y : y + 12, x : x + 15], got[i])
        ]
        assert len(positions) == 1
        seen.add(positions[0])
    assert len(seen) > 1, "every image has its own draw"


def test_pad_if_needed_pads_both_sides() -> None:
    images = batch(6, 5, 40)
    got = Augment(v2.RandomCrop(9, pad_if_needed=True), dtype=torch.uint8)(images)
    assert got.shape == (6, 3, 9, 9)
    with pytest.raises(TransformError, match="larger than the images"):
        Augment(v2.RandomCrop(9))(images)


def test_resize_then_crop_is_exact_although_it_resamples_once() -> None:
    images = batch(4, 23, 31)
    pipeline = [v2.Resize((31, 37)), v2.RandomCrop(20), v2.RandomHorizontalFlip()]
    got = Augment(pipeline).reference(images, seed=3, epoch=4) * 255
    resized = F.resize(images.permute(0, 3, 1, 2).float(), [31, 37], antialias=True)
    words = philox.draw_words(np.arange(4), seed=3, epoch=4, transform=1, count=2)
    top, left, mirrored = below(words[0], 12), below(words[1], 18), flips(2, 4)
    for i in range(4):
        expected = resized[i, :, top[i] : top[i] + 20, left[i] : left[i] + 20]
        assert_close(got[i], expected.flip(2) if mirrored[i] else expected)


def test_normalization_wherever_it_stands() -> None:
    images = batch(3, 11, 9)
    expected = F.normalize(images.permute(0, 3, 1, 2).float() / 255, MEAN, STD)
    for pipeline in (
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
        v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)]),
        torch.nn.Sequential(v1.ConvertImageDtype(torch.float32), v1.Normalize(MEAN, STD)),
        [v2.ToDtype(torch.float32), v2.Normalize([255 * m for m in MEAN], [255 * s for s in STD])],
    ):
        assert torch.allclose(Augment(pipeline).reference(images), expected, atol=2e-6)
    raw = Augment(v2.ToDtype(torch.float32, scale=False))(images)
    assert torch.equal(raw, images.permute(0, 3, 1, 2).float())


def test_padding_after_normalization_is_zero_there() -> None:
    images = torch.full((2, 4, 4, 3), 200, dtype=torch.uint8)
    got = Augment([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.CenterCrop(8)])(
        images
    )
    assert got[:, :, 0].abs().max() < 1e-5
    before = Augment([v2.CenterCrop(8), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    assert torch.allclose(before(images)[:, :, 0, 0], -torch.tensor(MEAN) / torch.tensor(STD), atol=1e-6)


# --- draws are torchvision's distributions ---


def test_random_resized_crop_draws_like_torchvision() -> None:
    """Kolmogorov-Smirnov over area, ratio and offset of 4,000 draws; wide images reach the fallback."""
    num = 4000
    for height, width in ((100, 80), (20, 90)):
        transform = v2.RandomResizedCrop(32)
        ours = np.array(crops(0, transform, num, height, width), float)
        torch.manual_seed(0)
        image = torch.empty(1, height, width)
        theirs = np.array(
            [v1.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(num)], float
        )
        for a, b in ((ours, theirs),):
            for feature in (
                lambda c: c[:, 2] * c[:, 3],
                lambda c: c[:, 3] / c[:, 2],
                lambda c: c[:, 0],
                lambda c: c[:, 1],
            ):
                assert ks(feature(a), feature(b)) < 1.95 * math.sqrt(2 / num)  # p = 0.001


def ks(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov statistic."""
    grid = np.sort(np.concatenate([a, b]))
    cdfs = [np.searchsorted(np.sort(s), grid, side="right") / len(s) for s in (a, b)]
    return float(np.abs(cdfs[0] - cdfs[1]).max())


def test_flip_probability() -> None:
    for p in (0.0, 0.3, 1.0):
        images = torch.zeros(3000, 1, 2, 1, dtype=torch.uint8)
        images[:, :, 1] = 1
        share = Augment(v2.RandomHorizontalFlip(p), dtype=torch.uint8)(images)[:, 0, 0, 0].float().mean().item()
        assert abs(share - p) < 0.03


# --- one sample, one draw ---


@given(size=st.integers(1, 9), start=st.integers(0, 2**40), epoch=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_a_sample_has_the_same_augmentation_in_any_batch(size: int, start: int, epoch: int) -> None:
    augment = Augment([v2.RandomResizedCrop(8), v2.RandomHorizontalFlip()])
    images, ids = batch(9, 13, 11), torch.arange(start, start + 9)
    whole = augment(images, ids=ids, epoch=epoch)
    part = augment(images[:size], ids=ids[:size], epoch=epoch)
    assert torch.allclose(whole[:size], part, atol=1e-5)


def test_another_epoch_draws_anew() -> None:
    augment, images = Augment(v2.RandomCrop(4)), batch(7, 13, 11)
    assert not torch.equal(augment(images, epoch=0), augment(images, epoch=1))
    assert not torch.equal(augment(images, seed=0), augment(images, seed=1))


# --- the copying path equals the resampling path ---


@given(
    height=st.integers(1, 12), width=st.integers(1, 12), size=st.integers(1, 14), padding=st.integers(0, 6),
    seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_copying_equals_resampling(height: int, width: int, size: int, padding: int, seed: int) -> None:
    pipeline = [v2.RandomCrop(size, padding=padding or None, pad_if_needed=True, fill=9), v2.RandomHorizontalFlip()]
    images, drawn = batch(3, height, width), geometry(pipeline, 3, height, width, seed)
    assert drawn.copies
    copied = sampling.copy_pixels(images, drawn).permute(0, 3, 1, 2).float()
    assert_close(copied, sampling.filtered(images, drawn), atol=1e-6)
    assert torch.equal(sampling.copy_by_index(images, drawn), sampling.copy_by_slices(images, drawn))


def geometry(pipeline: object, num: int, height: int, width: int, seed: int):  # type: ignore[no-untyped-def]
    made = plan(parse(pipeline).parts, HostNumbers(np.arange(num), Keys(seed, 0)), height, width, 3)  # type: ignore[arg-type]
    assert isinstance(made.nodes[0], Pass)
    return made.nodes[0].geometry


@pytest.mark.gpu
def test_a_gpu_gives_the_same_pixels() -> None:
    images = batch(9, 33, 41)
    for pipeline in ([v2.RandomCrop(30, padding=2), v2.RandomHorizontalFlip()], [v2.RandomResizedCrop(24)]):
        augment = Augment(pipeline)
        # Not the CPU's own way, which rounds to whole levels.
        assert_close(augment(images.cuda()).cpu() * 255, augment.reference(images) * 255)


# --- output ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("transform", [v2.RandomCrop(5), v2.RandomResizedCrop(5)])
def test_dtype_and_memory_format(dtype: torch.dtype, memory_format: torch.memory_format, transform: object) -> None:
    images = batch(2, 9, 7)
    out = Augment(transform, dtype=dtype, memory_format=memory_format)(images)
    assert (out.dtype, out.shape) == (dtype, (2, 3, 5, 5))
    assert out.is_contiguous(memory_format=memory_format)
    exact = Augment(transform)(images) * (255 if dtype == torch.uint8 else 1)
    assert (out.float() - exact).abs().max() <= {torch.uint8: 0.5001, torch.bfloat16: 4e-3}.get(dtype, 1e-3)


def test_size_is_one_more_resize() -> None:
    images = batch(2, 23, 23)
    expected = F.resize(images.permute(0, 3, 1, 2).float(), [9, 9], antialias=True)
    assert_close(Augment(size=9).reference(images) * 255, expected)


def test_views_are_as_good_as_contiguous_images() -> None:
    images = batch(4, 9, 18)[:, :, ::2]
    augment = Augment([v2.RandomResizedCrop(6)])
    assert torch.allclose(augment(images), augment(images.contiguous()), atol=1e-6)


# --- what is refused ---


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        ([v2.RandomCrop(3), v2.ElasticTransform()], r"transform 1 \(ElasticTransform\)"),
        ([lambda x: x], "transform 0"),
        (v2.RandomResizedCrop(3, interpolation=v2.InterpolationMode.BICUBIC), "bicubic"),
        (v2.Resize(3, antialias=False), "antialias"),
        (v2.RandomRotation(9, expand=True), "expand"),
        (v2.RandomAffine(9, interpolation=v2.InterpolationMode.BICUBIC), "bicubic"),
        (v2.RandomApply([v2.RandomCrop(3), v2.ElasticTransform()]), r"transform 2 \(ElasticTransform\)"),
        (v2.RandomApply([v2.ToDtype(torch.float32, scale=True)]), "take them out"),
        (
            [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ColorJitter(1)],
            "Normalize",
        ),
        ([v2.ToDtype(torch.float32), v2.RandomInvert()], "scale=True"),
        (RandomErasing(value="mean"), "Normalize"),
        ([v2.ToDtype(torch.float32, scale=True), v2.RandomSolarize(128)], "threshold"),
        (v2.Normalize(MEAN, STD), "ToTensor"),
        ([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, (0, 1, 1))], "std"),
        (v2.ToDtype(torch.int64), "int64"),
    ],
)
def test_what_is_not_known_is_named_with_its_place(transforms: object, said: str) -> None:
    with pytest.raises(TransformError, match=said):
        Augment(transforms)


def test_wrong_batches() -> None:
    augment = Augment([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    with pytest.raises(TransformError, match="uint8"):
        augment(torch.zeros(2, 3, 3, 3))
    with pytest.raises(TransformError, match="NHWC"):
        augment(batch(2, 4, 4, channels=1))
    with pytest.raises(TransformError, match="ids"):
        augment(batch(2, 4, 4), ids=torch.arange(3))
    with pytest.raises(TransformError, match="leave"):
        Augment(v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)]), dtype=torch.uint8)
    with pytest.raises(TransformError, match="mirror"):
        Augment(v2.Pad(9, padding_mode="reflect"))(batch(1, 9, 9))
    with pytest.raises(TransformError, match="Resize"):
        Augment(v2.RandomApply([v2.RandomCrop(5)]))(batch(4, 9, 9))
    with pytest.raises(TransformError, match="grey or RGB"):
        Augment(v2.ColorJitter(0.3))(batch(2, 4, 4, channels=4))


def test_ids_and_rows_of_32_bits_are_as_good_as_of_64() -> None:
    augment, images = Augment([v2.RandomResizedCrop(5), v2.RandomHorizontalFlip()]), batch(9, 8, 9)
    ids, rows = torch.tensor([400_000, 7, 30]), torch.tensor([8, 0, 3])
    expected = augment(images, ids=ids, rows=rows)
    assert torch.equal(augment(images, ids=ids.int(), rows=rows.int()), expected)


def test_explain_names_every_stage() -> None:
    augment = Augment([v2.RandomCrop(9, padding=2), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4)])
    said = augment.explain(12, 12)
    assert "0 RandomCrop (size=[9, 9], padding=[2, 2, 2, 2])" in said
    assert "copy -> 9x9x3 | brightness or contrast" in said
    assert "3 launches" in said
    assert "copy" in repr(augment)
