"""The compiled way of the CPU must give the bytes of torch's calls: a run may go from one to the other."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from augment_help import FLAT, batch, smooth
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from fastload import Augment, Loader, loader, open_dataset
from fastload.augment import AlternatingFlip, Cutout, MixUp, arithmetic, batched, compiling, cpu
from fastload.augment.philox import derive, draw_words
from fastload.errors import TransformError
from tests.conftest import ROOT

FLOATS = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", autouse=True)
def _compiled(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch_module.setattr(compiling, "WORTH_BATCHES", 0)
    # Tiny batches, too, are made in several ranges, each by one of two threads.
    monkeypatch_module.setattr(batched, "RANGE_BYTES", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    # The longer one on the other core, into the cache; where there is none, it is compiled here.
    build = "from fastload.augment.compiled_colour import build; build()"
    beside = subprocess.Popen([sys.executable, "-c", build], cwd=ROOT)
    assert compiling._build(os.getpid(), compiling.Compiled).result(timeout=300) is not None
    assert beside.wait(timeout=300) == 0
    for kind in (compiling.Compiled, compiling.Coloured):
        assert compiling._build(os.getpid(), kind).result(timeout=300) is not None
    yield
    torch.set_num_threads(before)


def both_ways(augment: Augment, images: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    compiled = augment(images, epoch=epoch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "compiled", lambda: None)
        patch.setattr(arithmetic, "ready", lambda: None)
        return compiled, augment(images, epoch=epoch)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)), out=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    low=st.floats(0.02, 1), channels=st.sampled_from([1, 3]), epoch=st.integers(0, 9), last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.uint8, torch.bfloat16]),
)  # fmt: skip
def test_resized_crops_are_torchs_bytes(
    size: tuple[int, int], out: tuple[int, int], low: float, channels: int, epoch: int, last: bool, dtype: torch.dtype
) -> None:
    crop = [v2.RandomResizedCrop(out, scale=(low, 1.0)), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    floats = [FLOATS[0], v2.Normalize([0.4] * channels, [0.2] * channels)]
    augment = Augment(
        crop + (floats if dtype.is_floating_point else []), dtype=dtype,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )  # fmt: skip
    compiled, plain = both_ways(augment, batch(5, *size, channels), epoch)
    assert channels == 1 or compiled.stride() == plain.stride()
    assert torch.equal(compiled, plain)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)), pad=st.integers(0, 7), channels=st.sampled_from([1, 3]),
    fill=st.integers(0, 255), last=st.booleans(), dtype=st.sampled_from([torch.float32, torch.uint8]),
)  # fmt: skip
def test_padded_crops_are_torchs_bytes(
    size: tuple[int, int], pad: int, channels: int, fill: int, last: bool, dtype: torch.dtype
) -> None:
    crop = [v2.RandomCrop(size, padding=pad, fill=fill), v2.RandomHorizontalFlip()]
    augment = Augment(crop, dtype=dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
    for images in (batch(5, *size, channels), batch(5, size[0] + 3, size[1] + 1, channels)):
        compiled, plain = both_ways(augment, images)
        assert channels == 1 or compiled.stride() == plain.stride()
        assert torch.equal(compiled, plain)


BILINEAR = v2.InterpolationMode.BILINEAR


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "pipeline",
    [
        [v2.Resize(37), v2.CenterCrop(31)],
        [v2.Resize((19, 83)), v2.RandomCrop(17), v2.RandomVerticalFlip()],
        [v2.RandomResizedCrop(24), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)],
        [v2.RandomResizedCrop(24), v2.RandomApply([v2.RandomRotation(30)], p=0.5), v2.RandomGrayscale(0.3)],
        [v2.RandomCrop(24, padding=3), v2.TrivialAugmentWide()],
        [v2.RandomHorizontalFlip(), v2.RandomRotation(40, BILINEAR, fill=7), v2.ColorJitter(hue=0.5)],
        [v2.RandomRotation(40, fill=90), v2.RandomVerticalFlip(), v2.RandomApply([v2.GaussianBlur(5)])],
        [v2.RandomAffine(25, (0.2, 0.1), (1.0, 1.4), 9, BILINEAR), v2.RandomInvert(), v2.RandomEqualize()],
        [v2.RandomPerspective(0.6, 0.8), v2.RandomPosterize(2), v2.RandomSolarize(100), v2.RandomAutocontrast()],
        [v2.RandomCrop(20), v2.RandomAdjustSharpness(3.0), v2.RandomAdjustSharpness(0.0), v2.RandomErasing(0.7)],
        [v2.CenterCrop((2, 9)), v2.RandomAdjustSharpness(3.0, p=1.0), v2.RandomErasing(0.7, value=0.3)],
        [v2.RandomCrop(24), v2.TrivialAugmentWide(interpolation=BILINEAR), v2.RandAugment()],
        [v2.RandomResizedCrop(24), v2.AutoAugment(), Cutout(9)],
        [v2.RandomRotation(30, fill=9), v2.RandomAffine(20, interpolation=BILINEAR), v2.RandomPerspective()],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16])
def test_chains_with_colours_and_warps_are_torchs_bytes(
    pipeline: list[object], dtype: torch.dtype, channels: int
) -> None:
    floats = [FLOATS[0], v2.Normalize([0.4] * channels, [0.2] * channels)] if dtype.is_floating_point else []
    for images in (batch(33, 45, 61, channels), smooth(33, 45, 61, channels)):
        for memory_format in (torch.channels_last, torch.contiguous_format):
            augment = Augment([*pipeline, *floats], dtype=dtype, memory_format=memory_format)
            painted, plain = both_ways(augment, images)
            assert torch.equal(painted, plain)


@pytest.mark.parametrize("name", FLAT)
def test_an_image_of_one_level_stays_one(name: str) -> None:
    transforms, level, expected = FLAT[name]
    for made in both_ways(Augment(transforms), torch.full((3, 33, 47, 3), level, dtype=torch.uint8)):
        assert (made * 255 - expected).abs().max() < 0.02


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)), counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    kind=st.integers(0, 3), seed=st.integers(0, 9), last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.uint8]),
)  # fmt: skip
def test_batches_drawn_ahead_are_those_of_a_call(
    size: tuple[int, int], counts: list[int], kind: int, seed: int, last: bool, dtype: torch.dtype
) -> None:
    crop = [
        [v2.RandomCrop(size, padding=3, fill=9)], [v2.RandomResizedCrop(17), v2.RandomVerticalFlip()],
        [v2.Resize((19, 23)), v2.CenterCrop(15)], [AlternatingFlip(), v2.RandomCrop(4)],
    ][kind]  # fmt: skip
    layout = torch.channels_last if last else torch.contiguous_format
    augment = Augment([*crop, v2.RandomHorizontalFlip()], dtype=dtype, memory_format=layout)
    stored = batch(20, *size, 3)
    ids = list(torch.randperm(20, generator=torch.Generator().manual_seed(seed))[: sum(counts)].split(counts))
    drawn = augment.ahead(stored[:0], ids, epoch=3, seed=seed)
    assert (drawn is None) == (dtype == torch.uint8 and not last)
    for some, windows in zip(ids, drawn or [], strict=False):
        expected = augment(stored[some], ids=some, epoch=3, seed=seed)
        for made in (augment.made(stored, some, windows), augment.made(stored[some], None, windows)):
            assert made.stride() == expected.stride()
            assert torch.equal(made, expected)


@pytest.mark.parametrize(
    "pipeline",
    [[v2.ColorJitter(0.4)], [v2.RandomRotation(9)], [MixUp(num_classes=3)], [v2.Pad(3, padding_mode="reflect")]],
)
def test_what_is_more_than_crops_is_not_drawn_ahead(pipeline: list[object]) -> None:
    images = batch(4, 33, 47, 3)
    assert Augment([v2.RandomCrop(24), *pipeline]).ahead(images, [torch.arange(4)]) is None
    assert Augment(v2.RandomCrop(24), views=2).ahead(images, [torch.arange(4)]) is None


def test_windows_are_of_images_of_one_size() -> None:
    augment, images = Augment(v2.RandomCrop(24)), batch(4, 33, 47, 3)
    drawn = augment.ahead(images, [torch.arange(4)])
    assert drawn is not None
    with pytest.raises(AssertionError):
        augment.made(batch(4, 33, 46, 3), None, drawn[0])
    with pytest.raises(AssertionError):
        augment.made(images[:3], None, drawn[0])
    with pytest.raises(TransformError, match="there are 4 images"):
        augment.made(images, torch.tensor([0, 1, 2, 4]), drawn[0])


@pytest.mark.parametrize("placement", ["host", "mapped", "folder"])
def test_a_loader_that_draws_ahead_gives_the_same_batches(
    dataset: Path, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "DRAWN_AT_ONCE", 7)
    asked: list[int] = []
    ahead = Augment.ahead

    def counted(self: Augment, like: torch.Tensor, ids: list[torch.Tensor], **keys: int) -> object:
        asked.append(len(ids))
        return ahead(self, like, ids, **keys)

    def passes(drop_last: bool, rank: int, num_ranks: int) -> list[torch.Tensor]:
        options = {"placement": placement, "workers": 0, "drop_last": drop_last, "rank": rank, "world_size": num_ranks}
        found = []
        augment = Augment(v2.RandomCrop(20, padding=2))
        made = Loader(open_dataset(dataset), 3, augment=augment, device="cpu", **options)  # type: ignore[arg-type]
        for epoch in (0, 1, 5):
            made.set_epoch(epoch)
            made.skip(epoch % 3)
            found += [x for images, labels in made for x in (images, labels)]
        return found

    for case in ((True, 0, 1), (False, 0, 1), (False, 1, 2)):
        monkeypatch.setattr(Augment, "ahead", counted)
        got = passes(*case)
        monkeypatch.setattr(Augment, "ahead", lambda *_, **__: None)
        expected = passes(*case)
        assert len(got) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert set(asked) == {1, 2}  # batches of 3, and the last ones


@pytest.mark.parametrize("is_ahead", [True, False])
def test_a_loaders_batch_is_what_a_call_gives_for_its_seed_and_epoch(dataset: Path, is_ahead: bool) -> None:
    opened = open_dataset(dataset)
    stored = torch.stack([opened[i][0] for i in range(13)])
    augment = Augment([v2.RandomCrop(17, padding=2), v2.ColorJitter(0.4)][: 1 if is_ahead else 2])
    assert (augment.ahead(stored, [torch.arange(4)]) is not None) == is_ahead
    made = Loader(opened, 4, augment=augment, device="cpu", seed=5)
    made.set_epoch(3)
    for images, labels in made:
        ids = made.batch_ids
        assert torch.equal(images, augment(stored[ids], ids=ids, epoch=3, seed=5))
        assert torch.equal(labels, opened.labels[ids])


def test_rows_are_taken_out_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, rows = batch(9, 45, 61, 3), torch.tensor([7, 0, 7, 3])
    for pipeline in ([v2.RandomResizedCrop(24)], [v2.CenterCrop(24)], [v2.RandomCrop(30), v2.ColorJitter(0.4)],
                     [v2.RandomRotation(30)], [v2.RandomResizedCrop(24), v2.RandomErasing(1.0)]):  # fmt: skip
        augment = Augment([*pipeline, *FLOATS])
        expected = augment(stored[rows], ids=rows)
        assert torch.equal(augment(stored, ids=rows, rows=rows), expected)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "compiled", lambda: None)
            assert torch.equal(augment(stored, ids=rows, rows=rows), expected)


@pytest.mark.parametrize("row", [-1, 9])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_rows_that_are_not_there_are_told(row: int, is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_compiled:
        monkeypatch.setattr(cpu, "compiled", lambda: None)
    with pytest.raises(TransformError, match="there are 9 images"):
        Augment([v2.RandomResizedCrop(24)])(batch(9, 45, 61, 3), rows=torch.tensor([0, row]))


def test_a_shrink_by_far_and_images_that_do_not_lie_in_a_row() -> None:
    images = batch(3, 301, 402, 3)
    for given_images in (images, images[:, ::2, 1:], images[::2]):
        compiled, plain = both_ways(Augment([v2.Resize((9, 11)), *FLOATS]), given_images)
        assert torch.equal(compiled, plain)


def test_without_numba_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    augment, images = Augment([v2.RandomResizedCrop(24), *FLOATS]), batch(4, 33, 47, 3)
    expected = augment(images)
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    monkeypatch.delitem(__import__("sys").modules, "fastload.augment.compiled", raising=False)
    monkeypatch.delattr("fastload.augment.compiled", raising=False)
    monkeypatch.setattr(compiling, "_begun", {})
    future = compiling._build.__wrapped__(os.getpid(), compiling.Compiled)
    assert future.result(timeout=60) is None
    monkeypatch.setattr(compiling, "_build", lambda process, kind: future)
    assert torch.equal(augment(images), expected)


def test_batches_stay_the_callers_own() -> None:
    augment, images = Augment([v2.RandomResizedCrop(24), *FLOATS]), batch(4, 33, 47, 3)
    kept = [augment(images, epoch=e) for e in range(6)]
    again = [augment(images, epoch=e) for e in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert len({x.data_ptr() for x in kept + again}) == 12


def test_a_few_batches_do_not_wait_for_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "WORTH_BATCHES", 3)
    monkeypatch.setattr(compiling, "_asked", itertools.count())
    assert [compiling.compiled() is None for _ in range(5)] == [True, True, True, False, False]


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5), seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**40), transform=st.integers(0, 2**31), count=st.integers(1, 22),
)  # fmt: skip
def test_compiled_words_are_philoxs(ids: list[int], seed: int, epoch: int, transform: int, count: int) -> None:
    fast, array = compiling.ready(), np.array(ids)
    assert fast is not None
    made = fast.words(array, *derive(seed, epoch), transform, (count + 3) // 4)[:count]
    assert np.array_equal(made, draw_words(array, seed=seed, epoch=epoch, transform=transform, count=count))
