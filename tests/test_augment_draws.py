"""Draws: torchvision's distributions, one sample one draw. On a GPU: test_augment_fused.py."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2

from fastload.augment import Augment, MixUp
from fastload.augment.arithmetic import HostNumbers, Keys, beta
from fastload.augment.geometry import RandomAffine, RandomPerspective, RandomResizedCrop
from fastload.augment.plan import Code, Pass, Plan
from fastload.errors import TransformError
from tests.augment_help import assert_same, batch, ks, plan_of, smooth, unit

NUM = 3000


def drawn(transforms: object, height: int = 60, width: int = 80, num: int = NUM, channels: int = 3) -> Plan:
    return plan_of(transforms, num, height, width, channels, seed=11)


def first(made: Plan) -> Pass:
    assert isinstance(made.nodes[0], Pass)
    return made.nodes[0]


def theirs(transform: v2.Transform, height: int = 60, width: int = 80, num: int = NUM) -> list[dict]:  # type: ignore[type-arg]
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    return [transform.make_params([image]) for _ in range(num)]


def column(params: list[dict], *path: object) -> np.ndarray:  # type: ignore[type-arg]
    def at(p: object) -> float:
        for key in path:
            p = p[key]  # type: ignore[index]
        return float(p)  # type: ignore[arg-type]

    return np.array([at(p) for p in params])


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    """Pearson's statistic over its value at p = 0.001 (Wilson and Hilferty's approximation): below 1 is fine."""
    expected = counts.sum() * shares / shares.sum()
    freedom = len(counts) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    return float(((counts - expected) ** 2 / expected).sum() / limit)


def test_random_crop() -> None:
    ours, params = first(drawn(v2.RandomCrop((41, 52), padding=4))).geometry, theirs(v2.RandomCrop((41, 52), padding=4))
    assert ks(ours.y.start + 4, column(params, "top")) < 1
    assert ks(ours.x.start + 4, column(params, "left")) < 1


@pytest.mark.parametrize(("height", "width"), [(100, 80), (20, 90)])
def test_random_resized_crop(height: int, width: int) -> None:
    op, params = RandomResizedCrop(size=(9, 9)), theirs(v2.RandomResizedCrop(9), height, width)
    boxes = op.boxes(HostNumbers(np.arange(NUM), Keys(1, 2)), height, width, 0)
    for ours, name in zip(boxes, ("top", "left", "height", "width"), strict=True):
        assert ks(ours, column(params, name)) < 1
    assert ks(boxes[2] * boxes[3], column(params, "height") * column(params, "width")) < 1
    assert ks(boxes[3] / boxes[2], column(params, "width") / column(params, "height")) < 1


def angles(matrix: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.degrees(np.arctan2(matrix[3], matrix[0]))


def test_random_rotation() -> None:
    matrix = first(drawn(v2.RandomRotation((-20, 70)))).geometry.matrix
    assert matrix is not None
    assert ks(angles(matrix), column(theirs(v2.RandomRotation((-20, 70))), "angle")) < 1


def test_random_affine() -> None:
    xp = HostNumbers(np.arange(NUM), Keys(1, 2))
    options = {"degrees": (-30.0, 30.0), "translate": (0.2, 0.3), "scale": (0.5, 1.5)}
    params = theirs(v2.RandomAffine(**options))  # type: ignore[arg-type]
    m = RandomAffine(**options).matrix(xp, (60, 80), 0)  # type: ignore[arg-type]
    assert ks(-angles(m), column(params, "angle")) < 1
    scale = 1 / np.sqrt(m[0] * m[4] - m[1] * m[3])
    assert ks(scale, column(params, "scale")) < 1
    # Output of the input's centre: the shift itself.
    x = np.linalg.inv(np.stack([np.broadcast_to(v, NUM) for v in m], -1).reshape(-1, 3, 3)) @ np.array(
        [40.0, 30.0, 1.0]
    )
    assert ks(np.round(x[:, 0] - 40), column(params, "translate", 0)) < 1
    assert ks(np.round(x[:, 1] - 30), column(params, "translate", 1)) < 1
    shear = {"degrees": (0.0, 0.0), "shear": (-20.0, 10.0, 5.0, 15.0)}
    params = theirs(v2.RandomAffine(**shear))  # type: ignore[arg-type]
    m = RandomAffine(**shear).matrix(xp, (60, 80), 0)  # type: ignore[arg-type]
    # Two shears mix: compared through the matrices they make.
    made = [
        v2.functional._geometry._get_inverse_affine_matrix([0, 0], 0.0, [0, 0], 1.0, list(p["shear"])) for p in params
    ]
    for k, row in ((0, 0), (1, 1), (3, 3), (4, 4)):
        assert ks(np.broadcast_to(m[row], NUM), np.array([v[k] for v in made])) < 1


def test_random_perspective() -> None:
    op = RandomPerspective(distortion_scale=0.4)
    corners = np.stack([np.stack(c) for c in op.corners(HostNumbers(np.arange(NUM), Keys(1, 2)), 60, 80, 0)])
    half_h, half_w = int(0.4 * 30) + 1, int(0.4 * 40) + 1
    for (x, y), (left, top) in zip(
        corners, [(0, 0), (80 - half_w, 0), (80 - half_w, 60 - half_h), (0, 60 - half_h)], strict=True
    ):
        for values, low, count in ((x, left, half_w), (y, top, half_h)):
            counts = np.bincount(values.astype(int) - low, minlength=count)
            assert len(counts) == count
            assert chi_square(counts, np.ones(count)) < 1
    matrix = first(drawn(v2.RandomPerspective(p=0.3))).geometry.matrix
    assert matrix is not None
    assert abs((matrix[6] != 0).mean() - 0.3) < 0.03


def test_color_jitter() -> None:
    transform = v2.ColorJitter(0.4, (0.1, 3.0), 0.9, 0.2)
    params, steps = theirs(transform), first(drawn(transform)).steps
    names = ["brightness_factor", "contrast_factor", "saturation_factor", "hue_factor"]
    orders = np.zeros((4, NUM), int)
    for place, step in enumerate(steps):
        for code in range(1, 5):
            orders[place][step.code == code] = code - 1
    factors = np.stack([s.values[0] for s in steps])
    for code, name in enumerate(names):
        assert ks(factors.T[(orders == code).T], column(params, name)) < 1
    ranks = orders.T @ np.array([64, 16, 4, 1])
    counts = np.unique(ranks, return_counts=True)[1]
    assert len(counts) == 24
    assert chi_square(counts, np.ones(24)) < 1


def test_gaussian_blur() -> None:
    sigma = first(drawn(v2.GaussianBlur(5, (0.2, 1.7)))).steps[0].values[0]
    assert ks(sigma, column(theirs(v2.GaussianBlur(5, (0.2, 1.7))), "sigma", 0)) < 1


def test_random_erasing() -> None:
    transform = v2.RandomErasing(1.0, (0.05, 0.5), (0.2, 2.0))
    step = first(drawn(transform)).steps[0]
    params = [p for p in theirs(transform) if p["v"] is not None]
    done = step.code == Code.ERASE
    assert abs(done.mean() - len(params) / NUM) < 0.03
    top, left, bottom, right = (v[done] for v in step.values)
    for ours, name in ((top, "i"), (left, "j"), (bottom - top, "h"), (right - left, "w")):
        assert ks(ours, column(params, name)) < 1


@pytest.mark.parametrize(
    ("transform", "p"),
    [
        (v2.RandomHorizontalFlip(0.3), 0.3), (v2.RandomInvert(0.2), 0.2), (v2.RandomGrayscale(0.1), 0.1),
        (v2.RandomSolarize(99, 0.7), 0.7), (v2.RandomPosterize(3, 0.5), 0.5), (v2.RandomEqualize(0.9), 0.9),
        (v2.RandomAutocontrast(0.4), 0.4), (v2.RandomAdjustSharpness(2, 0.6), 0.6), (v2.RandomErasing(0.3), 0.3),
        (v2.RandomApply([v2.Grayscale(3)], 0.8), 0.8),
    ],
    ids=str,
)  # fmt: skip
def test_probabilities(transform: v2.Transform, p: float) -> None:
    node = first(drawn(transform))
    happened = node.steps[0].code != 0 if node.steps else node.geometry.x.step < 0
    assert abs(np.asarray(happened).mean() - p) < 3.3 * math.sqrt(p * (1 - p) / NUM)


def test_random_choice_and_random_order() -> None:
    choice = v2.RandomChoice([v2.RandomInvert(1.0), v2.RandomSolarize(9, 1.0), v2.RandomEqualize(1.0)], [1, 3, 4])
    (step,) = first(drawn(choice)).steps
    counts = np.bincount(step.code, minlength=11)[[Code.INVERT, Code.SOLARIZE, Code.EQUALIZE]]
    assert chi_square(counts, np.array([1, 3, 4])) < 1
    order = v2.RandomOrder([v2.RandomInvert(1.0), v2.RandomSolarize(9, 1.0), v2.RandomEqualize(1.0)])
    codes = np.stack([s.code for s in first(drawn(order)).steps])
    assert codes.shape == (3, NUM)
    assert chi_square(np.unique(codes.T @ [400, 20, 1], return_counts=True)[1], np.ones(6)) < 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.5])
def test_beta(alpha: float) -> None:
    xp = HostNumbers(np.arange(NUM), Keys(7, 0))
    torch.manual_seed(0)
    expected = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample((NUM,)).numpy()
    assert ks(beta(xp, xp.words(0, 50), alpha), expected) < 1


def test_mixing() -> None:
    share = drawn(MixUp(alpha=0.4, num_classes=3, per_sample=True)).mixing[0].share
    expected = torch.distributions.Beta(torch.tensor(0.4), torch.tensor(0.4)).sample((NUM,)).numpy()
    assert ks(share, expected) < 1
    transform = v2.CutMix(num_classes=3)
    params = theirs(transform)
    shares, boxes = [], []
    for epoch in range(600):  # one draw per batch
        (mixing,) = plan_of(transform, 1, 60, 80, epoch=epoch).mixing
        shares.append(float(mixing.share[0]))
        boxes.append([float(b[0]) for b in mixing.box])
    assert ks(np.array(shares), column(params, "lam_adjusted")) < 1
    for k, at in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert ks(np.array(boxes)[:, k], column(params, "box", at)) < 1


def test_policies() -> None:
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    made = first(drawn(v2.TrivialAugmentWide()))
    step, matrix = made.steps[0], made.geometry.matrix
    assert matrix is not None
    warped = (matrix[1] != 0) | (matrix[3] != 0) | (matrix[2] != 0) | (matrix[5] != 0)
    counts = np.bincount(step.code, minlength=13)
    # 5 of 14 are warps, one of 31 magnitudes of which is none (a translation by less than a pixel, too).
    assert len(space) == 14
    assert abs(warped.mean() - 5 / 14) < 0.035
    kinds = [Code.BRIGHTNESS, Code.CONTRAST, Code.SATURATION, Code.POSTERIZE, Code.SOLARIZE, Code.AUTOCONTRAST,
             Code.EQUALIZE, Code.SHARPNESS]  # fmt: skip
    assert chi_square(counts[kinds], np.ones(8)) < 1
    assert abs(counts[0] / NUM - 6 / 14) < 0.03
    factors = step.values[0][step.code == Code.BRIGHTNESS]
    assert ks(factors, np.concatenate([1 + np.linspace(0, 0.99, 31), 1 - np.linspace(0, 0.99, 31)])) < 1
    bits = step.values[0][step.code == Code.POSTERIZE]
    assert set(bits) == {2.0**b for b in range(2, 9)}


def test_aug_mix_weights() -> None:
    weights = np.stack(drawn(v2.AugMix()).nodes[0].weights)  # type: ignore[union-attr]
    torch.manual_seed(0)
    m = torch._sample_dirichlet(torch.ones(NUM, 2))
    w = torch._sample_dirichlet(torch.ones(NUM, 3)) * m[:, 1:]
    assert ks(weights[0], m[:, 0].numpy()) < 1
    for k in range(3):
        assert ks(weights[1 + k], w[:, k].numpy()) < 1


# --- one sample, one draw ---

EVERYTHING = [
    v2.RandomApply([v2.RandomAffine(20, (0.1, 0.2), (0.5, 2), 9)]),
    v2.RandomResizedCrop(24),
    v2.RandomHorizontalFlip(),
    v2.RandomVerticalFlip(),
    v2.RandomPerspective(),
    v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    v2.RandomChoice([v2.RandAugment(), v2.AutoAugment(), v2.AugMix()]),
    v2.RandomOrder([v2.GaussianBlur(3), v2.RandomEqualize()]),
    v2.RandomErasing(),
    v2.RandomChoice([v2.CutMix(num_classes=3), v2.MixUp(num_classes=3)]),
]


@pytest.mark.parametrize("start", [0, 2**40])
def test_a_sample_has_the_same_augmentation_in_any_batch(start: int) -> None:
    augment = Augment(EVERYTHING[:-1])
    images, ids = smooth(9, 32, 36), torch.arange(start, start + 9)
    whole = augment(images, ids=ids, epoch=1)
    order = torch.tensor([4, 0, 8])
    assert_same(augment(images[order], ids=ids[order], epoch=1), whole[order])


def test_views_are_draws_of_their_own() -> None:
    images = batch(5, 12, 12)
    augment = Augment([v2.RandomResizedCrop(8), v2.RandomHorizontalFlip()], views=3)
    a, b, c = augment(images, seed=1)
    assert torch.equal(a, Augment([v2.RandomResizedCrop(8), v2.RandomHorizontalFlip()])(images, seed=1))
    assert not torch.equal(a, b)
    assert not torch.equal(b, c)
    (x, y, z), labels = augment(images, torch.arange(5), seed=1)
    assert torch.equal(torch.stack([a, b, c]), torch.stack([x, y, z]))
    assert torch.equal(labels, torch.arange(5))
    with pytest.raises(TransformError, match="one view"):
        Augment(v2.MixUp(num_classes=3), views=2)(images, torch.zeros(5, dtype=torch.int64))


# --- transforms that are not known ---


class Speckle:
    """Not torchvision's; draws from torch's global generator."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return (image.float() * torch.rand(image.shape[-2:])).to(image.dtype)


def test_unknown_transforms_run_per_sample() -> None:
    images = smooth(6, 14, 15)
    pipeline = [v2.CenterCrop(12), Speckle(), v2.RandomInvert(1.0)]
    with pytest.raises(TransformError, match=r"transform 1 \(Speckle\)"):
        Augment(pipeline)
    augment = Augment(pipeline, on_unknown="per_sample")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    got = augment(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert got.shape == (6, 3, 12, 12)
    assert torch.equal(augment(images[3:4], ids=torch.tensor([3])), got[3:4])
    assert not torch.equal(augment(images, epoch=1), got)
    assert "1 Speckle: not known; run per sample, on uint8 images" in augment.explain(14, 15)


def test_unknown_transforms_see_what_their_pipeline_gives_them() -> None:
    seen = []

    def look(image: object) -> object:
        seen.append(type(image).__name__ if not isinstance(image, torch.Tensor) else str(image.dtype))
        return image

    images = smooth(1, 9, 9)
    for pipeline in (
        [look, v2.ToImage()],
        [v2.ToImage(), look],
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), look],
    ):
        got = Augment(pipeline, on_unknown="per_sample")(images)
        assert_same(got, unit(images))
    assert seen == ["Image", "torch.uint8", "torch.float32"]
    with pytest.raises(TransformError, match="Normalize"):
        Augment([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5]), look], on_unknown="per_sample")
    bicubic = v2.Resize(5, interpolation=v2.InterpolationMode.BICUBIC)
    assert Augment(bicubic, on_unknown="per_sample")(images).shape == (1, 3, 5, 5)
