"""What ranks tell each other, over which device: NCCL carries what lies on a GPU, and no two ranks may name one."""

import datetime
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastload import Loader, open_dataset, storing, together
from fastload.stores import shared

ONE, TWO = torch.device("cuda", 1), torch.device("cuda", 2)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("backend", "device", "bound", "expected"),
    [
        ("nccl", ONE, None, ONE),
        ("nccl", ONE, TWO, ONE),
        ("nccl", CPU, TWO, TWO),
        ("nccl", CPU, None, torch.device("cuda", 3)),  # the current one: that of set_device
        ("gloo", ONE, None, CPU),
        ("gloo", CPU, None, CPU),
    ],
)
def test_numbers_go_over_the_loader_s_device(
    monkeypatch: pytest.MonkeyPatch, backend: str, device: torch.device, bound: Any, expected: torch.device
) -> None:
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "group", SimpleNamespace(WORLD=SimpleNamespace(bound_device_id=bound)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert together._carrier(device) == expected


def test_every_word_of_a_loader_names_its_device(monkeypatch: pytest.MonkeyPatch, dataset: Any) -> None:
    """The only rank, which asks as if there were more of them."""
    asked: list[torch.device] = []

    def gather(numbers: list[int], device: torch.device) -> list[list[int]]:
        asked.append(device)
        return [list(numbers)]

    monkeypatch.setattr(storing, "gather_numbers", gather)
    monkeypatch.setattr(shared, "gather_numbers", gather)
    monkeypatch.setattr("fastload.loader.can_talk", lambda world_size: True)
    Loader(open_dataset(dataset), 4, device="cpu", placement="host")
    assert len(asked) == 6  # the placement, whether it is there; mates, descriptor, mapped, filled
    assert set(asked) == {CPU}


def test_a_group_of_one_hears_itself(tmp_path: Any) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1, timeout=datetime.timedelta(seconds=30)
    )
    try:
        assert dist.group.WORLD is not None
        assert hasattr(dist.group.WORLD, "bound_device_id"), "what the backend's group is asked for"
        assert together.gather_numbers([3, -1, 2**62], CPU) == [[3, -1, 2**62]]
    finally:
        dist.destroy_process_group()
