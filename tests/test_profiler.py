"""fastload.profile and fastload.Profile around real loops; what they read from /proc; what they must never harm."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2 as T

import fastload
from fastload.errors import ConfigError
from fastload.gain import image_files, predicted_rate
from fastload.profiling import WaitMeter, ranks, system, timing
from fastload.profiling.samples import time_samples
from tests.conftest import ROOT, launch, write_folder
from tests.gpu_help import waits_noted

CPU = torch.device("cpu")


class Batches:
    """So many batches, each pass anew; each takes so long."""

    def __init__(self, count: int, seconds: float = 0.0) -> None:
        self.count, self.seconds, self.passes = count, seconds, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.passes += 1
        for number in range(self.count):
            time.sleep(self.seconds)
            yield torch.full((3, 3, 8, 8), float(number)), torch.full((3,), number)


def test_a_profile_changes_nothing_and_reports(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    batches = Batches(30, 0.003)
    seen = []
    with fastload.Profile(batches, device="cpu", name="mine", json=tmp_path / "out.json") as loader:
        assert len(loader) == 30
        assert loader.seconds == 0.003, "what the loader has, its watch has"
        for _ in range(2):
            for _, labels in loader:
                seen.append(int(labels[0]))
    assert seen == [*range(30), *range(30)]
    report = json.loads((tmp_path / "out.json").read_text())
    assert report == json.loads(json.dumps(loader.report))
    assert (report["schema"], report["version"]) == ("fastload-gpu-util", 2)
    (loop,) = report["loops"]
    assert loop["name"] == "mine"
    # Warm-up, of which one is the first of its epoch, and the first of the second.
    assert loop["steps"] == {"count": 56, "warmup": 3, "epoch_starts": 2}
    assert loop["throughput"]["x_replay"] is None
    assert loop["gpu"] == {"busy_share": None, "nvml": None, "memory_bytes": None}
    assert report["run"]["batch_size"] == 3
    assert report["run"]["size"] == 8
    assert loop["verdict"]["word"] == "INPUT-BOUND"
    said = capsys.readouterr().err
    assert "INPUT-BOUND" in said
    assert "fastload convert FOLDER" in said


def test_replayed_steps_come_between_and_the_loader_runs_once_more() -> None:
    batches, seen = Batches(80, 0.001), []
    with fastload.Profile(batches, device="cpu", replay=True, quiet=True, num_warmup=0) as loader:
        for _, labels in loader:
            seen.append(int(labels[0]))
            time.sleep(0.001)
    assert loader.report is not None
    # Two blocks, each of cached first batches behind twenty steps of the loader's own, in the place of others.
    left_out = {*range(22, 35), *range(55, 68)}
    assert seen == [n if n not in left_out else (n - (22 if n < 35 else 55)) % 4 for n in range(80)]
    (loop,) = loader.report["loops"]
    rates = {name: rate["value"] for name, rate in loop["throughput"].items()}
    assert loop["headspace"] == pytest.approx(1 - rates["x_real"] / rates["x_replay"], abs=1e-4)
    assert batches.passes == 2
    # Behind each block the step itself and two of the loader's do not count; nor does the very first.
    assert loop["steps"]["count"] == 80 - 2 * 13 - 1 - 2 * 2


@pytest.mark.parametrize(("count", "epochs", "is_replayed"), [(9, 1, False), (30, 1, True), (9, 8, True)])
def test_a_loop_has_as_many_steps_as_its_schedule(count: int, epochs: int, is_replayed: bool) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=count * epochs)
    with fastload.Profile(Batches(count), device="cpu", replay=True, quiet=True) as loader:
        for _ in range(epochs):
            for _ in loader:
                time.sleep(0.001)
                optimizer.step()
                schedule.step()  # raises beyond its last step
    assert schedule.last_epoch == count * epochs
    assert loader.report is not None
    assert (loader.report["loops"][0]["throughput"]["x_replay"] is not None) == is_replayed


def test_a_generator_has_no_second_pass_and_needs_none() -> None:
    def batches() -> Iterator[torch.Tensor]:
        yield from torch.zeros(50, 2, 3)

    with fastload.Profile(batches(), device="cpu", replay=True, quiet=True) as loader:
        assert sum(1 for _ in loader) == 50
    assert loader.report is not None
    assert loader.report["loops"][0]["throughput"]["x_load"] is None


def test_a_loader_that_gives_no_step_to_count_is_not_gone_through_again_and_again() -> None:
    batches = Batches(1)
    with fastload.Profile(batches, device="cpu", replay=True, quiet=True) as loader:
        assert len(list(loader)) == 1
    assert batches.passes == 2
    assert loader.report is not None
    assert loader.report["loops"][0]["throughput"]["x_load"] is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_in_the_loop_passes_on_behind_the_report(
    error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    loader = fastload.Profile(Batches(50, 0.001), device="cpu", replay=True)

    def loop() -> None:
        with loader:
            for number, _ in enumerate(loader):
                if number == 40:
                    raise error

    with pytest.raises(error):
        loop()
    assert loader.report is not None
    assert loader.report["loops"][0]["steps"]["count"] > 20
    assert loader.report["loops"][0]["throughput"]["x_load"] is None, "nothing more is run after an error"
    assert "INPUT-BOUND" in capsys.readouterr().err


@pytest.mark.processes
def test_ctrl_c_gives_the_report_so_far_and_the_exit_code_of_ctrl_c() -> None:
    script = (
        "import os, signal, time, torch, fastload\n"
        "batches = [torch.zeros(2, 3)] * 100\n"
        "for n, x in enumerate(fastload.profile(batches, device='cpu')):\n"
        "    time.sleep(0.002)\n"
        "    if n == 40: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -2
    assert "KeyboardInterrupt" in done.stderr
    assert "NOT INPUT-BOUND" in done.stderr


@pytest.mark.parametrize(
    "broken", ["_HostClock.data_arrived", "_HostClock.step_ends", "_HostClock.finished", "SystemMeter.tick"]
)
def test_a_profiler_that_fails_harms_no_loop(
    broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of order")

    owner = system if broken.startswith("SystemMeter") else timing
    *classes, name = broken.split(".")
    monkeypatch.setattr(getattr(owner, classes[0]) if classes else owner, name, fail)
    with fastload.Profile(Batches(30), device="cpu", replay=True) as loader:
        seen = [int(labels[0]) for _, labels in loader]
    assert len(seen) == 30
    assert seen[:20] == list(range(20))
    assert "out of order" in capsys.readouterr().err


def test_a_batch_that_cannot_be_counted_harms_no_loop() -> None:
    class Odd(dict[str, torch.Tensor]):
        def values(self) -> Any:
            raise RuntimeError("out of order")

    odd = [Odd() for _ in range(30)]
    with fastload.Profile(odd, device="cpu", quiet=True) as loader:
        assert [batch is other for batch, other in zip(loader, odd, strict=True)] == [True] * 30
    assert loader.report is not None


def test_arguments_that_cannot_be_right() -> None:
    with pytest.raises(ConfigError, match="images per second"):
        fastload.Profile([], assume_gpu_rate=0)
    with pytest.raises(ConfigError, match="not known"):
        fastload.profile([], device="tpu?")


def test_ranks_find_each_other_by_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks.tempfile, "gettempdir", lambda: str(tmp_path))
    reports = [
        {"run": {"num_ranks": 1}, "loops": [{"rank": r, "wait": {"share": 0.1 * r}}], "verdict": r} for r in range(3)
    ]
    others = [threading.Thread(target=ranks.gather, args=(reports[r], r, 3, "test")) for r in (2, 1)]
    for other in others:
        other.start()
    merged = ranks.gather(reports[0], 0, 3, "test")
    for other in others:
        other.join()
    assert merged is not None
    assert [loop["rank"] for loop in merged["loops"]] == [0, 1, 2]
    assert merged["verdict"] == 2
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.iterdir())
    # What a run before this one left, of the same parent and port, is none of its own.
    for name, text in (("test-1.json", json.dumps(reports[1])), ("test-1.pid", str(os.getpid()))):
        ranks._leave(name, text)
        os.utime(ranks._folder() / name, (time.time() - 9,) * 2)  # type: ignore[operator]
    monkeypatch.setattr(ranks, "WAIT_SECONDS", 0.1)
    merged = ranks.gather(reports[0], 0, 2, "test", time.time())
    assert merged is not None
    assert [loop["rank"] for loop in merged["loops"]] == [0]
    assert not list(tmp_path.iterdir())
    # Ranks of another node have no way to the first one, and leave it nothing.
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert ranks.gather(reports[2], 2, 3, "test") is None
    assert not list(tmp_path.iterdir())
    assert ranks.current({"RANK": "2", "WORLD_SIZE": "4"}) == (2, 4)
    assert ranks.current({"RANK": "x", "WORLD_SIZE": "4"}) == ranks.current({}) == (0, 1)


@pytest.mark.processes
def test_the_slow_rank_of_two_is_waited_for_and_loops_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    done = launch("tests/profiled_ranks.py", tmp_path, env={"TMPDIR": str(tmp_path / "tmp")})
    assert done.returncode == 0, done.stderr
    assert "did not come" not in done.stderr
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [[True] * 2, [False] * 2]
    for name in ("train", "valid"):
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert report["run"]["num_ranks"] == 2
        assert [(loop["name"], loop["rank"]) for loop in report["loops"]] == [(name, 0), (name, 1)]
        fast, slow = (loop["wait"]["share"] for loop in report["loops"])
        assert slow > fast
    assert not list((tmp_path / "tmp").rglob("*.json"))
    assert not list((tmp_path / "tmp").glob("fastload-*"))


class Slow(torch.utils.data.Dataset[Any]):
    """Samples whose parts take known times, in milliseconds of this process's own clock."""

    def __init__(self, files: list[Path]) -> None:
        self.files, self.transform, self.opened = files, self._transform, 0

    def _transform(self, image: Any) -> Any:
        time.sleep(0.004)
        return image

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        self.opened += 1
        time.sleep(0.012)
        image = Image.open(self.files[index]).convert("RGB")
        return self.transform(torch.rand(3) + random.random() + np.random.random() + image.width)


def test_a_sample_is_split_into_its_parts_and_nothing_is_changed(tmp_path: Path, monkeypatch: Any) -> None:
    files = sorted(write_folder(tmp_path / "insects").rglob("*.jpg"))
    dataset = Slow(files)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    transform, load, opened = dataset.transform, vars(Image)["open"], Image.Image.load
    found = time_samples(torch.utils.data.Subset(dataset, range(10)), collate=list, batch_size=4, count=5)
    assert found is not None
    assert found.count == 5
    assert found.open >= 0.012
    assert found.transform >= 0.004
    assert found.open > found.transform > found.decode > 0
    assert found.collate is not None
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert dataset.transform == transform
    assert (vars(Image)["open"], Image.Image.load) == (load, opened)
    assert dataset.opened == 0, "a copy was asked"
    assert time_samples(iter([])) is None


def test_a_transform_that_decodes_is_not_charged_with_it(tmp_path: Path) -> None:
    side = 1500
    (tmp_path / "0").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0" / "a.jpg")
    lazy = ImageFolder(str(tmp_path), transform=T.Compose([T.CenterCrop(8)]), loader=Image.open)
    found = time_samples(lazy, count=1)
    assert found is not None
    assert found.decode > max(found.transform, found.open)
    assert image_files(torch.utils.data.Subset(lazy, [0])) == [tmp_path / "0" / "a.jpg"]
    assert image_files([1, 2]) == []


@pytest.mark.processes
def test_what_converting_would_give_is_measured_on_the_users_own_images(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "insects", splits=False)
    dataset = ImageFolder(str(folder), T.Compose([T.RandomResizedCrop(16), T.ToImage(), T.ToDtype(torch.float32)]))
    loader = torch.utils.data.DataLoader(dataset, 2, shuffle=True)
    state = torch.get_rng_state()
    with fastload.Profile(loader, device="cpu", replay=True, quiet=True, model="none") as watched:
        for _ in range(6):
            for images, _ in watched:
                time.sleep(0.002)
                assert images.shape[1:] == (3, 16, 16)
    assert watched.report is not None
    gain, loop = watched.report["resident_gain"], watched.report["loops"][0]
    real, replay = (loop["throughput"][name]["value"] for name in ("x_real", "x_replay"))
    assert gain["basis"] == "measured"
    assert gain["num_images"] == 13
    assert gain["memory_bytes"] == 13 * 18 * 18 * 3
    assert 0 < gain["speedup"] < replay / real, "no faster than its ceiling"
    assert loop["sample"]["count"] == 13
    assert f"fastload convert {folder} --size 18" in [a["command"] for a in watched.report["actions"]]
    assert state.tolist() != torch.get_rng_state().tolist(), "six epochs drew their orders"
    assert predicted_rate(100, 100) == 50


def test_on_a_clock_of_its_own_the_next_step_begins_where_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    meter = WaitMeter(CPU)
    for _ in meter.watch([torch.zeros(1)] * 10):
        pass
    found = meter.result()
    assert found.wall_seconds == found.step_ends[-1] - (found.step_ends[0] - found.step_seconds[0])


@pytest.mark.gpu
def test_on_a_gpu_the_wait_is_what_a_spinning_kernel_leaves(tmp_path: Path) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(50_000_000)  # the first launch loads the kernel, and an idle GPU clocks up
    torch.cuda.synchronize()
    begin.record()
    torch.cuda._sleep(50_000_000)
    end.record()
    torch.cuda.synchronize()
    per_second = 50_000_000 / (begin.elapsed_time(end) / 1e3)
    for ratio in (0.5, 2.0, 5.0):
        with fastload.Profile(Batches(100, 0.01 * ratio), device=device, replay=True, quiet=True) as loader:
            for _ in loader:
                torch.cuda._sleep(int(0.01 * per_second))
        assert loader.report is not None
        (loop,) = loader.report["loops"]
        # The host reads on while the kernel spins: what is longer than it is waiting.
        assert loop["wait"]["share"] == pytest.approx(max(0.0, 1 - 1 / ratio), abs=0.03)
        assert loop["headspace"] == pytest.approx(loop["wait"]["share"], abs=0.03)
        assert loop["gpu"]["busy_share"] == pytest.approx(min(1.0, 1 / ratio), abs=0.06)


@pytest.mark.gpu
def test_watching_waits_for_no_gpu(tmp_path: Path) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    meter = WaitMeter(device, num_warmup=2)
    with waits_noted() as waits:
        for _ in meter.watch(Batches(30)):
            torch.cuda._sleep(100_000)
    assert (waits, meter.failure) == ([], None)
    assert meter.result().num_steps == 27


@pytest.mark.gpu
def test_a_step_that_is_captured_is_left_out() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    meter, graph = WaitMeter(device), torch.cuda.CUDAGraph()
    x = torch.zeros(8, device=device)
    batches = meter.watch(Batches(10))
    next(batches)
    with torch.cuda.graph(graph):
        next(batches)
        x += 1
    for _ in batches:
        graph.replay()
    assert meter.failure is None
    assert 5 <= meter.result().num_steps <= 9
