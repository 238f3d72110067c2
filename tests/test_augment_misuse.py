"""What people write that is unusual, or wrong: options as torchvision takes them, and mistakes that are told."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
from torch.overrides import TorchFunctionMode
from torchvision.transforms.v2 import functional as F

from fastload.augment import Augment, CutMix, Cutout, MixUp, reference
from fastload.augment.arithmetic import HostNumbers, Keys
from fastload.augment.spec import parse, plan
from fastload.errors import TransformError
from tests.augment_help import batch, smooth


def test_a_resize_behind_a_warp_of_nearest_pixels_is_bilinear_and_antialiased() -> None:
    images = smooth(3, 64, 64)
    for side in (24, 100):
        got = Augment([v2.RandomRotation((0, 0)), v2.Resize((side, side))])(images)
        expected = F.resize(images.permute(0, 3, 1, 2).float() / 255, [side, side], antialias=True)
        inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # a warp mixes the fill in at the edge
        assert (got - expected)[inner].abs().mean() < 0.5 / 255


def test_mixing_in_front_of_an_unknown_transform_is_refused() -> None:
    augment = Augment([MixUp(num_classes=3), v2.ToPureTensor()], on_unknown="per_sample")
    with pytest.raises(TransformError, match="come last"):
        augment(batch(3, 8, 8), torch.tensor([0, 1, 2]))


def test_mixup_of_stored_values_is_that_of_floats_rounded() -> None:
    images = batch(5, 8, 9)
    mixed = Augment(MixUp(num_classes=3), dtype=torch.uint8)(images, seed=4)
    exact = Augment(MixUp(num_classes=3))(images, seed=4) * 255
    assert mixed.dtype == torch.uint8
    assert (mixed.float() - exact).abs().max() <= 0.501


@pytest.mark.parametrize("transform", [MixUp, CutMix, v2.MixUp, v2.CutMix])
def test_labels_that_do_not_fit_are_told(transform: type) -> None:
    augment, images = Augment(transform(num_classes=3)), batch(4, 8, 8)
    with pytest.raises(TransformError, match=r"a label is 3, .*num_classes=3"):
        augment(images, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(TransformError, match="4 columns"):
        augment(images, torch.eye(4))
    assert augment(images, torch.tensor([0, 1, 2, -1]))[1].shape == (4, 3)


def test_generators_are_put_back_and_seeded_for_each_sample() -> None:
    class Own(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.float() * 0 + random.random() / 4 + np.random.rand() / 4 + torch.rand(()) / 4

    augment, images = (
        Augment([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), Own()], on_unknown="per_sample"),
        None,
    )
    images = batch(4, 5, 5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    whole = augment(images, seed=3)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    random.seed(8)
    np.random.seed(9)
    parts = [augment(images[i : i + 1], ids=torch.tensor([i]), seed=3) for i in range(4)]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique()) == 4


def test_options_in_every_form_that_torchvision_takes() -> None:
    images = batch(3, 8, 8)
    plain = Augment([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.25,) * 3)])(
        images
    )
    for mean, std in ((0.5, 0.25), ((0.5,) * 3, (0.25,)), ((0.5,), (0.25,) * 3)):
        assert torch.equal(Augment([v1.ToTensor(), v1.Normalize(mean, std)])(images), plain)
    with pytest.raises(TransformError, match="different lengths"):
        Augment([v1.ToTensor(), v1.Normalize((0.5,) * 3, (0.25,) * 2)])
    assert torch.equal(Augment(v2.RandAugment(num_ops=0))(images), Augment([])(images))
    with pytest.raises(TransformError, match=r"transform 0 \(RandAugment\).*magnitude=31"):
        Augment(v2.RandAugment(magnitude=31))
    with pytest.raises(TransformError, match="alpha=0"):
        Augment(MixUp(alpha=0, num_classes=3))


def test_a_coin_around_mixup_is_tossed_for_the_batch() -> None:
    images, labels = batch(8, 6, 6), torch.arange(8)
    plain = Augment([])(images)
    for inner in ([v2.MixUp(num_classes=8)], [v2.RandomChoice([v2.MixUp(num_classes=8), v2.CutMix(num_classes=8)])]):
        augment, mixed = Augment(v2.RandomApply(inner, p=0.5)), []
        for seed in range(12):
            soft = augment(images, labels, seed=seed)[1]
            mixed.append((soft.max(1).values < 1).all().item())
            assert mixed[-1] or torch.equal(augment(images, seed=seed), plain)
        assert 1 < sum(mixed) < 11
    alone = Augment(v2.RandomApply([MixUp(num_classes=8, per_sample=True)], p=0.5))
    shares = alone(images, labels, seed=1)[1].max(1).values
    assert 0 < (shares < 1).sum() < 8


def test_size_goes_with_mixing() -> None:
    images, labels = batch(4, 12, 12), torch.arange(4)
    got, soft = Augment([v2.RandomCrop(10), v2.MixUp(num_classes=4)], size=6)(images, labels, seed=2)
    small = Augment([v2.RandomCrop(10)], size=6)(images, seed=2)
    share = soft[1, 1]
    assert got.shape == (4, 3, 6, 6)
    assert torch.allclose(got[1], small[1] * share + small[0] * (1 - share), atol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [v2.RandomCrop(9, padding=2, fill=(1, 2, 3)), v2.Pad(1, fill=(1, 2, 3)), v2.RandomRotation(9, fill=(1, 2, 3)),
     v2.TrivialAugmentWide(fill=[1, 2, 3]), Cutout(3, value=(1, 2, 3))],
)  # fmt: skip
def test_a_fill_of_more_channels_than_the_image_is_told(transform: object) -> None:
    with pytest.raises(TransformError, match="3 channels, the images have 1"):
        Augment(transform)(batch(2, 12, 12)[..., :1].contiguous())
    Augment(transform)(batch(2, 12, 12))


@pytest.mark.parametrize(
    ("transforms", "launches"),
    [([v2.RandomCrop(9), v2.GaussianBlur(3)], 4), ([v2.RandomAutocontrast(), v2.ColorJitter(contrast=0.5)], 5),
     ([v2.RandomEqualize(), v2.RandomAdjustSharpness(2), v2.RandomAutocontrast()], 7), ([v2.TrivialAugmentWide()], 6),
     ([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 3)],
)  # fmt: skip
def test_explain_counts_the_launches_that_there_are(transforms: list[object], launches: int) -> None:
    assert f"on a GPU: {launches} launches" in Augment(transforms).explain(12, 12)


def test_rows_on_another_device_than_the_images_are_told() -> None:
    rows = torch.zeros(2, dtype=torch.int64, device="meta")
    with pytest.raises(TransformError, match="rows are on meta, the images on cpu"):
        Augment([])(batch(3, 8, 8), rows=rows)


class Products(TorchFunctionMode):
    """Notes in which precision float32 is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.precisions: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.bmm:
            self.precisions.append(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch 2.8 has no such setting for CPUs")
def test_resampling_multiplies_in_full_whatever_a_training_does() -> None:
    augment, images, before = Augment(v2.RandomResizedCrop(9)), batch(3, 20, 20), torch.get_float32_matmul_precision()
    expected = augment.reference(images)
    try:
        torch.set_float32_matmul_precision("medium")
        with Products() as products:
            assert torch.equal(augment.reference(images), expected)
        assert set(products.precisions) == {"ieee"}
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]
    finally:
        torch.set_float32_matmul_precision(before)


class Copies(TorchFunctionMode):
    """Notes which copies to the CPU nobody waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.unwaited: list[torch.Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        if func is torch.Tensor.to and (kwargs or {}).get("non_blocking") and made.device.type == "cpu":
            self.unwaited.append(made)
        return made


def test_labels_on_the_cpu_wait_for_the_shares_of_a_gpu() -> None:
    """As of images on a GPU, where shares are the kernels' and lie there."""
    drawn = plan(parse(MixUp(num_classes=3)).parts, HostNumbers(np.arange(3), Keys(0, 0)), 8, 8, 3)  # type: ignore[arg-type]
    (mixing,) = drawn.mixing
    on_device = replace(mixing, share=torch.from_numpy(np.asarray(mixing.share)))
    with Copies() as copies:
        soft = reference.mix_labels(torch.tensor([0, 1, 2]), on_device)
    assert copies.unwaited == []
    assert torch.equal(soft, reference.mix_labels(torch.tensor([0, 1, 2]), mixing))
