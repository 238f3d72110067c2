"""Going on where a run was: skip, states through Accelerate, other ranks and batches; and leaving nothing behind."""

import gc
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
import torchvision.transforms.v2 as v2
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from fastload import Augment, Loader, open_dataset
from fastload.errors import ConfigError
from fastload.stores import Served, Wanted
from fastload.stores.sharded import ShardedStore
from tests.conftest import comes_true, num_threads

pytestmark = pytest.mark.usefixtures("no_accelerate_left")


def make(dataset: Path, batch_size: int = 4, **options: object) -> Loader:
    return Loader(open_dataset(dataset), batch_size, augment=Augment(v2.RandomCrop(9)), seed=2, **options)  # type: ignore[arg-type]


def take(loader: Loader, count: int | None = None) -> list[torch.Tensor]:
    found = []
    for images, _ in loader:
        found.append(images)
        if len(found) == count:
            break
    return found


def same(got: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(got) == len(expected) and all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_save_state_and_load_state_go_on_as_if_nothing_had_happened(dataset: Path, tmp_path: Path, stop: int) -> None:
    accelerator = Accelerator(cpu=True)
    whole = make(dataset)
    expected = take(whole) + take(whole)  # 2 epochs of 3 steps
    loader = make(dataset)
    accelerator.register_for_checkpointing(loader)
    got = []
    for images, _ in loader:
        got.append(images)
        if len(got) == stop:
            accelerator.save_state(str(tmp_path / "state"))
            break
    AcceleratorState._reset_state()
    again = Accelerator(cpu=True)  # another process would be no different: all there is, is the file
    resumed = make(dataset)
    again.register_for_checkpointing(resumed)
    again.load_state(str(tmp_path / "state"))
    got += take(resumed) + (take(resumed) if stop < 3 else [])
    assert same(got, expected)


@pytest.mark.parametrize(("batch_size", "world_size"), [(3, 1), (2, 2), (1, 3)])
def test_from_the_next_epoch_on_anything_may_change(dataset: Path, batch_size: int, world_size: int) -> None:
    loader = make(dataset)
    take(loader)
    everyone = [make(dataset, batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    straight = [make(dataset, batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    for resumed, expected in zip(everyone, straight, strict=True):
        resumed.load_state_dict(loader.state_dict())
        expected.set_epoch(1)
        assert same(take(resumed), take(expected))


def test_a_share_that_was_swapped_is_found_again(dataset: Path) -> None:
    options = {"placement": "gpu_sharded", "device": "cpu", "rank": 1, "world_size": 2}
    whole = make(dataset, 2, **options)
    expected = [image for _ in range(4) for image in take(whole)]  # 3 steps each
    loader = make(dataset, 2, **options)
    got = take(loader) + take(loader) + take(loader, 2)
    resumed = make(dataset, 2, **options)
    resumed.load_state_dict(loader.state_dict())
    assert same(got + take(resumed) + take(resumed), expected)
    with pytest.raises(ConfigError, match="order"):
        make(dataset, 2, rank=1, world_size=2).load_state_dict(loader.state_dict())
    take(resumed, 3)
    make(dataset, 5).load_state_dict(resumed.state_dict())  # between epochs


def test_a_state_of_another_order_or_end_of_the_epoch(dataset: Path) -> None:
    kept = make(dataset, drop_last=False)  # 4 steps, of which dropping the last leaves 3
    for count in (2, 3):
        take(kept, count)
        resumed, expected = make(dataset), make(dataset)
        resumed.load_state_dict(kept.state_dict())
        expected.skip(3 * kept.epoch + count)
        assert same(take(resumed), take(expected))
    in_file_order = make(dataset, shuffle=False)
    take(in_file_order, 1)
    with pytest.raises(ConfigError, match="order file, this loader whole"):
        make(dataset).load_state_dict(in_file_order.state_dict())
    with pytest.raises(ConfigError, match="order whole, this loader file"):
        make(dataset, shuffle=False).load_state_dict(kept.state_dict())


def test_one_rank_copies_its_share_once(dataset: Path) -> None:
    loader = make(dataset, placement="gpu_sharded", device="cpu")
    take(loader)
    assert isinstance(loader._store, ShardedStore)
    loader._store._read = None  # type: ignore[assignment]
    again = make(dataset, placement="gpu_sharded", device="cpu")
    again.set_epoch(1)
    assert same(take(loader), take(again))


@pytest.mark.parametrize("swap", [False, True])
def test_a_round_that_was_interrupted_is_read_anew(dataset: Path, swap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastload.stores.sharded.STAGING_BYTES", 1)
    opened = open_dataset(dataset)
    share = {"placement": "gpu_sharded", "device": "cpu", "rank": 0, "world_size": 2}
    loader = Loader(opened, 2, augment=Augment(dtype=torch.uint8), **share)  # type: ignore[arg-type]
    take(loader)
    store, calls = loader._store, []
    assert isinstance(store, ShardedStore)
    read = store._read

    def interrupt() -> None:
        calls.append(None)
        if len(calls) == 2:  # when a part of the samples is in place
            raise KeyboardInterrupt

    def read_once(ids: torch.Tensor) -> torch.Tensor:
        interrupt()
        return read(ids)

    def exchange(arriving: torch.Tensor, _: torch.Tensor) -> None:
        interrupt()
        arriving.fill_(255)

    if swap:
        store._swap = True
        monkeypatch.setattr("torch.distributed.all_to_all_single", exchange)
    else:
        store._read = read_once
    with pytest.raises(KeyboardInterrupt):
        take(loader)
    for _ in range(1 if swap else 3):
        for images, _ in loader:
            for image, i in zip(images, loader.batch_ids.tolist(), strict=True):
                assert torch.equal(image.permute(1, 2, 0), opened[i][0])
    assert loader.epoch == (2 if swap else 4)


@pytest.mark.parametrize("placement", ["host", "gpu_sharded"])
def test_a_look_at_a_batch_on_one_rank_is_undone_by_set_epoch(dataset: Path, placement: str) -> None:
    ranks = [
        make(dataset, 2, placement=placement, device="cpu", rank=rank, world_size=2, drop_last=False)
        for rank in range(2)
    ]

    def seen() -> list[int]:
        return [i for loader in ranks for _ in loader for i in loader.batch_ids[: loader.num_valid].tolist()]

    next(iter(ranks[0]))
    seen()
    assert [loader.epoch for loader in ranks] == [2, 1], "each went on by itself"
    for loader in ranks:
        loader.set_epoch(0)
    for _ in range(2):
        assert sorted(seen()) == list(range(13))
    assert [loader.epoch for loader in ranks] == [2, 2]


def test_skip_leaves_out_steps_and_epochs(dataset: Path) -> None:
    whole = make(dataset)
    expected = take(whole) + take(whole) + take(whole)
    for count in range(7):
        loader = make(dataset)
        loader.skip(count)
        got = take(loader)
        assert same(got, expected[count : count + len(got)])
        assert len(got) == 3 - count % 3
    loader = make(dataset)
    loader.skip(1)
    loader.skip(1)
    assert same(take(loader), expected[2:3])
    take(loader, 1)
    loader.skip(1)  # the pass that was left is over: its rest is not what is skipped
    assert same(take(loader, 1), [make_epoch(dataset, 2)[1]])
    with pytest.raises(ConfigError, match="num_steps"):
        loader.skip(-1)


def make_epoch(dataset: Path, epoch: int) -> list[torch.Tensor]:
    loader = make(dataset)
    loader.set_epoch(epoch)
    return take(loader)


def test_what_is_skipped_is_not_read(dataset: Path) -> None:
    loader = make(dataset, placement="mapped")
    asked = []
    serve = loader._store.serve

    def watched(steps: Iterator[Wanted]) -> Generator[Served, None, None]:
        return serve(asked.append(step.ids.tolist()) or step for step in steps)

    loader._store.serve = watched  # type: ignore[method-assign]
    loader.skip(2)
    take(loader)
    assert len(asked) == 1


def test_from_accelerator_takes_device_and_share(dataset: Path) -> None:
    accelerator = Accelerator(cpu=True)
    loader = Loader.from_accelerator(accelerator, open_dataset(dataset), 5, shuffle=False)
    assert (loader.device, loader.rank, loader.shares.world_size) == (torch.device("cpu"), 0, 1)
    gathered = []
    for _, labels in loader:
        gathered += accelerator.gather_for_metrics(labels).tolist()
    assert gathered == loader.dataset.labels.tolist()


def test_from_accelerator_splits_batches_where_it_is_told(dataset: Path) -> None:
    class Two:
        num_processes, split_batches, device = 2, True, torch.device("cpu")

    with pytest.raises(ConfigError, match="pass a multiple"):
        Loader.from_accelerator(Two(), open_dataset(dataset), 5)
    loader = Loader.from_accelerator(Two(), open_dataset(dataset), 6, rank=1, world_size=2)
    assert loader.shares.batch_size == 3


# --- nothing is left ---


def held() -> tuple[int, int, int]:
    """Return what this process holds: threads, open files, mappings of files."""
    gc.collect()
    maps = sum("/" in line for line in Path("/proc/self/maps").read_text().splitlines())
    return num_threads(), len(list(Path("/proc/self/fd").iterdir())), maps


@pytest.mark.parametrize("placement", ["host", "mapped", "folder"])
@pytest.mark.parametrize("leave", ["break", "raise", "drop", "two"])
@pytest.mark.usefixtures("nothing_compiles")
def test_nothing_is_left_however_a_pass_is_left(dataset: Path, placement: str, leave: str) -> None:
    workers = 1 if leave == "drop" else 0
    options = {"placement": placement, "workers": workers}
    take(make(dataset, **options))  # what is only ever loaded once
    before = held()
    loader = make(dataset, **options)
    if leave == "break":
        take(loader, 1)
    elif leave == "raise":
        with pytest.raises(KeyError):
            _raise_in(loader)
    elif leave == "drop":
        half_way = iter(loader)
        next(half_way)
        del half_way
    else:
        other = make(dataset, **options)
        pairs = list(zip(loader, other, strict=True))
        assert all(torch.equal(a, b) for (a, _), (b, _) in pairs)
        del other, pairs
    assert GradientState().active_dataloader is None
    del loader
    # Not equal: what feeds a DataLoader's process may have been ending still when `before` was counted.
    assert comes_true(lambda: all(now <= then for now, then in zip(held(), before, strict=True))), (held(), before)


def _raise_in(loader: Loader) -> None:
    for _ in loader:
        raise KeyError


def test_batch_memory_is_taken_again_only_when_nobody_holds_it(dataset: Path) -> None:
    opened = open_dataset(dataset)
    loader = Loader(opened, 4, augment=Augment(dtype=torch.uint8), shuffle=False)
    first, second, third, _ = (images for images, _ in loader)
    view = first[0]
    kept = view.clone()
    del first
    for _ in range(3):
        for images, _ in loader:
            images.fill_(7)
    assert torch.equal(view, kept)
    assert not torch.equal(second, third)
