"""Transforms written as text become the transforms of a Compose, and nothing else."""

import pytest
from torchvision.transforms import InterpolationMode, v2

from fastload.augment import AlternatingFlip, Cutout
from fastload.augment.written import read_written
from fastload.errors import TransformError


def test_what_is_written_is_what_is_made() -> None:
    made = read_written(
        "RandomResizedCrop((96, 64), scale=(0.5, 1.0)), RandomApply([ColorJitter(0.4, hue=0.1)], p=0.3),"
        "RandomRotation(30, interpolation=InterpolationMode.BILINEAR), AutoAugment(AutoAugmentPolicy.CIFAR10),"
        "AlternatingFlip(), Cutout(8),"
    )
    crop, apply, rotation, policy, flip, cutout = made
    assert isinstance(crop, v2.RandomResizedCrop)
    assert (tuple(crop.size), crop.scale) == ((96, 64), (0.5, 1.0))
    assert isinstance(apply.transforms[0], v2.ColorJitter)
    assert apply.p == 0.3
    assert rotation.interpolation == InterpolationMode.BILINEAR
    assert policy.policy.name == "CIFAR10"
    assert (flip, cutout) == (AlternatingFlip(), Cutout(8))
    assert read_written("") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RandomCrop(96", "cannot be read"),
        ("NoSuchCrop(96)", "NoSuchCrop is no transform"),
        ("RandomCrop()", "refuses its options"),
        ("RandomCrop(size=-1, what=2)", "refuses its options"),
        ("RandomCrop(open('x'))", "open is no transform"),
        ("RandomCrop(__import__('os').getcwd())", "neither a number"),
        ("RandomCrop(os.name)", "neither a number"),
        ("(lambda: 1)()", "neither a number"),
        ("96", "is no transform"),
        ("\x1b[31m", "cannot be read"),
    ],
)
def test_anything_else_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(TransformError, match=said) as caught:
        read_written(text)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
