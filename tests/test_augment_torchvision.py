"""Every transform against torchvision's float32 kernels, with our draws."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
from torchvision.transforms.functional import _get_perspective_coeffs
from torchvision.transforms.v2 import functional as F

from fastload.augment import AlternatingFlip, Augment, Cutout, RandomErasing
from fastload.augment.arithmetic import HostNumbers, Keys
from fastload.augment.spec import parse
from tests.augment_help import (
    EPOCH,
    SEED,
    assert_like_torchvision,
    augmented,
    batch,
    plan_of,
    smooth,
    uniforms,
    unit,
    words,
)

BILINEAR, NEAREST = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.NEAREST
SIZES = [(1, 1), (7, 13), (64, 51)]


# --- warps ---


@pytest.mark.parametrize("interpolation", [NEAREST, BILINEAR])
@pytest.mark.parametrize("fill", [0, None, (0.2, 0.5, 0.9)])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_rotation(interpolation, fill, height, width) -> None:  # type: ignore[no-untyped-def]
    images = smooth(5, height, width)
    scaled = v2.ToDtype(torch.float32, scale=True)
    got = augmented([scaled, v2.RandomRotation(50, interpolation=interpolation, fill=fill)], images)
    angles = -50 + 100 * uniforms(1, 1, 5)[0]
    for i, image in enumerate(unit(images)):
        expected = F.rotate(image, float(angles[i]), interpolation=interpolation, fill=fill or 0)
        assert_like_torchvision(got[i], expected, high=6)


@pytest.mark.parametrize("interpolation", [NEAREST, BILINEAR])
@pytest.mark.parametrize("center", [None, (3, 5)])
def test_affine(interpolation, center) -> None:  # type: ignore[no-untyped-def]
    images = smooth(6, 47, 64)
    transform = v2.RandomAffine(
        30, translate=(0.2, 0.3), scale=(0.7, 1.6), shear=(-9, 9, -5, 5), interpolation=interpolation, fill=0,
        center=center,
    )  # fmt: skip
    got = augmented(transform, images)
    u = uniforms(0, 6, 6)
    for i, image in enumerate(unit(images)):
        shift = [
            math.floor((2 * u[1 + k, i] - 1) * t * side + 0.5) for k, (t, side) in enumerate([(0.2, 64), (0.3, 47)])
        ]
        expected = F.affine(
            image, -30 + 60 * float(u[0, i]), shift, 0.7 + 0.9 * float(u[3, i]),
            [-9 + 18 * float(u[4, i]), -5 + 10 * float(u[5, i])], interpolation=interpolation, fill=0,
            center=None if center is None else list(center),
        )  # fmt: skip
        assert_like_torchvision(got[i], expected)


@pytest.mark.parametrize(
    ("interpolation", "height", "width"), [(NEAREST, 64, 51), (BILINEAR, 64, 51), (BILINEAR, 7, 13)]
)
def test_perspective(interpolation, height, width) -> None:  # type: ignore[no-untyped-def]
    images = smooth(6, height, width)
    transform = v2.RandomPerspective(0.6, p=0.7, interpolation=interpolation, fill=0)
    got = augmented(transform, images)
    op = parse(transform).parts[0][1]  # type: ignore[index]
    corners = op.corners(HostNumbers(np.arange(6), Keys(SEED, EPOCH)), height, width, 0)  # type: ignore[union-attr]
    chosen = uniforms(0, 9, 6)[8] < 0.7
    assert chosen.any()
    assert not chosen.all()
    start = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    for i, image in enumerate(unit(images)):
        ends = [[int(x[i]), int(y[i])] for x, y in corners]
        coefficients = _get_perspective_coeffs(start, ends)
        warped = F.perspective(image, None, None, interpolation, 0, coefficients)
        assert_like_torchvision(got[i], warped if chosen[i] else image)


def test_a_crop_and_a_warp_are_one_resampling() -> None:
    """Where torchvision resamples twice: against one resampling in float64 of the same crop."""
    images = smooth(4, 90, 120)
    got = augmented([v2.Resize((40, 50)), v2.RandomRotation(25, interpolation=BILINEAR, fill=0)], images)
    angles = -25 + 50 * uniforms(1, 1, 4)[0]
    for i, image in enumerate(unit(images)):
        small = F.resize(image.double(), [40, 50], antialias=True)
        twice = F.rotate(small, float(angles[i]), interpolation=BILINEAR, fill=0)
        assert_like_torchvision(got[i], twice, mean=1.2, high=12)


def test_a_crop_behind_a_warp_is_antialiased() -> None:
    images = smooth(3, 120, 120)
    got = augmented([v2.RandomRotation(20, interpolation=BILINEAR), v2.Resize((40, 40))], images)
    angles = -20 + 40 * uniforms(0, 1, 3)[0]
    for i, image in enumerate(unit(images)):
        twice = F.resize(F.rotate(image, float(angles[i]), interpolation=BILINEAR, fill=0), [40, 40], antialias=True)
        assert_like_torchvision(got[i], twice, mean=1.5, high=30)


# --- padding ---


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
@pytest.mark.parametrize("padding", [2, (3, 1), (1, 2, 3, 4)])
def test_pad(mode, padding) -> None:  # type: ignore[no-untyped-def]
    images = batch(3, 7, 9)
    for version in (v1, v2):
        got = augmented(version.Pad(padding, padding_mode=mode), images, dtype=torch.uint8)
        sides = [padding] if isinstance(padding, int) else list(padding)
        assert torch.equal(got, F.pad(images.permute(0, 3, 1, 2), sides, padding_mode=mode))


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric"])
def test_random_crop_with_folding_padding(mode) -> None:  # type: ignore[no-untyped-def]
    images = batch(9, 12, 12)
    got = augmented(
        [v2.RandomCrop(12, padding=3, padding_mode=mode), v2.RandomVerticalFlip()], images, dtype=torch.uint8
    )
    padded = F.pad(images.permute(0, 3, 1, 2), [3], padding_mode=mode)
    place = words(0, 2, 9) * 7 >> 32
    flipped = uniforms(1, 1, 9)[0] < 0.5
    for i in range(9):
        y, x = place[:, i]
        expected = padded[i, :, y : y + 12, x : x + 12]
        assert torch.equal(got[i], expected.flip(1) if flipped[i] else expected)


@pytest.mark.parametrize(
    "pipeline",
    [
        v2.Compose([v2.CenterCrop(8), v2.Pad(3, fill=9)]),
        v2.Compose([v2.CenterCrop(8), v2.Pad(3, fill=9), v2.Resize((9, 9))]),
        v2.Compose([v2.Pad(2, fill=30), v2.Pad(3, fill=90)]),
        v2.Compose([v2.Pad(2, padding_mode="reflect"), v2.Resize((8, 9))]),
        v2.Compose([v2.Resize((20, 22)), v2.Pad(3, padding_mode="symmetric"), v2.CenterCrop(21)]),
        v2.Compose([v2.Resize((20, 22)), v2.Pad(3, fill=50), v2.Resize(13)]),
        v2.Resize(None, max_size=11),
    ],
    ids=str,
)
def test_chains_that_need_several_passes(pipeline) -> None:  # type: ignore[no-untyped-def]
    images = batch(3, 12, 14)
    assert_like_torchvision(augmented(pipeline, images), pipeline(images.permute(0, 3, 1, 2).float()) / 255, high=1)


# --- flips ---


def test_vertical_flip_and_alternating_flip() -> None:
    images = batch(40, 5, 4)
    got = augmented(v2.RandomVerticalFlip(), images, dtype=torch.uint8)
    flipped = torch.from_numpy(uniforms(0, 1, 40)[0] < 0.5)[:, None, None, None]
    stored = images.permute(0, 3, 1, 2)
    assert torch.equal(got, torch.where(flipped, stored.flip(2), stored))
    augment = Augment(AlternatingFlip(), dtype=torch.uint8)
    epochs = [augment(images, epoch=e) for e in range(4)]
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[0], epochs[1].flip(3))
    mirrored = (epochs[0] == stored.flip(3)).flatten(1).all(1).float().mean()
    assert 0.2 < mirrored < 0.8


# --- colour ---


def jitter_of(image: torch.Tensor, u: np.ndarray, w: np.ndarray, ranges: list[tuple[float, float]]) -> torch.Tensor:
    kernels = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    for k in np.argsort(w[4:8], kind="stable"):
        low, high = ranges[k]
        image = kernels[k](image, low + float(u[k]) * (high - low))  # type: ignore[operator]
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [*SIZES, (33, 29)])
def test_color_jitter(channels, height, width) -> None:  # type: ignore[no-untyped-def]
    images = smooth(16, height, width, channels)
    for version in (v1, v2):
        got = augmented(version.ColorJitter(0.6, 0.5, 0.9, 0.3), images)
        u, w = uniforms(0, 8, 16), words(0, 8, 16)
        ranges = [(0.4, 1.6), (0.5, 1.5), (1 - 0.9, 1.9), (-0.3, 0.3)]
        for i, image in enumerate(unit(images)):
            assert_like_torchvision(got[i], jitter_of(image, u[:, i], w[:, i], ranges), mean=0.01, high=0.1)


def test_color_jitter_is_near_torchvisions_uint8() -> None:
    images = smooth(12, 40, 40)
    got = augmented(v2.ColorJitter(0.4, 0.4, 0.4, 0.1), images)
    u, w = uniforms(0, 8, 12), words(0, 8, 12)
    ranges = [(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]
    expected = torch.stack([
        jitter_of(image, u[:, i], w[:, i], ranges) for i, image in enumerate(images.permute(0, 3, 1, 2))
    ])  # fmt: skip
    assert (got * 255 - expected.float()).abs().mean() <= 1.6


CASES = [
    (v2.RandomGrayscale(0.6), lambda x: F.rgb_to_grayscale(x, x.shape[0]), 0.6),
    (v2.RandomInvert(0.6), F.invert, 0.6),
    (v2.RandomPosterize(3, 0.6), lambda x: F.posterize(x, 3), 0.6),
    (v2.RandomSolarize(100, 0.6), lambda x: F.solarize(x, 100 / 255), 0.6),
    (v2.RandomAutocontrast(0.6), F.autocontrast, 0.6),
    (v2.RandomEqualize(0.6), F.equalize, 0.6),
    (v2.RandomAdjustSharpness(2.7, 0.6), lambda x: F.adjust_sharpness(x, 2.7), 0.6),
    (v2.RandomAdjustSharpness(0.2, 0.6), lambda x: F.adjust_sharpness(x, 0.2), 0.6),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("transform", "kernel", "p"), CASES, ids=lambda c: getattr(c, "__name__", str(c))[:40])
def test_colour_with_a_probability(transform, kernel, p, height, width, channels) -> None:  # type: ignore[no-untyped-def]
    images = smooth(11, height, width, channels) // 2 + 40
    got = augmented(transform, images)
    chosen = uniforms(0, 1, 11)[0] < p
    for i, image in enumerate(unit(images)):
        assert_like_torchvision(got[i], kernel(image) if chosen[i] else image, mean=0.02, high=0.1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [3, (5, 9), 1])
def test_gaussian_blur(kernel, channels) -> None:  # type: ignore[no-untyped-def]
    images = batch(5, 13, 17, channels)
    got = augmented(v2.GaussianBlur(kernel, (0.3, 2.5)), images)
    sigma = 0.3 + 2.2 * uniforms(0, 1, 5)[0]
    size = [kernel, kernel] if isinstance(kernel, int) else list(kernel)
    for i, image in enumerate(unit(images)):
        assert_like_torchvision(got[i], F.gaussian_blur(image, size, [float(sigma[i])] * 2), mean=0.01, high=0.1)


def test_grayscale_changes_the_channels() -> None:
    images = smooth(3, 8, 9)
    one = augmented([v2.Grayscale(), v2.RandomInvert(1.0)], images)
    assert_like_torchvision(one, 1 - F.rgb_to_grayscale(unit(images)), mean=0.01, high=0.1)
    three = augmented(v2.Grayscale(3), images[..., :1])
    assert torch.allclose(three, unit(images[..., :1]).expand(-1, 3, -1, -1), atol=1e-6)


# --- erasing ---


def erased_boxes(transform: object, num: int, height: int, width: int, place: int = 0) -> list[tuple[int, ...]]:
    made = plan_of([transform], num, height, width, seed=SEED, epoch=EPOCH)
    step = made.nodes[-1].steps[place]  # type: ignore[union-attr]
    boxes = np.stack([np.broadcast_to(v, num) for v in step.values]).astype(int)
    return [tuple(b) if code else (0, 0, 0, 0) for b, code in zip(boxes.T.tolist(), step.code, strict=True)]


def test_random_erasing_writes_in_the_units_of_its_place() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    front = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    images, normalize = smooth(9, 21, 33), v2.Normalize(mean, std)
    plain = augmented([*front, normalize], images)
    assert any(b[2] > b[0] for b in erased_boxes_at(0, 9, 21, 33))
    for pipeline, number, value in (
        ([*front, normalize, v2.RandomErasing(0.7, value=(1, 2, 3))], 3, [1, 2, 3]),
        ([*front, normalize, v1.RandomErasing(0.7)], 3, [0, 0, 0]),
        ([RandomErasing(0.7, value="mean"), *front, normalize], 0, [0, 0, 0]),
        ([v2.RandomErasing(0.7, value=255), *front, normalize], 0, [(1 - m) / s for m, s in zip(mean, std)]),  # noqa: B905
    ):
        got = augmented(pipeline, images)
        boxes = erased_boxes_at(number, 9, 21, 33)
        for i, (top, left, bottom, right) in enumerate(boxes):
            expected = plain[i].clone()
            expected[:, top:bottom, left:right] = torch.tensor(value).float()[:, None, None]
            assert torch.allclose(got[i], expected, atol=1e-5), pipeline


def erased_boxes_at(number: int, num: int, height: int, width: int) -> list[tuple[int, ...]]:
    transforms = [*[v2.ToImage()] * number, v2.RandomErasing(0.7)]
    return erased_boxes(v2.Compose(transforms), num, height, width)


def test_erasing_with_noise_is_normal_and_the_same_for_a_sample() -> None:
    images = torch.zeros(6, 40, 40, 3, dtype=torch.uint8)
    pipeline = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    augment = Augment([*pipeline, v2.RandomErasing(1.0, value="random")])
    got = augment(images)
    noise = got[got != -1]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert torch.equal(augment(images[4:5], ids=torch.tensor([4])), got[4:5])
    assert len(noise.unique()) > 0.99 * len(noise)


def test_cutout() -> None:
    images = torch.full((50, 12, 10, 1), 200, dtype=torch.uint8)
    got = Augment(Cutout((4, 6)), dtype=torch.uint8)(images)
    for image in got[:, 0]:
        ys, xs = torch.nonzero(image == 0, as_tuple=True)
        height, width = ys.max() - ys.min() + 1, xs.max() - xs.min() + 1
        assert len(ys) == height * width
        assert height <= 4
        assert width <= 6
    areas = (got == 0).flatten(1).sum(1)
    assert areas.max() == 24
    assert areas.min() < 24


# --- containers ---


def test_random_apply_choice_and_order() -> None:
    images = smooth(30, 9, 9)
    x = unit(images)
    got = augmented(v2.RandomApply([v2.RandomInvert(1.0), v2.RandomPosterize(2, 1.0)], p=0.4), images)
    chosen = uniforms(0, 1, 30)[0] < 0.4
    for i in range(30):
        expected = F.posterize(F.invert(x[i]), 2) if chosen[i] else x[i]
        assert_like_torchvision(got[i], expected, mean=0.01, high=0.1)

    got = augmented(
        v2.RandomChoice([v2.RandomInvert(1.0), v2.CenterCrop(9), v2.RandomVerticalFlip(1.0)], [1, 2, 5]), images
    )
    u = uniforms(0, 1, 30)[0]
    for i in range(30):
        expected = F.invert(x[i]) if u[i] < 1 / 8 else x[i] if u[i] < 3 / 8 else x[i].flip(1)
        assert_like_torchvision(got[i], expected, mean=0.01, high=0.1)

    kernels = [F.invert, lambda x: F.posterize(x, 2), lambda x: F.adjust_sharpness(x, 3)]
    got = augmented(
        v2.RandomOrder([v2.RandomInvert(1.0), v2.RandomPosterize(2, 1.0), v2.RandomAdjustSharpness(3, 1.0)]), images
    )
    order = np.argsort(words(0, 3, 30), axis=0, kind="stable")
    assert len(np.unique(order.T, axis=0)) == 6
    for i in range(30):
        expected = x[i]
        for k in order[:, i]:
            expected = kernels[k](expected)
        assert_like_torchvision(got[i], expected, mean=0.02, high=0.1)


def test_a_choice_of_crops_that_give_one_size() -> None:
    images = batch(12, 20, 20)
    got = augmented(v2.RandomChoice([v2.CenterCrop(8), v2.Resize((8, 8))]), images)
    chosen = uniforms(0, 1, 12)[0] < 0.5
    x = unit(images)
    for i in range(12):
        expected = F.center_crop(x[i], [8]) if chosen[i] else F.resize(x[i], [8, 8], antialias=True)
        assert_like_torchvision(got[i], expected, mean=0.01, high=0.1)


def test_colour_before_a_crop_is_taken_before_it() -> None:
    images = batch(6, 20, 22)
    got = augmented([v2.RandomAutocontrast(1.0), v2.CenterCrop(9), v2.RandomEqualize(1.0), v2.Resize((7, 7))], images)
    for i, image in enumerate(unit(images)):
        expected = F.resize(F.equalize(F.center_crop(F.autocontrast(image), [9])), [7, 7], antialias=True)
        assert_like_torchvision(got[i], expected, mean=0.05, high=4)
