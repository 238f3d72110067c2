"""Checkpoints: what loads into which model, and what is refused."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from fastload.checkpoint import load_matching, load_weights, save_checkpoint, write_tensors
from fastload.errors import CheckpointError
from fastload.files import Draft
from tests.test_train import network


def test_weights_of_another_head_load_without_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", network(7), {})
    model = network(3)
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[union-attr, operator]
    matched = load_matching(model, tmp_path / "a.safetensors")
    assert matched.skipped == ("5.weight", "5.bias")
    assert model[0].weight.abs().sum() > 0  # type: ignore[union-attr, operator, index]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", torch.nn.Linear(4, 4), {})
    with pytest.raises(CheckpointError, match="another model"):
        load_matching(network(), tmp_path / "a.safetensors")


def test_a_pth_file_with_a_state_dict_and_nothing_else(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pth")
    assert load_matching(network(), tmp_path / "a.pth").skipped == ()
    torch.save(network(), tmp_path / "model.pth")  # a pickled module: code
    for name, content in (("no.pth", b"x"), ("no.safetensors", b"x" * 20)):
        (tmp_path / name).write_bytes(content)
    for name in ("model.pth", "no.pth", "no.safetensors", "missing.pth"):
        with pytest.raises(CheckpointError):
            load_weights(tmp_path / name)


def test_a_checkpoint_that_is_stopped_or_that_another_writes_leaves_the_last_one(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"a": torch.zeros(3)})
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with mock.patch("fastload.checkpoint.sync", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        write_tensors(file, {"a": torch.ones(3)})
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    other = Draft(file)
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_tensors(file, {"a": torch.ones(3)})
    other.discard()
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    write_tensors(file, {"a": torch.ones(3)})
    assert load_weights(file)["a"].sum() == 3
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "a.safetensors", network(), {})
