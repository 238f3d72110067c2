"""The fast ways against the reference: Triton kernels (interpreted where there is no GPU), and the CPU's own way."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
import triton
import triton.language as tl

from fastload.augment import Augment, Cutout, MixUp, RandomErasing, cpu, kernels, reference
from fastload.augment.arithmetic import HostNumbers, Keys
from fastload.augment.fused import DeviceKeys, Fused, Output
from fastload.augment.plan import Pass, rows_of
from fastload.augment.segments import segments
from fastload.augment.spec import Values, parse, plan
from tests.augment_help import assert_same, batch, plan_of, smooth
from tests.test_augment import KNOWN_ANSWERS
from tests.test_augment_draws import EVERYTHING

B = v2.InterpolationMode.BILINEAR
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KEYS = Keys(3, 4)

PIPELINES = {
    "copy": [v2.RandomCrop(6, padding=3, fill=(9, 80, 7), pad_if_needed=True), v2.RandomHorizontalFlip()],
    "fold": [v2.RandomCrop(7, padding=(1, 2), padding_mode="symmetric", pad_if_needed=True), v2.RandomVerticalFlip()],
    "crop": [v2.RandomResizedCrop((5, 9)), v2.RandomHorizontalFlip()],
    "pad and resize": [v2.Pad(2, fill=99), v2.Resize((5, 6))],
    "nearest warp": [v2.RandomRotation(40, fill=77)],
    "warp": [v2.RandomResizedCrop(12), v2.RandomAffine(40, (0.1, 0.1), (0.5, 1.5), 10, interpolation=B), v2.Resize(5)],
    "perspective": [v2.RandomPerspective(fill=(9, 80, 7))],
    "jitter": [v2.RandomResizedCrop(9), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)],
    "two statistics": [v2.RandomAutocontrast(0.7), v2.ColorJitter(contrast=0.5), v2.RandomEqualize(0.7)],
    "points": [v2.RandomInvert(), v2.RandomPosterize(3), v2.RandomSolarize(99), v2.RandomGrayscale(0.5)],
    "stencils": [v2.RandomAdjustSharpness(3, 0.6), v2.RandomApply([v2.GaussianBlur(3)]), v2.RandomErasing(value=3)],
    "noise": [v2.RandomErasing(1.0, value="random")],
    "trivial": [v2.TrivialAugmentWide(interpolation=B)],
    "rand": [v2.RandAugment(1, interpolation=B)],
    "auto": [v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)],
    "mixture": [v2.AugMix(mixture_width=2, chain_depth=1)],
    "cutout": [Cutout(4, value=(9, 80, 7)), v2.Grayscale(1), v2.RandomHorizontalFlip(), v2.Grayscale(3)],
    "choice": [
        v2.RandomChoice([v2.RandomInvert(1), v2.RandomPosterize(2, 1)]),
        v2.RandomOrder([v2.RandomSolarize(99), v2.RandomAutocontrast()]),
    ],
}


def compare(
    transforms: object, num: int, height: int, width: int, channels: int = 3, dtype: torch.dtype = torch.float32
) -> None:
    """Kernels and reference get the same draws; pixels are compared."""
    parts, ids = parse(transforms).parts, torch.arange(num) * 77777777777
    images = smooth(num, height, width, channels)
    made = plan(parts, HostNumbers(ids.numpy(), KEYS), height, width, channels)  # type: ignore[arg-type]
    values = Values().then((1 / 255,), (0.0,))
    options = (dtype, torch.channels_last)
    drawn = reference.Drawn(plan=made, ids=ids, keys=KEYS)
    expected = reference.finish(reference.run(images, drawn), values, *options)

    fused = Fused(parts, height, width, channels)  # type: ignore[arg-type]
    rows = np.array([np.broadcast_to(np.asarray(r, np.float64), num) for r in rows_of(made)])
    draws = torch.from_numpy(rows.astype(np.float32)).to(DEVICE)
    words = DeviceKeys().get(KEYS, 0, DEVICE)
    output = Output(dtype=dtype, memory_format=torch.channels_last, values=values)
    got = fused.run(images.to(DEVICE), None, ids.to(DEVICE), words, draws, output)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_same(got.cpu(), expected, dtype=dtype)


@pytest.mark.kernels
@pytest.mark.parametrize("name", PIPELINES)
def test_kernels_equal_the_reference(name: str) -> None:
    compare(PIPELINES[name], 3, 13, 17)


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["crop", "jitter", "nearest warp", "points", "stencils", "trivial", "two statistics"])
def test_kernels_on_grey_images(name: str) -> None:
    compare([t for t in PIPELINES[name] if not isinstance(t, v2.RandomErasing)], 3, 9, 7, channels=1)


@pytest.mark.kernels
@pytest.mark.parametrize("transform", [v2.RandomEqualize(1.0), v2.RandomErasing(1.0, value="random")])
def test_kernels_make_three_channels_alike_of_a_grey_one(transform: object) -> None:
    compare([transform, v2.Grayscale(3)], 2, 31, 33, channels=1)  # as many pixels as equalizing takes


@pytest.mark.kernels
@pytest.mark.parametrize(
    "name", ["copy", "fold", "crop", "pad and resize", "nearest warp", "perspective", "jitter", "trivial"]
)
def test_kernels_on_one_pixel(name: str) -> None:
    compare(PIPELINES[name] if name != "fold" else PIPELINES["copy"], 1, 1, 1)


@pytest.mark.kernels
def test_kernels_on_many_and_on_large_images() -> None:
    # Of large images a few pixels: the interpreter is slow.
    compare([v2.RandomCrop((5, 9)), *PIPELINES["crop"], v2.ColorJitter(0.4, 0, 0.4, 0.1)], 64, 255, 257)
    compare([v2.RandomCrop((5, 9)), v2.TrivialAugmentWide()], 64, 255, 257)
    compare([v2.RandomCrop((37, 41)), v2.RandomInvert(), v2.RandomErasing(1.0, (0.1, 0.3))], 1, 255, 257)


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
def test_kernels_write_other_dtypes(dtype: torch.dtype) -> None:
    images = smooth(2, 12, 11).to(DEVICE)
    parts, ids = parse(PIPELINES["crop"]).parts, torch.arange(2, device=DEVICE)
    fused = Fused(parts, 12, 11, 3)  # type: ignore[arg-type]
    words = DeviceKeys().get(KEYS, 0, DEVICE)
    draws = fused.draws(ids, words)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        values = (
            Values() if dtype == torch.uint8 else Values(scale=(1 / 255, 2 / 255, 3 / 255), offset=(0.0, -1.0, 1.0))
        )
        output = Output(dtype=dtype, memory_format=memory_format, values=values)
        got = fused.run(images, None, ids, words, draws, output)
        assert got.dtype == dtype
        assert got.is_contiguous(memory_format=memory_format)
        made = plan(parts, HostNumbers(np.arange(2), KEYS), 12, 11, 3)  # type: ignore[arg-type]
        drawn = reference.Drawn(plan=made, ids=ids.cpu(), keys=KEYS)
        expected = reference.finish(reference.run(images.cpu(), drawn), values, dtype, memory_format)
        assert (got.cpu().float() - expected.float()).abs().max() <= (1 if dtype == torch.uint8 else 2e-3)


@pytest.mark.kernels
@pytest.mark.parametrize(
    "pipeline", [EVERYTHING[:4], EVERYTHING[4:6], EVERYTHING[6:]], ids=["maps", "colour", "policies"]
)
def test_the_kernel_of_draws_gives_the_numbers_of_the_host(pipeline: list[object]) -> None:
    ids, parts = torch.arange(21) * 77777777777, parse(pipeline).parts
    for view in (0, 1):
        host = rows_of(plan(parts, HostNumbers(ids.numpy(), KEYS, view), 32, 36, 3))  # type: ignore[arg-type]
        words = DeviceKeys().get(KEYS, view, DEVICE)
        got = Fused(parts, 32, 36, 3).draws(ids.to(DEVICE), words).cpu().numpy()  # type: ignore[arg-type]
        expected = np.array([np.broadcast_to(np.asarray(r, np.float64), 21) for r in host])
        assert np.allclose(got, expected, rtol=1e-6, atol=1e-6)


@triton.jit
def words_of(counter, out):  # type: ignore[no-untyped-def]
    c0, c1, c2, c3 = tl.load(counter), tl.load(counter + 1), tl.load(counter + 2), tl.load(counter + 3)
    w0, w1, w2, w3 = kernels.philox(c0, c1, c2, c3, tl.load(counter + 4), tl.load(counter + 5))
    tl.store(out, w0)
    tl.store(out + 1, w1)
    tl.store(out + 2, w2)
    tl.store(out + 3, w3)


@pytest.mark.kernels
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers_of_philox_in_triton(counter, key, words) -> None:  # type: ignore[no-untyped-def]
    out = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    words_of[(1,)](torch.tensor([*counter, *key], device=DEVICE), out)
    assert tuple(out.tolist()) == words


@pytest.mark.kernels
def test_gathering_from_all_images() -> None:
    images, ids = smooth(9, 12, 11).to(DEVICE), torch.tensor([7, 2, 2, 8], device=DEVICE)
    fused = Fused(parse(PIPELINES["jitter"]).parts, 12, 11, 3)  # type: ignore[arg-type]
    words = DeviceKeys().get(KEYS, 0, DEVICE)
    draws = fused.draws(ids, words)
    gathered = fused.run(images, ids, ids, words, draws, None)
    assert torch.equal(gathered, fused.run(images[ids], None, ids, words, draws, None))


@pytest.mark.kernels
def test_rows_behind_two_gigabytes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastload.augment.can_fuse", lambda images: True)
    # Of memory that nobody touches, only the pages that are written and read become real.
    images = torch.empty((2_900_000, 16, 16, 3), dtype=torch.uint8, device=DEVICE)
    assert images.nbytes > 2**31
    rows = torch.tensor([2_899_999, 3], device=DEVICE, dtype=torch.int32)
    for number, row in enumerate(rows.tolist()):
        images[row] = smooth(2, 16, 16)[number].to(DEVICE)
    augment = Augment([v2.RandomCrop(5), v2.RandomHorizontalFlip()])
    assert_same(
        augment(images, rows=rows, ids=rows.cpu(), seed=3),
        augment.reference(images[rows.long()], ids=rows.cpu(), seed=3),
    )


@pytest.mark.kernels
def test_an_empty_batch_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    images = smooth(1, 12, 11).to(DEVICE)[:0]
    augment = Augment([v2.RandomResizedCrop(7), v2.ColorJitter(0.3, 0.3), MixUp(num_classes=3)])
    for fuse in (False, True):
        monkeypatch.setattr("fastload.augment.can_fuse", lambda images, fuse=fuse: fuse)
        made, labels = augment(images, torch.zeros(0, dtype=torch.int64, device=DEVICE))
        assert (made.shape, labels.shape) == ((0, 3, 7, 7), (0, 3))


def test_crop_flip_jitter_normalize_is_one_pass_of_one_segment() -> None:
    """The draws, one reduction, and the pass itself: three launches."""
    fused = Fused(parse([*PIPELINES["jitter"], v2.RandomHorizontalFlip()]).parts, 12, 11, 3)  # type: ignore[arg-type]
    (node,) = fused.plan.nodes
    assert isinstance(node, Pass)
    assert len(segments(node)) == 1
    assert "3 launches" in Augment(PIPELINES["jitter"]).explain(12, 11)


@pytest.mark.kernels
def test_augment_by_kernels_is_augment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public face on a GPU, or as it would be there: labels, views, rows."""
    monkeypatch.setattr("fastload.augment.can_fuse", lambda images: True)
    images, labels = smooth(5, 12, 11).to(DEVICE), torch.arange(5, device=DEVICE)
    augment = Augment([v2.RandomResizedCrop(7), v2.RandomHorizontalFlip(), MixUp(num_classes=5)])
    got, soft = augment(images, labels, seed=2, epoch=1)
    expected, expected_soft = augment.reference(images.cpu(), labels.cpu(), seed=2, epoch=1)
    assert_same(got.cpu(), expected)
    assert torch.allclose(soft.cpu(), expected_soft, atol=1e-6)
    two = Augment([v2.RandomResizedCrop(7)], views=2)
    ids = torch.tensor([3, 0])
    rows = ids.to(DEVICE)
    for a, b in zip(two(images, rows=rows, ids=ids), two.reference(images[rows].cpu(), ids=ids), strict=True):
        assert_same(a.cpu(), b)


# --- the CPU's own way ---

CPU_PIPELINES = {
    "crop": [v2.RandomResizedCrop(20), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()],
    "enlarging": [v2.RandomResizedCrop(64)],
    "resize": [v2.Resize((30, 17))],
    "resize and crop": [v2.Resize((31, 37)), v2.RandomCrop(20), v2.RandomHorizontalFlip()],
    "crop and resize": [v2.CenterCrop((20, 45)), v2.Resize((13, 21))],
    "jitter": [v2.RandomResizedCrop(24), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)],
    "copy and jitter": [v2.RandomCrop(24, padding=2), v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomHorizontalFlip()],
    "stencils": [v2.RandomResizedCrop(24), v2.GaussianBlur(3), v2.RandomAdjustSharpness(2)],
    "trivial": [v2.RandomResizedCrop(24), v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()],
    "warp": [v2.RandomPerspective(), v2.RandomInvert()],
    "erase": [v2.RandomResizedCrop(24), v2.RandomErasing(0.7), Cutout(5)],
    "two warps": [v2.RandomHorizontalFlip(), v2.RandomAffine(9, interpolation=B), v2.RandomPerspective()],
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CPU_PIPELINES)
def test_the_cpus_way_equals_the_reference_within_rounding(name: str, channels: int) -> None:
    """torch's uint8 resampling rounds twice: 1.1 levels at most, which colours can stretch; 0.5 on average."""
    normalize = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.25])]
    for images in (smooth(5, 33, 47, channels), batch(5, 33, 47, channels)):
        for memory_format in (torch.channels_last, torch.contiguous_format):
            pipeline = [*CPU_PIPELINES[name], *normalize]
            augment, made = Augment(pipeline, memory_format=memory_format), plan_of(pipeline, 5, 33, 47, channels)
            assert cpu.suits(images, made, augment.dtype)
            assert cpu.whole_windows(made, 5)
            got = augment(images)
            assert got.is_contiguous(memory_format=memory_format)
            error = (got - augment.reference(images)).abs() * 0.25 * 255
            assert error.mean() <= (1.0 if name == "trivial" else 0.5)
            # Equalize, posterize and solarize make more of a rounding, of few pixels.
            colours = any(isinstance(t, v2.ColorJitter | v2.RandomAdjustSharpness) for t in CPU_PIPELINES[name])
            assert name == "trivial" or error.max() <= (12 if colours else 1.1)


def test_the_cpus_way_leaves_alone_what_it_cannot_do() -> None:
    images = smooth(3, 33, 47)
    for pipeline in (
        [v2.RandomRotation(9), v2.RandomRotation(9)],
        [v2.Resize((31, 37)), v2.RandomCrop(20), v2.Resize((9, 9))],
        [v2.RandomResizedCrop(9), RandomErasing(1.0, value="random")],
        [v2.ColorJitter(0.4), v2.RandomCrop(20)],
        [v2.Pad(3), v2.Resize((9, 9))],
        [v2.RandomRotation(45), v2.CenterCrop(20), v2.RandomHorizontalFlip()],
        [v2.Resize((30, 37)), v2.RandomRotation(45), v2.CenterCrop(20)],
        # A draw may leave the warp at the identity and the crop in the corner.
        [v2.RandomApply([v2.RandomRotation(45)], p=0.2), v2.RandomCrop((32, 46)), v2.ColorJitter(0.4)],
    ):
        augment = Augment(pipeline)
        assert_same(augment(images), augment.reference(images))


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("name", PIPELINES)
def test_a_gpu_gives_the_pixels_of_the_reference(name: str) -> None:
    for num, height, width in ((1, 7, 13), (3, 255, 257), (64, 64, 50)):
        augment = Augment(PIPELINES[name])
        images = smooth(num, height, width)
        assert_same(augment(images.cuda(), epoch=2).cpu(), augment.reference(images, epoch=2))


@pytest.mark.gpu
def test_tf32_changes_nothing() -> None:
    augment, images = Augment(v2.RandomResizedCrop(40)), batch(8, 64, 50)
    expected, before = augment.reference(images), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert_same(augment.reference(images.cuda()).cpu(), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
def test_labels_that_stay_on_the_cpu_are_mixed_by_the_shares_of_a_busy_gpu() -> None:
    augment, images, labels = Augment(MixUp(num_classes=8, per_sample=True)), smooth(8, 12, 11), torch.arange(8)
    expected = augment.reference(images, labels, seed=2)[1]
    on_gpu = images.cuda()
    augment(on_gpu, labels)  # compiled, before the GPU is kept busy
    torch.cuda._sleep(10**8)
    soft = augment(on_gpu, labels, seed=2)[1]
    assert torch.allclose(soft, expected, atol=1e-6)


@pytest.mark.gpu
def test_a_gpu_writes_bfloat16() -> None:
    augment = Augment(PIPELINES["jitter"], dtype=torch.bfloat16)
    images = smooth(8, 64, 50)
    assert_same(augment(images.cuda()).cpu(), augment.reference(images), dtype=torch.bfloat16)


@pytest.mark.gpu
def test_a_gpu_does_not_wait() -> None:
    augment, images = Augment(EVERYTHING[:-1]), smooth(8, 32, 36).cuda()
    ids = torch.arange(8, device="cuda")
    augment(images, ids=ids)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        augment(images, ids=ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
