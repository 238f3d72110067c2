"""Policies and mixing against torchvision's, with our draws, and how near antialiased crops are."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
from torchvision.transforms.v2 import functional as F

from fastload.augment import Augment, CutMix, MixUp
from fastload.augment.arithmetic import HostNumbers, Keys
from fastload.augment.spec import parse
from tests.augment_help import EPOCH, SEED, assert_like_torchvision, augmented, plan_of, smooth, uniforms, unit, words

BILINEAR, NEAREST = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.NEAREST
SIZES = [(1, 1), (7, 13), (64, 51)]


# --- policies ---


def policy_step(transform, image, name, magnitude):  # type: ignore[no-untyped-def]
    return transform._apply_image_or_video_transform(
        image, name, magnitude, interpolation=transform.interpolation, fill=transform._fill
    )


def slot_of(transform, image, space, bins, u, w, level=None, limit=None):  # type: ignore[no-untyped-def]
    names = list(space)
    name = names[int(w[0]) * len(names) >> 32]
    magnitudes, signed = space[name]
    values = magnitudes(bins, *image.shape[-2:])
    magnitude = 0.0
    if values is not None:
        magnitude = float(values[level if level is not None else int(w[1]) * (limit or bins) >> 32])
        if signed and u[2] < 0.5:
            magnitude *= -1
    return policy_step(transform, image, name, magnitude)


@pytest.mark.parametrize("interpolation", [NEAREST, BILINEAR])
@pytest.mark.parametrize("channels", [1, 3])
def test_trivial_augment(interpolation, channels) -> None:  # type: ignore[no-untyped-def]
    images = smooth(60, 31, 42, channels)
    transform = v2.TrivialAugmentWide(interpolation=interpolation)
    got, u, w = augmented(transform, images), uniforms(0, 3, 60), words(0, 3, 60)
    for i, image in enumerate(unit(images)):
        expected = slot_of(transform, image, transform._AUGMENTATION_SPACE, 31, u[:, i], w[:, i])
        assert_like_torchvision(got[i], expected)


@pytest.mark.parametrize("version", [v1, v2])
def test_rand_augment(version) -> None:  # type: ignore[no-untyped-def]
    images = smooth(40, 31, 42)
    # Nearest pixels have ties, which fall to either side: TrivialAugmentWide is compared with them, too.
    got = augmented(version.RandAugment(3, 11, interpolation=BILINEAR), images)
    transform = v2.RandAugment(3, 11, interpolation=BILINEAR)
    u, w = uniforms(0, 9, 40), words(0, 9, 40)
    for i, image in enumerate(unit(images)):
        for k in (0, 3, 6):
            image = slot_of(transform, image, transform._AUGMENTATION_SPACE, 31, u[k:, i], w[k:, i], level=11)
        assert_like_torchvision(got[i], image, high=8)


@pytest.mark.parametrize("policy", list(v2.AutoAugmentPolicy))
def test_auto_augment(policy) -> None:  # type: ignore[no-untyped-def]
    images = smooth(60, 31, 42)
    transform = v2.AutoAugment(policy, interpolation=BILINEAR)
    got = augmented(v1.AutoAugment(v1.AutoAugmentPolicy(policy.value), interpolation=BILINEAR), images)
    u, w = uniforms(0, 5, 60), words(0, 5, 60)
    for i, image in enumerate(unit(images)):
        pair = transform._policies[int(w[0, i]) * 25 >> 32]
        for place, (name, p, level) in enumerate(pair):
            if u[1 + place, i] > p:
                continue
            magnitudes, signed = transform._AUGMENTATION_SPACE[name]
            values = magnitudes(10, 31, 42)
            magnitude = 0.0 if values is None else float(values[level])
            image = policy_step(transform, image, name, -magnitude if signed and u[3 + place, i] < 0.5 else magnitude)
        assert_like_torchvision(got[i], image, high=8)


def test_aug_mix() -> None:
    images = smooth(20, 31, 42)
    transform = v2.AugMix(severity=4)
    got = Augment(transform)(images, seed=SEED, epoch=EPOCH)
    node = plan_of(transform, 20, 31, 42, seed=SEED, epoch=EPOCH).nodes[0]
    weights = np.stack(node.weights)  # type: ignore[union-attr]
    assert np.allclose(weights.sum(0), 1)
    first = 5 * 25
    u, w = uniforms(0, first + 30, 20)[first:], words(0, first + 30, 20)[first:]
    for i, image in enumerate(unit(images)):
        expected = image * weights[0, i]
        for chain in range(3):
            made, at = image, 10 * chain
            for slot in range((int(w[at, i]) * 3 >> 32) + 1):
                k = at + 1 + 3 * slot
                made = slot_of(transform, made, transform._AUGMENTATION_SPACE, 10, u[k:, i], w[k:, i], limit=4)
            expected = expected + made * weights[1 + chain, i]
        # One rounding may take a pixel over the edge of solarize or posterize.
        assert_like_torchvision(got[i], expected.float(), high=25)


# --- mixing ---


def test_mixup_and_cutmix_of_the_batch() -> None:
    images, labels = smooth(7, 12, 18), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    x = unit(images)
    for version in (v2.MixUp, MixUp):
        mixed, soft = Augment(version(num_classes=5))(images, labels, seed=SEED)
        share = soft[0, 0].item()
        assert 0 < share < 1
        assert torch.allclose(mixed, x * share + x.roll(1, 0) * (1 - share), atol=1e-5)
        hard = torch.nn.functional.one_hot(labels, 5).float()
        assert torch.allclose(soft, hard * share + hard.roll(1, 0) * (1 - share), atol=1e-6)
    shapes = set()
    for epoch in range(12):
        mixed, soft = Augment(v2.CutMix(num_classes=5))(images, labels, seed=SEED, epoch=epoch)
        taken = ((mixed - x).abs() > 1e-4).any(1)
        assert torch.allclose(torch.where(taken[:, None], x.roll(1, 0), x), mixed, atol=1e-5)
        assert soft.sum(1).allclose(torch.ones(7))
        ys, xs = torch.nonzero(taken.any(0), as_tuple=True)
        if len(ys):
            area = (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1) / (12 * 18)
            assert abs(soft[0, 0].item() - (1 - area.item())) < 0.12
            shapes.add(area.item())
    assert len(shapes) > 3


def test_mixing_per_sample_and_a_choice_of_both() -> None:
    images, labels = smooth(9, 12, 12), torch.arange(9)
    _, soft = Augment(MixUp(num_classes=9, per_sample=True))(images, labels)
    assert len(soft.diag().unique()) == 9
    augment = Augment(v2.RandomChoice([v2.MixUp(num_classes=9), v2.CutMix(num_classes=9)]))
    blended = []
    for epoch in range(12):
        mixed, soft = augment(images, labels, epoch=epoch)
        x = unit(images)
        only_two = (((mixed - x).abs() < 1e-5) | ((mixed - x.roll(1, 0)).abs() < 1e-5)).float().mean()
        blended.append(bool(only_two < 0.9))
        assert soft.sum(1).allclose(torch.ones(9))
        assert len(soft.diag().unique()) == 1
    assert 0 < sum(blended) < 12
    _, soft = Augment(CutMix(num_classes=9, per_sample=True))(images, labels)
    assert len(soft.diag().unique()) > 5


# --- antialiasing ---


def test_antialiased_crops_are_within_50_db() -> None:
    images = smooth(4, 120, 100)
    transform = v2.RandomResizedCrop(37, scale=(0.3, 1.0))
    got = augmented(transform, images)
    op = parse(transform).parts[0][1]  # type: ignore[index]
    boxes = np.stack(op.boxes(HostNumbers(np.arange(4), Keys(SEED, EPOCH)), 120, 100, 0)).astype(int)  # type: ignore[union-attr]
    for i, image in enumerate(unit(images)):
        expected = F.resized_crop(image, *boxes[:, i].tolist(), [37, 37], antialias=True)
        assert 10 * math.log10(1 / (got[i] - expected).square().mean().item()) > 50
