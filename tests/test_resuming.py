"""Runs that were killed and go on, phases, and two ranks: each in processes of its own."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision.transforms.v2 as T
from safetensors import safe_open
from safetensors.torch import load_file

from fastload import Augment, Loader, TrainConfig, Trainer, open_dataset
from fastload.checkpoint import write_tensors
from fastload.devices import leave_group
from fastload.errors import CheckpointError, exit_with
from fastload.phases import Phase
from fastload.resuming import find_state, settings_of
from tests.conftest import launch
from tests.train_ranks import network

pytestmark = pytest.mark.usefixtures("no_accelerate_left")


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, object]]]:
    """Where the runs lie, `alone` and in two `ranks`, and what those alone came to."""
    out = tmp_path_factory.mktemp("trained")
    done = launch("tests.forked_training", dataset, out, timeout=280)  # of two tests
    assert done.returncode == 0, done.stderr
    return out, json.loads((out / "alone.json").read_text())


@pytest.mark.processes
def test_a_killed_run_goes_on_to_the_very_same_weights(trained: tuple[Path, dict[str, dict[str, object]]]) -> None:
    out, outcomes = trained
    killed, whole = dict(outcomes["killed"]), dict(outcomes["whole"])
    assert killed.pop("kills") == 5
    assert whole.pop("kills") == 0
    assert killed == whole
    for name in ("last", "best"):
        one, other = ((out / "alone" / run / f"{name}.safetensors").read_bytes() for run in ("killed", "whole"))
        assert one == other
    # What trains in the end moved; the head alone did in the first phase.
    assert len(whole["figures"]) == 3


@pytest.mark.processes
def test_two_ranks_stay_the_same_when_layers_unfreeze_and_count_every_sample_once(
    dataset: Path, trained: tuple[Path, dict[str, dict[str, object]]], tmp_path: Path
) -> None:
    ranks = trained[0] / "ranks"
    mine, theirs = (load_file(ranks / f"{rank}.safetensors") for rank in range(2))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(mine["labels"], open_dataset(dataset, "valid").labels)
    # The same by one process, of the same weights.
    model = network()
    model.load_state_dict({name.removeprefix("model."): t for name, t in mine.items() if name.startswith("model.")})
    trainer = Trainer(TrainConfig(device="cpu", output=tmp_path / "one"))
    loader = Loader(open_dataset(dataset, "valid"), 7, augment=Augment([]), shuffle=False)
    outputs, _ = trainer.predict(model, loader)
    torch.testing.assert_close(mine["outputs"], outputs)
    found = trainer.evaluate(model, loader)
    assert mine["figures"].tolist() == pytest.approx([found.loss, found.accuracy, 7], abs=1e-6)
    assert torch.equal(mine["confusion"], found.confusion)
    last = [(ranks / run / "last.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert last[0] == last[1]


class StopHereError(Exception):
    """Stands for a kill: nothing is caught on the way."""


def in_phases(dataset: Path, output: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    """Train on images of three sizes, each from loaders of its own; return the weights and figures."""
    resume = (output / "state.safetensors").exists()
    trainer = Trainer(TrainConfig(
        device="cpu", output=output, lr=0.05, resume=resume, save_every_steps=1, log_with=None, max_steps=99,
    ))  # fmt: skip

    def loaders(size: int, *, folder: bool = False) -> dict[str, Loader]:
        train, valid = (open_dataset(dataset, split) for split in ("train", "valid"))
        # Validation that draws, too: it is keyed on the epoch like all else.
        augment = [Augment([T.RandomResizedCrop(size), T.RandomHorizontalFlip()]) for _ in range(2)]
        if folder:  # DataLoader draws a number of torch's own generator whenever a pass begins
            train, valid = Pixels(train), Pixels(valid)
        options = {"workers": 0} if folder else {}
        return {"train": Loader(train, 4, augment=augment[0], **options),
                "valid": Loader(valid, 4, augment=augment[1], shuffle=False, **options)}  # fmt: skip

    model, batches = network(), 0

    def at_batch(module: torch.nn.Module, _: object) -> None:
        nonlocal batches
        batches += module.training
        if batches == stop_at and module.training:
            raise StopHereError

    model.register_forward_pre_hook(at_batch)
    phases = [Phase("small", 1, **loaders(8)), Phase("all", 1, lr=0.02), Phase("last", 1, **loaders(6, folder=True))]
    result = trainer.fit(model, *loaders(12).values(), phases=phases)
    figures = [[e.valid_loss or 0, e.accuracy or 0, e.train_loss] for e in result.epochs]
    return {**model.state_dict(), "figures": torch.tensor(figures)}


class Pixels(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """A map-style dataset of somebody else's."""

    def __init__(self, dataset: torch.utils.data.Dataset[tuple[torch.Tensor, int]]) -> None:
        self._dataset, self.targets = dataset, dataset.labels.tolist()  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._dataset[index]


@pytest.mark.processes
def test_ranks_end_without_being_torn_down_by_what_they_reduce() -> None:
    done = launch("tests.leaving_ranks")
    assert done.stdout.split() == ["0", "0"], done.stderr


def test_a_rank_that_failed_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append(True))
    monkeypatch.delattr(sys, "last_value", raising=False)
    leave_group()
    assert len(left) == 1

    def program() -> None:
        raise CheckpointError("nothing could be written.")

    with pytest.raises(SystemExit):
        exit_with(program)
    leave_group()
    assert len(left) == 1


def test_phases_with_loaders_of_their_own_go_on_exactly(dataset: Path, tmp_path: Path) -> None:
    whole = in_phases(dataset, tmp_path / "whole")
    # 3 steps in each of 3 epochs: stopped within the first phase, and where each of the others begins.
    for stop_at in (2, 3, 4):
        with pytest.raises(StopHereError):
            in_phases(dataset, tmp_path / "stopped", stop_at)
    stopped = in_phases(dataset, tmp_path / "stopped")
    assert {name: torch.equal(t, stopped[name]) for name, t in whole.items()} == dict.fromkeys(whole, True)


def fit(
    dataset: Path,
    output: Path,
    model: torch.nn.Module | None = None,
    split: str = "train",
    batch_size: int = 5,
    **config: object,
) -> None:
    trainer = Trainer(
        TrainConfig(**{"device": "cpu", "log_with": None, "max_steps": 99, "output": output, "epochs": 2, **config})
    )  # type: ignore[arg-type]
    trainer.fit(model or network(), Loader(open_dataset(dataset, split), batch_size))


def test_it_does_not_go_on_with_other_settings_or_a_damaged_state(dataset: Path, tmp_path: Path) -> None:
    fit(dataset, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"lr=0\.001, and now it is 0\.002"):
        fit(dataset, tmp_path / "run", lr=0.002, resume=True)
    with pytest.raises(CheckpointError, match=r"saved with data=.*train.*and now it is .*valid"):
        fit(dataset, tmp_path / "run", split="valid", resume=True)
    with pytest.raises(CheckpointError, match=r"steps and batch size=\[\[2, 5\]\], and now it is \[\[3, 4\]\]"):
        fit(dataset, tmp_path / "run", batch_size=4, resume=True)
    before = (tmp_path / "run" / "result.json").read_bytes()
    fit(dataset, tmp_path / "run", resume=True)  # has ended
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    file = tmp_path / "run" / "state.safetensors"
    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["fastload"])
    del about["settings"]["steps and batch size"]  # as older ones
    write_tensors(file, load_file(file), {"fastload": json.dumps(about)})
    fit(dataset, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="another model"):
        fit(dataset, tmp_path / "run", torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1200, 3)), resume=True)
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="begins anew"):
        fit(dataset, tmp_path / "run", resume=True)
    write_tensors(state, {"a": torch.zeros(1)}, {"fastload": json.dumps({"version": 2, "settings": {}})})
    with pytest.raises(CheckpointError, match="version 2"):
        fit(dataset, tmp_path / "run", resume=True)


def test_it_does_not_go_on_with_other_processes_or_where_they_find_different_states(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(dataset, tmp_path / "run")
    alone, loader = Trainer(TrainConfig(device="cpu", output=tmp_path / "run")), Loader(open_dataset(dataset), 5)
    two = SimpleNamespace(num_processes=2, mixed_precision="no", device=torch.device("cuda", 1))
    file, config = tmp_path / "run" / "state.safetensors", TrainConfig(
        device="cpu", log_with=None, max_steps=99, output=tmp_path / "run", epochs=2
    )  # fmt: skip
    phases = [Phase("all", 2)]
    settings = [settings_of(config, accelerator, phases, (loader, None)) for accelerator in (alone.accelerator, two)]
    assert find_state(file, settings[0], alone.accelerator) is not None
    # The other rank has nothing there, or could not read it.
    for theirs in ([0, -1, -1, -1], [1, -1, -1, -1]):

        def gather(own: list[int], device: torch.device, theirs: list[int] = theirs) -> list[list[int]]:
            assert device == two.device
            return [own, theirs]

        monkeypatch.setattr("fastload.resuming.gather_numbers", gather)
        with pytest.raises(CheckpointError, match="where all machines see it"):
            find_state(file, settings[0], two)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="num_processes=1, and now it is 2"):
        find_state(file, settings[1], two)  # type: ignore[arg-type]
