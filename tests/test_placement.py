from pathlib import Path
from unittest import mock

import pytest
import torch

from fastload import devices, placement
from fastload.errors import ConfigError, PlacementError
from fastload.placement import choose

GIB = 2**30
CUDA = torch.device("cuda", 0)


def choose_with(kind: str, need: int, *, gpu: int | None, host: int) -> str:
    with (
        mock.patch.object(placement, "_free_gpu_bytes", return_value=gpu),
        mock.patch.object(placement, "free_host_bytes", return_value=host),
    ):
        return choose(kind, need, "n x HxWx3 uint8", CUDA).kind


@pytest.mark.parametrize(
    ("gpu", "host", "expected"),
    [
        (40 * GIB, 64 * GIB, "gpu"),
        (15 * GIB, 64 * GIB, "host"),  # it would fit, but not beside a model
        (None, 64 * GIB, "host"),
        (None, 11 * GIB, "mapped"),
        (15 * GIB, 11 * GIB, "mapped"),
    ],
)
def test_auto_takes_the_fastest_that_fits(gpu: int | None, host: int, expected: str) -> None:
    assert choose_with("auto", 10 * GIB, gpu=gpu, host=host) == expected


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(PlacementError, match=r'10\.0 GiB .* 8\.0 GiB free\. Use placement="host"'):
        choose_with("gpu", 10 * GIB, gpu=8 * GIB, host=64 * GIB)
    with pytest.raises(PlacementError, match='placement="mapped"'):
        choose_with("gpu", 10 * GIB, gpu=8 * GIB, host=9 * GIB)
    with pytest.raises(PlacementError, match='placement="mapped"'):
        choose_with("host", 10 * GIB, gpu=None, host=9 * GIB)
    with pytest.raises(PlacementError, match="needs a GPU"):
        choose_with("gpu", 1, gpu=None, host=GIB)
    assert choose_with("mapped", 10**15, gpu=None, host=0) == "mapped"


def test_the_control_group_limits_what_is_free() -> None:
    with (
        mock.patch.object(devices, "meminfo_bytes", return_value=64 * GIB),
        mock.patch.object(devices, "_control_groups", return_value=[(8 * GIB, 5 * GIB, 2 * GIB), (20 * GIB, GIB, 0)]),
    ):
        assert devices.free_host_bytes() == 5 * GIB  # page cache gives way


def test_this_machine_has_memory() -> None:
    assert 2**20 < devices.free_host_bytes() <= devices.meminfo_bytes("MemTotal")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cuda:x"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError):
        devices.parse_device(name)


def test_a_group_file_is_read_as_linux_writes_it(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    group = tmp_path / "job"
    group.mkdir()
    for name, text in (("memory.max", "1000"), ("memory.current", "600"), ("memory.stat", "anon 5\ninactive_file 100")):
        (group / name).write_text(text + "\n")
    assert devices.read_groups(group, tmp_path, ("memory.max", "memory.current", "inactive_file")) == [(1000, 600, 100)]
