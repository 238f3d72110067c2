import gc
import json
from pathlib import Path

import pytest
import torch
import torchvision.transforms.v2 as v2
from accelerate import Accelerator
from accelerate.state import GradientState, PartialState

from fastload import Augment, Loader, open_dataset
from fastload.errors import ConfigError, PlacementError
from tests.conftest import launch, num_threads


@pytest.fixture(autouse=True)
def _no_accelerate_left():  # type: ignore[no-untyped-def]
    yield
    GradientState._reset_state()
    PartialState._reset_state()


def ids_of(loader: Loader) -> list[int]:
    seen: list[int] = []
    for _ in loader:
        seen += loader.batch_ids[: loader.num_valid].tolist()
    return seen


def test_images_and_labels_are_those_of_the_dataset(dataset: Path) -> None:
    opened = open_dataset(dataset)
    loader = Loader(opened, 4, shuffle=False)
    assert len(loader) == 4
    batches = list(loader)
    assert [len(b[0]) for b in batches] == [4, 4, 4, 1]
    images = torch.cat([b[0] for b in batches])
    expected = torch.stack([opened[i][0] for i in range(13)]).permute(0, 3, 1, 2) / 255
    assert torch.allclose(images, expected, atol=1e-6)
    assert torch.equal(torch.cat([b[1] for b in batches]), opened.labels)


@pytest.mark.parametrize("placement", ["host", "mapped"])
def test_every_placement_gives_the_same_batches(dataset: Path, placement: str) -> None:
    opened = open_dataset(dataset)
    augment = Augment([v2.RandomResizedCrop(9), v2.RandomHorizontalFlip()])
    stored = torch.stack([opened[i][0] for i in range(13)])
    loader = Loader(opened, 3, augment=augment, placement=placement, seed=5)  # type: ignore[arg-type]
    assert loader.placement.kind == placement
    for images, labels in loader:
        ids = loader.batch_ids
        assert torch.equal(images, augment(stored[ids], ids=ids, epoch=0, seed=5))
        assert torch.equal(labels, opened.labels[ids])


@pytest.mark.gpu
@pytest.mark.parametrize("placement", ["gpu", "host", "mapped"])
def test_on_a_gpu_the_batches_are_those_of_the_cpu(dataset: Path, placement: str) -> None:
    opened = open_dataset(dataset)
    augment = Augment([v2.RandomCrop(17, padding=2), v2.RandomHorizontalFlip()])
    expected = list(Loader(opened, 3, augment=augment, device="cpu", seed=5))
    got = list(Loader(opened, 3, augment=augment, device="cuda", placement=placement, seed=5))  # type: ignore[arg-type]
    for (a, la), (b, lb) in zip(expected, got, strict=True):
        assert b.device.type == lb.device.type == "cuda"
        assert torch.allclose(a, b.cpu(), atol=1e-6)
        assert torch.equal(la, lb.cpu())


@pytest.mark.gpu
def test_on_a_gpu_a_share_is_what_the_cpu_holds(dataset: Path) -> None:
    opened = open_dataset(dataset)
    for rank in range(2):
        options = {"placement": "gpu_sharded", "augment": Augment(dtype=torch.uint8), "rank": rank, "world_size": 2}
        on_cpu, on_gpu = (Loader(opened, 3, device=device, **options) for device in ("cpu", "cuda"))  # type: ignore[arg-type]
        for _ in range(3):
            for (a, la), (b, lb) in zip(on_cpu, on_gpu, strict=True):
                assert b.device.type == lb.device.type == "cuda"
                assert torch.equal(a, b.cpu())
                assert torch.equal(la, lb.cpu())


def test_an_epoch_sees_every_sample_once_in_a_new_order(dataset: Path) -> None:
    loader = Loader(open_dataset(dataset), 4, drop_last=False)
    first, second = ids_of(loader), ids_of(loader)
    assert sorted(first) == sorted(second) == list(range(13))
    assert first != second
    loader.set_epoch(0)
    assert ids_of(loader) == first
    assert ids_of(Loader(open_dataset(dataset), 4, drop_last=False, seed=1)) != first


def test_training_drops_the_partial_step_and_evaluation_does_not(dataset: Path) -> None:
    opened = open_dataset(dataset)
    assert len(Loader(opened, 4)) == 3
    assert len(Loader(opened, 4, shuffle=False)) == 4


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_an_epoch_and_draw_alike(dataset: Path, world_size: int) -> None:
    opened = open_dataset(dataset)
    augment = Augment(v2.RandomCrop(11))

    def pixels(batch: int, rank: int | None, world: int | None) -> dict[int, torch.Tensor]:
        loader = Loader(opened, batch, augment=augment, drop_last=False, rank=rank, world_size=world)
        found = {}
        for images, _ in loader:
            found.update(dict(zip(loader.batch_ids[: loader.num_valid].tolist(), images, strict=False)))
        return found

    alone = pixels(5, None, None)
    shares = [pixels(2, rank, world_size) for rank in range(world_size)]
    assert sorted(i for share in shares for i in share) == list(range(13))
    for share in shares:
        for i, image in share.items():
            assert torch.equal(image, alone[i])


def test_batches_belong_to_the_caller(dataset: Path) -> None:
    loader = Loader(open_dataset(dataset), 4, shuffle=False)
    kept = list(loader)
    copies = [images.clone() for images, _ in kept]
    for images, _ in loader:
        images.zero_()
    assert all(torch.equal(a, b) for (a, _), b in zip(kept, copies, strict=True))
    assert torch.equal(next(iter(loader))[0], copies[0]), "writing to a batch changed the dataset"


# --- resuming ---


@pytest.mark.parametrize("stop", [1, 2])
def test_resuming_gives_exactly_the_batches_that_were_to_come(dataset: Path, stop: int) -> None:
    opened, augment = open_dataset(dataset), Augment(v2.RandomCrop(9))
    whole = Loader(opened, 4, augment=augment, seed=2)
    whole.set_epoch(3)
    expected = [images for images, _ in whole] + [images for images, _ in whole]

    stopped = Loader(opened, 4, augment=augment, seed=2)
    stopped.set_epoch(3)
    got = []
    for step, (images, _) in enumerate(stopped, start=1):
        got.append(images)
        if step == stop:
            state = json.loads(json.dumps(stopped.state_dict()))
            break
    resumed = Loader(opened, 4, augment=augment, seed=2)
    resumed.load_state_dict(state)
    got += [images for images, _ in resumed] + [images for images, _ in resumed]
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_between_epochs_another_batch_size_may_go_on(dataset: Path) -> None:
    opened = open_dataset(dataset)
    loader = Loader(opened, 4)
    ids_of(loader)
    other = Loader(opened, 3, drop_last=False)
    other.load_state_dict(loader.state_dict())
    assert other.epoch == 1
    next(iter(loader))
    with pytest.raises(ConfigError, match="global_batch"):
        other.load_state_dict(loader.state_dict())


@pytest.mark.parametrize("change", [{"seed": 9}, {"dataset": "x"}, {"version": 2}, {"split": "valid"}])
def test_a_state_of_something_else_is_refused(dataset: Path, change: dict[str, object]) -> None:
    loader = Loader(open_dataset(dataset), 4)
    with pytest.raises(ConfigError, match=next(iter(change))):
        loader.load_state_dict({**loader.state_dict(), **change})


def test_a_pass_that_was_left_early_is_not_repeated(dataset: Path) -> None:
    loader = Loader(open_dataset(dataset), 4)
    next(iter(loader))
    first = loader.batch_ids
    next(iter(loader))
    assert loader.epoch == 1
    assert not torch.equal(loader.batch_ids, first)


# --- Accelerate ---


def test_prepare_leaves_it_alone_and_metrics_are_exact(dataset: Path) -> None:
    accelerator = Accelerator(cpu=True)
    loader = Loader(open_dataset(dataset), 5, shuffle=False)
    assert accelerator.prepare(loader) is loader
    gathered = []
    for _, labels in loader:
        gathered += accelerator.gather_for_metrics(labels).tolist()
        assert accelerator.gradient_state.end_of_dataloader == (len(gathered) == 13)
    assert gathered == loader.dataset.labels.tolist()


def test_accumulation_synchronizes_on_the_last_step(dataset: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = accelerator.prepare(torch.nn.Linear(1, 1))
    synchronized = []
    for _ in Loader(open_dataset(dataset), 5, shuffle=False):  # three steps
        with accelerator.accumulate(model):
            synchronized.append(accelerator.sync_gradients)
    assert synchronized == [False, True, True]


def test_evaluation_nested_in_training_leaves_the_outer_loader_active(dataset: Path) -> None:
    state = GradientState()
    outer, inner = Loader(open_dataset(dataset), 5), Loader(open_dataset(dataset, "valid"), 3, shuffle=False)
    for _ in outer:
        assert state.active_dataloader is outer
        for _ in inner:
            assert state.active_dataloader is inner
        assert state.active_dataloader is outer
    assert state.active_dataloader is None


@pytest.mark.parametrize("leave", ["break", "raise"])
def test_leaving_early_leaves_nothing_behind(dataset: Path, leave: str) -> None:
    state, threads = GradientState(), num_threads()
    loader = Loader(open_dataset(dataset), 4)

    def consume() -> None:
        for _ in loader:
            if leave == "raise":
                raise KeyError
            break

    if leave == "raise":
        with pytest.raises(KeyError):
            consume()
    else:
        consume()
    gc.collect()
    assert state.active_dataloader is None
    assert num_threads() == threads


def test_state_is_saved_with_the_accelerator(dataset: Path, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    loader = Loader(open_dataset(dataset), 4)
    accelerator.register_for_checkpointing(loader)
    next(iter(loader))
    accelerator.save_state(str(tmp_path / "state"))
    expected = loader.state_dict()
    loader.set_epoch(7)
    accelerator.load_state(str(tmp_path / "state"))
    assert loader.state_dict() == expected


@pytest.mark.processes
def test_processes_see_disjoint_samples_and_gather_each_once(dataset: Path, tmp_path: Path) -> None:
    done = launch("tests.gathering_ranks", dataset, tmp_path, env={"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr
    for world_size in (2, 3):
        ranks = [json.loads((tmp_path / f"{world_size}/{rank}.json").read_text()) for rank in range(world_size)]
        assert [r["world_size"] for r in ranks] == [world_size] * world_size
        for split, count in (("train", 12), ("valid", 7)):  # of 13 whole steps of 4 or of 6; evaluation keeps all
            seen = [i for r in ranks for i in r[split]]
            assert len(seen) == len(set(seen)) == count
            assert all(sorted(r[f"{split}_gathered"]) == sorted(seen) for r in ranks)
        # In the order of the file, though three ranks pad their last step with whole batches of nothing.
        assert all(r["valid_gathered"] == list(range(7)) for r in ranks)


# --- what is refused ---


def test_wrong_arguments(dataset: Path) -> None:
    opened = open_dataset(dataset)
    with pytest.raises(ConfigError, match="13 samples"):
        Loader(opened, 14)
    with pytest.raises(ConfigError, match="batch_size=0"):
        Loader(opened, 0)
    with pytest.raises(ConfigError, match="go together"):
        Loader(opened, 4, rank=0)
    with pytest.raises(ConfigError, match="rank=2"):
        Loader(opened, 4, rank=2, world_size=2)
    with pytest.raises(ConfigError, match="placement"):
        Loader(opened, 4, placement="floppy")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="epoch"):
        Loader(opened, 4).set_epoch(-1)
    with pytest.raises(ConfigError, match="too few for 13 ranks"):
        Loader(opened, 1, placement="gpu_sharded", device="cpu", rank=0, world_size=13)
    with pytest.raises(ConfigError, match="reshuffle_every=0"):
        Loader(opened, 1, placement="gpu_sharded", device="cpu", reshuffle_every=0)
    with pytest.raises(ConfigError, match="workers=-1"):
        Loader(opened, 1, placement="folder", workers=-1)
    with pytest.raises(PlacementError, match="needs a GPU"):
        Loader(opened, 4, placement="gpu", device="cpu")


def test_processes_that_do_not_know_of_each_other_are_refused(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one of 2"):
        Loader(open_dataset(dataset), 4)
    assert Loader(open_dataset(dataset), 4, rank=1, world_size=2).rank == 1
