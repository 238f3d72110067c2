"""Batches on their way to a GPU: what is late is waited for, what is read is kept, what was read is let go of."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from fastload import Augment, Loader, open_dataset
from fastload.stores import Served
from fastload.stores.copying import Copies, Copy
from fastload.stores.tensors import fill

PLAIN = Augment(dtype=torch.uint8)
# Clock cycles, some 10 ms: longer than a tiny batch takes on any way.
A_WHILE = 20_000_000


def test_nobody_holds_a_stored_batch_while_the_caller_has_the_augmented_one(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(open_dataset(dataset), 4, device="cpu", placement="mapped")
    stored: list[weakref.ref[torch.Tensor]] = []
    fetch = loader._fetch

    def noted(served: Served) -> tuple[Served, Copy | None]:
        stored.append(weakref.ref(served.samples))
        return fetch(served)

    monkeypatch.setattr(loader, "_fetch", noted)
    for step, _ in enumerate(loader):
        alive = [samples() is not None for samples in stored]
        assert alive == [False] * (step + 1) + [True] * (len(stored) - step - 1), "only the next one may be there"
    assert len(stored) == 3


def on_both(dataset: Path, placement: Any, batch_size: int) -> tuple[Loader, Loader]:
    """Return loaders on the CPU and on the GPU that give the same."""
    cpu, gpu = (
        Loader(open_dataset(dataset), batch_size, augment=PLAIN, device=device, placement=placement, seed=5)
        for device in ("cpu", "cuda")
    )
    return cpu, gpu


def assert_same(on_cpu: Loader, on_gpu: Loader, num_passes: int) -> None:
    # All of the GPU's first: to look at one would wait for it, and nothing would be under way any more.
    got = [batch for _ in range(num_passes) for batch in on_gpu]
    expected = [batch for _ in range(num_passes) for batch in on_cpu]
    for (a, la), (b, lb) in zip(expected, got, strict=True):
        assert torch.equal(a, b.cpu())
        assert torch.equal(la, lb.cpu())


def copies_of(loader: Loader) -> Copies:
    assert loader._copies is not None
    return loader._copies


@pytest.mark.gpu
@pytest.mark.parametrize("placement", ["host", "mapped"])
def test_a_copy_that_is_late_is_waited_for(dataset: Path, placement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu, on_gpu = on_both(dataset, placement, 3)
    copies = copies_of(on_gpu)
    begin = copies.begin

    def late(samples: torch.Tensor, labels: torch.Tensor) -> Copy:
        with torch.cuda.stream(copies._stream):
            torch.cuda._sleep(50_000_000)
        return begin(samples, labels)

    monkeypatch.setattr(copies, "begin", late)
    assert_same(on_cpu, on_gpu, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("placement", ["host", "mapped"])
def test_a_batch_that_is_read_late_is_still_there(
    dataset: Path, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu, on_gpu = on_both(dataset, placement, 1)  # 13 batches a pass
    finish = on_gpu._finish

    def late(*told: Any) -> Any:
        torch.cuda._sleep(A_WHILE)
        return finish(*told)

    monkeypatch.setattr(on_gpu, "_finish", late)
    assert_same(on_cpu, on_gpu, 2)


@pytest.mark.gpu
def test_a_piece_is_read_before_its_memory_is_filled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastload.stores.tensors.PIECE_BYTES", 2 << 20)
    whole = torch.randint(0, 256, (40, 1 << 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = torch.empty(whole.shape, dtype=torch.uint8, device="cuda")
    torch.cuda._sleep(10 * A_WHILE)
    fill(samples, torch.split(whole, [13, 1, 26]))  # 21 pieces through two buffers
    assert torch.cuda.current_stream().query(), "it returned before all was there"
    assert torch.equal(samples.cpu(), whole)


class Photos(torch.utils.data.Dataset[Any]):
    """Of a batch of 4, a copy takes 3 MiB: memory that torch's allocator keeps apart from that of labels."""

    def __len__(self) -> int:
        return 80

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((512, 512, 3), index, dtype=torch.uint8), index % 3


@pytest.mark.gpu
def test_three_stored_batches_lie_on_a_gpu_however_long_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(Photos(), 4, augment=PLAIN, device="cuda", workers=0)
    copies, places = copies_of(loader), []
    begin = copies.begin

    def noted(samples: torch.Tensor, labels: torch.Tensor) -> Copy:
        copy = begin(samples, labels)
        places.append(copy.samples.data_ptr())
        return copy

    monkeypatch.setattr(copies, "begin", noted)
    for _ in loader:
        torch.cuda._sleep(A_WHILE)  # the step
    assert len(places) == 20
    assert len(set(places)) == 3
