import mmap
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from fastload import devices, memory, open_dataset, placement
from fastload.errors import ConfigError, PlacementError
from fastload.placement import Need, Placement, choose
from fastload.resharding import Holdings
from fastload.shares import Shares
from fastload.storing import Wish, make_store

GIB = 2**30
CUDA = torch.device("cuda", 0)


def choose_with(kind: str, need: int, *, gpu: int | None, host: int) -> str:
    with (
        mock.patch.object(placement, "_free_gpu_bytes", return_value=gpu),
        mock.patch.object(placement, "free_host_bytes", return_value=host),
    ):
        return choose(kind, needing(need), CUDA).kind


def needing(num_bytes: int, world_size: int = 1) -> Need:
    return Need(num_samples=num_bytes, sample_shape=(1,), itemsize=1, batch_size=1, what="n x 1", world_size=world_size)


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
        mock.patch.object(memory, "meminfo_bytes", return_value=64 * GIB),
        mock.patch.object(memory, "_control_groups", return_value=[(8 * GIB, 5 * GIB, 2 * GIB), (20 * GIB, GIB, 0)]),
    ):
        assert memory.free_host_bytes() == 5 * GIB  # page cache gives way


def test_this_machine_has_memory() -> None:
    assert 2**20 < memory.free_host_bytes() <= memory.meminfo_bytes("MemTotal")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cuda:x", "xpu", "meta", "hpu"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError):
        devices.parse_device(name)


def test_a_group_file_is_read_as_linux_writes_it(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    group = tmp_path / "job"
    group.mkdir()
    for name, text in (
        ("memory.max", "1000"),
        ("memory.current", "600"),
        ("memory.stat", "anon 5\ninactive_file 60\nactive_file 40"),
    ):
        (group / name).write_text(text + "\n")
    assert memory.read_groups(group, tmp_path, ("memory.max", "memory.current", "")) == [(1000, 600, 100)]


def test_holes_in_torch_s_segments_are_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 GiB that torch has reserved, 6 are in use, and 3 lie between what is in use."""
    found = {"mem_get_info": (5 * GIB, 20 * GIB), "memory_reserved": 10 * GIB, "memory_allocated": 6 * GIB,
             "memory_stats": {"inactive_split_bytes.all.current": 3 * GIB}}  # fmt: skip
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert placement._free_gpu_bytes(CUDA) == 6 * GIB
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda _: {})  # nothing was taken yet
    assert placement._free_gpu_bytes(CUDA) == 9 * GIB


@pytest.mark.parametrize("kind", ["gpu", "gpu_sharded"])
def test_memory_that_others_took_meanwhile(dataset: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def full(*shape: Any, **options: Any) -> torch.Tensor:
        if options.get("device") == CUDA:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (GIB, 80 * GIB))
    wish = Wish(kind=kind, device=CUDA, batch_size=4, rank=0, world_size=1, together=False, reserve_bytes=None,
                workers=None, cut=None, in_place=False, progress=False)  # fmt: skip
    holdings = Holdings(Shares(num_samples=13, batch_size=4))
    with pytest.raises(PlacementError) as caught:
        make_store(open_dataset(dataset), Placement(kind=kind, reason=""), wish, holdings, None)
    assert str(caught.value) == (
        f'placement="{kind}": cuda:0 has no 15.2 KiB in one piece for the samples (1.0 GiB of 80.0 GiB are free); '
        'use placement="host", or end what else is on that GPU.'
    )


# --- the sum ---

IMAGES = Need(
    num_samples=1_281_167, sample_shape=(224, 224, 3), itemsize=1, batch_size=256, what="1,281,167 x 224x224x3 uint8",
    world_size=8,
)  # fmt: skip


def refused(kind: str, need: Need, *, gpu: int | None, host: int, reserve: int | None = None) -> str:
    with (
        mock.patch.object(placement, "_free_gpu_bytes", return_value=gpu),
        mock.patch.object(placement, "free_host_bytes", return_value=host),
        pytest.raises(PlacementError) as caught,
    ):
        choose(kind, need, CUDA, reserve_bytes=reserve)
    return str(caught.value)


def test_a_share_in_ram_has_to_fit_it() -> None:
    with mock.patch.object(placement, "free_host_bytes", return_value=6 * GIB):
        fitting = choose("gpu_sharded", needing(10 * GIB, world_size=2), torch.device("cpu"))
        assert (
            str(fitting) == "gpu_sharded: 1 of 2 shares of 10.0 GiB (n x 1) and 0.0 KiB of batches, 6.0 GiB free on cpu"
        )
        with pytest.raises(PlacementError, match=r'this process.s RAM has 6\.0 GiB free\. Use placement="mapped"'):
            choose("gpu_sharded", needing(13 * GIB, world_size=2), torch.device("cpu"))


def test_an_error_names_everything_that_would_fit() -> None:
    said = refused("gpu", IMAGES, gpu=121 * GIB, host=512 * GIB)
    assert "179.6 GiB (1,281,167 x 224x224x3 uint8) and 551.2 MiB of batches; cuda:0 has 121.0 GiB free" in said
    assert said.endswith('Use placement="gpu_sharded" or "host", or convert with --size 176 (110.9 GiB).')
    assert refused("host", IMAGES, gpu=None, host=100 * GIB).endswith(
        '"mapped", or convert with --size 160 (91.6 GiB).'
    )
    rows = Need(num_samples=GIB, sample_shape=(4,), itemsize=4, batch_size=1, what="rows")
    assert "--size" not in refused("host", rows, gpu=None, host=GIB)
    for need in (IMAGES, rows):  # more for the model than there is
        said = refused("gpu", need, gpu=8 * GIB, host=512 * GIB, reserve=9 * GIB)
        assert said.endswith('cuda:0 has 0.0 KiB free beside 9.0 GiB for the model. Use placement="host".')


def test_batches_and_the_model_count() -> None:
    need = Need(num_samples=100, sample_shape=(GIB // 100,), itemsize=1, batch_size=10, what="n")
    assert need.working_bytes == 3 * 10 * (GIB // 100) * 5
    assert "for the model" in refused("gpu", need, gpu=3 * GIB, host=0, reserve=GIB)
    with (
        mock.patch.object(placement, "_free_gpu_bytes", return_value=3 * GIB),
        mock.patch.object(placement, "free_host_bytes", return_value=GIB),
    ):
        assert choose("gpu", need, CUDA).kind == "gpu"
        chosen = choose("auto", need, CUDA, reserve_bytes=0)
        assert str(chosen).startswith("gpu: 1024.0 MiB (n) and 1.5 GiB of batches fit cuda:0, 3.0 GiB free, 0.0 KiB")
        chosen = choose("auto", need, CUDA)
        assert chosen.kind == "mapped"
        assert "1.5 GiB of it for the model; they do not fit RAM, 1.0 GiB free" in chosen.reason
    with pytest.raises(ConfigError, match="reserve_bytes"):
        choose("auto", need, CUDA, reserve_bytes=-1)


@pytest.mark.parametrize(
    ("variables", "mib"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4096),
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "3"}, 300),
        ({"SLURM_MEM_PER_GPU": "500", "SLURM_GPUS_ON_NODE": "2", "SLURM_MEM_PER_NODE": "0"}, 1000),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # the whole node
        ({"SLURM_MEM_PER_CPU": "100"}, None),
        ({"SLURM_MEM_PER_NODE": "many"}, None),
    ],
)
def test_what_slurm_grants(variables: dict[str, str], mib: int | None) -> None:
    assert memory.slurm_bytes({"SLURM_JOB_ID": "7", **variables}) == (None if mib is None else mib << 20)
    assert memory.slurm_bytes(variables) is None  # left over from another job


def test_a_slurm_job_counts_what_its_processes_have_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "8192")
    with (
        mock.patch.object(memory, "_job_processes", return_value=[1, 2]),
        mock.patch.object(memory, "_resident_bytes", side_effect=[(GIB, 2 * GIB), (GIB, 3 * GIB)]),
        mock.patch.object(memory, "_control_groups", return_value=[]),
        mock.patch.object(memory, "meminfo_bytes", return_value=64 * GIB),
    ):
        assert memory.free_host_bytes() == 3 * GIB  # both see one copy in shared memory


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_shared_memory_is_told_from_a_process_s_own() -> None:
    before = memory._resident_bytes(os.getpid())
    with mmap.mmap(-1, 32 << 20) as mapping:  # shared, as mmap makes it
        mapping.write(bytes(32 << 20))
        after = memory._resident_bytes(os.getpid())
    assert after[1] - before[1] >= 30 << 20
    assert memory._resident_bytes(-1) == (0, 0)


def test_a_gpu_without_a_number_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate calls its only GPU `cuda`, and tensors call it `cuda:0`: what is there would seem elsewhere."""
    monkeypatch.setattr(devices, "current_device", lambda: torch.device("cuda"))
    for name, value in (("is_available", True), ("current_device", 2), ("device_count", 4)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert devices.parse_device(None) == devices.parse_device("cuda") == torch.device("cuda", 2)
