"""Somebody's own script, watched: the hook in its processes, and `bench gpu-util -- COMMAND` around it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fastload
from bench.script import HOOK, watch, watch_and_say
from fastload.profiling.hook import steps, watcher
from fastload.profiling.hook.records import Found, make_report, read
from fastload.profiling.loops import Measured
from fastload.profiling.timing import WaitMeter
from tests import training_scripts
from tests.conftest import ROOT
from tests.gpu_help import waits_noted
from tests.reports_help import check_report

SCRIPT = ROOT / "tests" / "training_scripts.py"


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, dict[str, object]]]:
    """Watch this very process; return what was written, each loop by its dataset and the number of its samples."""
    dataloader = torch.utils.data.dataloader
    import fastload.loader

    for owner, name in ((DataLoader, "__iter__"), (dataloader._BaseDataLoaderIter, "__next__")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(fastload.loader.Loader, "__iter__", fastload.loader.Loader.__iter__)
    monkeypatch.setenv("FASTLOAD_WATCH_FOLDER", str(tmp_path))
    monkeypatch.setattr(watcher.atexit, "register", lambda call: call)
    monkeypatch.setattr(watcher, "_watcher", None)
    watcher.watch_dataloader(dataloader)
    watcher.watch_fastload(fastload.loader)

    def written() -> dict[str, dict[str, object]]:
        watcher.start().write()
        (process,) = read(tmp_path).processes or [{"loops": []}]
        return {f"{loop['dataset']}{loop['num_samples']}": loop for loop in process["loops"]}

    return written


def data(count: int) -> TensorDataset:
    return TensorDataset(torch.zeros(count, 3))


class Clock:
    """A clock that only moves when told."""

    now = 1.0

    def __call__(self) -> float:
        return self.now


class Slow(TensorDataset):
    def __init__(self, clock: Clock, count: int, seconds: float) -> None:
        super().__init__(torch.zeros(count, 3))
        self.clock, self.seconds = clock, seconds

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        self.clock.now += self.seconds
        return super().__getitem__(index)


Seen = Callable[[], dict[str, dict[str, object]]]


def test_wait_and_wall_are_what_the_clock_says(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    loader = DataLoader(Slow(clock, 21, 1.0), batch_size=2)
    for _ in range(2):
        clock.now += 100.0  # what lies between two passes is no step
        for _ in loader:
            clock.now += 6.0
    (loop,) = seen().values()
    # Of 11 steps each, the first ones do not count; the last one has a single sample; 2 more were warm-up.
    assert loop["totals"]["steps"] == 18
    assert loop["totals"]["seconds"] == pytest.approx(18 * 8.0 - 2)
    assert loop["totals"]["wait_seconds"] == pytest.approx(18 * 2.0 - 2)
    assert loop["totals"]["rows"] == 18 * 2 - 2
    assert loop["starts"] == {"count": 2, "seconds": 16.0, "later_seconds": 8.0, "later_wait_seconds": 2.0}
    assert loop["site"].startswith("test_watching.py:")
    assert loop["passes"] == 2


def test_loops_are_told_apart_by_line_and_dataset_and_a_dataset_made_anew_is_the_same(seen: Seen) -> None:
    loaders = [DataLoader(data(10), batch_size=2) for _ in range(2)]
    for loader in loaders:
        for _ in loader:
            pass
    del loaders, loader
    for _ in range(3):
        pair = [DataLoader(data(14), batch_size=2) for _ in range(2)]
        for loader in pair:
            for _ in loader:
                pass
        del pair, loader
    found = [loop for same in watcher.start().loops.values() for loop in same]
    counted = [(loop.about["num_samples"], loop.about["passes"]) for loop in found]
    assert counted == [(10, 1), (10, 1), (14, 3), (14, 3)]


def test_a_validation_within_an_epoch_is_no_part_of_a_training_step(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    valid = DataLoader(Slow(clock, 30, 1.0), batch_size=2)
    for number, _ in enumerate(DataLoader(Slow(clock, 40, 1.0), batch_size=2)):
        clock.now += 6.0
        if number == 10:
            for _ in valid:
                clock.now += 50.0
    loops = seen()
    assert loops["Slow40"]["totals"]["steps"] == 20 - 3 - 1
    assert loops["Slow40"]["totals"]["seconds"] == pytest.approx(16 * 8.0)


def test_two_loaders_in_turns_feed_one_step(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    loaders = [DataLoader(Slow(clock, count, 1.0), batch_size=2) for count in (40, 41)]
    for _ in zip(*loaders, strict=False):
        clock.now += 6.0
    for loop in seen().values():
        assert loop["totals"]["seconds"] / loop["totals"]["steps"] == pytest.approx(10.0)
        assert loop["totals"]["wait_seconds"] / loop["totals"]["steps"] == pytest.approx(4.0)


def test_an_iterator_kept_after_its_first_batch_gathers_nothing(seen: Seen) -> None:
    first_look = iter(DataLoader(data(40), batch_size=2))
    next(first_look)  # as in many a tutorial, to look at one batch
    for _ in DataLoader(data(41), batch_size=2):
        pass
    (kept,) = watcher.start()._open
    assert kept.step is None or kept.step.others == []
    assert seen()["TensorDataset41"]["totals"]["steps"] == 21 - 3


class Outer(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch, *_ in DataLoader(data(60), batch_size=3):
            yield from batch


def test_of_nested_loaders_the_outer_one_counts(seen: Seen) -> None:
    assert len(list(DataLoader(Outer(), batch_size=2))) == 30
    loops = seen()
    assert loops["OuterNone"]["totals"]["steps"] == 27
    assert loops["TensorDataset60"]["totals"]["steps"] == 0


@pytest.mark.parametrize(("name", "whole"), [("train", "a b"), ("flowers", "flowers")])
def test_the_folder_to_convert_is_the_one_that_holds_the_splits(
    seen: Seen, tmp_path: Path, name: str, whole: str
) -> None:
    samples = TensorDataset(torch.zeros(60, 3, 4, 4))
    samples.root = str(tmp_path / "a b" / name)
    for _ in DataLoader(torch.utils.data.Subset(samples, range(50)), batch_size=2):
        pass
    assert seen()["Subset50"]["root"] == samples.root
    report = make_report(read(tmp_path), {}, Measured()).as_dict()
    check_report(report)
    assert (report["run"]["data"], report["run"]["batch_size"]) == (whole, 2)
    assert f"fastload convert '{tmp_path}/a b" in report["actions"][0]["command"]
    assert report["actions"][0]["command"].endswith(f"{whole}' --size 5")


def test_iterators_stay_what_they_are_and_one_that_is_left_keeps_nothing(seen: Seen) -> None:
    loader = DataLoader(data(30), batch_size=2)
    iterator = iter(loader)
    assert isinstance(iterator, torch.utils.data.dataloader._SingleProcessDataLoaderIter)
    assert len(iterator) == 15
    next(iterator)
    assert len(watcher.start()._open) == 1
    del iterator
    assert len(watcher.start()._open) == 0


@pytest.mark.parametrize("broken", ["pass_begins", "step_begins", "next_returned", "write"])
def test_a_mistake_of_the_watcher_is_told_and_the_loop_goes_on(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dataset: Path, broken: str
) -> None:
    def fails(*values: object, **named: object) -> None:
        raise RuntimeError("broken")

    name = {"write": "_as_dict"}.get(broken, broken)
    with monkeypatch.context() as patch:
        patch.setattr(watcher.Watcher, name, fails)
        assert len(list(DataLoader(data(30), batch_size=2))) == 15
        loader = fastload.Loader(fastload.open_dataset(dataset), 2, device="cpu", placement="mapped")
        assert len(list(loader)) == len(loader)
        assert len(list(loader)) == len(loader)
    assert watcher.start().error == "RuntimeError: broken"
    watcher.start().write()
    assert read(tmp_path).failures == ("RuntimeError: broken",)


def test_fastloads_own_loader_is_watched_and_its_hook_is_left_as_it_was(seen: Seen, dataset: Path) -> None:
    loader = fastload.Loader(fastload.open_dataset(dataset), 2, device="cpu", placement="folder", workers=0)
    called = []
    loader.on_device_work = before = lambda: called.append(1)
    for most in (100, 1):
        for number, _ in enumerate(loader, 1):
            if number == most:
                break
        assert loader.on_device_work is before
    assert len(called) == len(loader) + 1
    # A meter of the script's own sets the same hook, before the first batch, and clears it when it is left.
    loader.on_device_work = None
    for _ in WaitMeter(torch.device("cpu")).watch(loader):
        break
    assert loader.on_device_work is None
    loops = seen()
    assert {loop["loader"] for loop in loops.values()} == {"Loader"}, "what it reads through is its own"
    assert {loop["placement"] for loop in loops.values()} == {"folder"}
    found = [loop for same in watcher.start().loops.values() for loop in same]
    assert [loop.about["passes"] for loop in found] == [2, 1]


def test_a_long_run_keeps_few_rows_and_all_sums(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MAX_ROWS", 16)
    for _ in DataLoader(data(203), batch_size=2):
        pass
    (loop,) = seen().values()
    assert loop["totals"]["steps"] == 99
    assert 8 <= len(loop["rows"]) < 16
    begins = [row[0] for row in loop["rows"]]
    assert begins == sorted(begins)
    process = {"pid": 1, "rank": 0, "began": 0.0, "device": "cpu", "gpu_memory_bytes": None, "loops": [loop],
               "python": "3", "torch": "2"}  # fmt: skip
    report = make_report(Found(processes=(process,), num_started=1, failures=()), {}, Measured()).as_dict()
    check_report(report)
    assert report["loops"][0]["steps"]["count"] == 99
    assert report["loops"][0]["step_seconds"]["mean"] == pytest.approx(loop["totals"]["seconds"] / 99, rel=1e-4)


@pytest.mark.gpu
def test_on_a_gpu_its_own_time_counts_and_nothing_is_synchronized(seen: Seen) -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    for count, seconds, low, high in ((50, 0.0, 0.0, 0.1), (51, 0.05, 0.5, 1.0)):
        loader = DataLoader(training_scripts.Slow(count, seconds), batch_size=2)
        for _ in loader:
            for _ in range(10):
                matrix @ matrix
        torch.cuda.synchronize()
        loop = seen()[f"Slow{count}"]
        assert low <= loop["totals"]["wait_seconds"] / loop["totals"]["seconds"] <= high
    events = len(watcher.start()._clock._pool)
    assert events < 200, "events go back to their pool"
    with waits_noted() as waits:
        for _ in DataLoader(data(60), batch_size=2):
            matrix @ matrix
    assert (waits, watcher.start().error) == ([], None)


def python(*words: str, folder: Path | None, paths: list[Path] | None = None) -> subprocess.CompletedProcess[str]:
    """Run this Python with the hook, without torch."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FASTLOAD"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [HOOK, *(paths or [])]))
    if folder is not None:
        environment["FASTLOAD_WATCH_FOLDER"] = str(folder)
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.processes
def test_the_hook_hands_on_to_the_sitecustomize_that_it_hides(tmp_path: Path) -> None:
    own, folder = tmp_path / "own", tmp_path / "watched"
    own.mkdir()
    folder.mkdir()
    (own / "sitecustomize.py").write_text("import sys\nsys.their_own = __name__\nMARK = 5\n")
    shows = (
        "import sys, sitecustomize; "
        "print(sys.their_own, sitecustomize.MARK, [p for p in sys.path if p.endswith('hook')])"
    )
    done = python("-c", shows, folder=folder, paths=[own])
    assert (done.stdout, done.stderr) == ("sitecustomize 5 []\n", "")
    assert len(list(folder.iterdir())) == 1
    (own / "sitecustomize.py").write_text("raise ValueError('theirs')\n")
    broken = python("-c", "print(1)", folder=folder, paths=[own])
    assert broken.stdout == "1\n"
    assert "theirs" in broken.stderr
    # Without a folder to write to, and isolated, nothing happens.
    assert python("-c", "print(1)", folder=None).stderr == ""
    assert python("-I", "-c", "print(1)", folder=folder).stdout == "1\n"
    assert len(list(folder.iterdir())) == 2
    assert python("-c", "import sys; print('typing' in sys.modules)", folder=folder).stdout == "False\n"


def said_plainly(words: list[str]) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        training_scripts.main(words)
    return out.getvalue()


@pytest.mark.processes
def test_training_scripts_of_all_styles_print_the_same_and_are_seen(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["torchvision:0", "torchvision:2", "timm:0", "timm:2", "notes:0", "notes:2:fork"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    report, code, failures = watch([sys.executable, str(SCRIPT), *words])
    captured = capfd.readouterr()
    assert (code, failures, captured.err) == (0, (), "")
    assert captured.out == said_plainly(words)
    content = report.as_dict()
    check_report(content)
    assert content["run"]["entry"] == "hook"
    # Two runs of each style, from the same lines: with 0 and with 2 workers, whose datasets are others.
    kinds = sorted(re.sub(r"^\S+ | #\d+$", "", loop["name"]) for loop in content["loops"])
    assert kinds == [*["Images (50)"] * 2, "Slow (12)", *["Slow (40)"] * 4, *["Slow (61)"] * 2]
    assert all(loop["wait"]["share"] is None or 0 < loop["wait"]["share"] < 1 for loop in content["loops"])


@pytest.mark.processes
def test_ranks_of_torchrun_are_one_report_about_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    report, code, failures = watch([sys.executable, *torchrun, str(SCRIPT), "ranks"])
    assert (code, failures) == (0, ())
    content = report.as_dict()
    check_report(content)
    assert content["run"]["num_ranks"] == 2
    assert [loop["rank"] for loop in content["loops"]] == [0, 1]
    shares = [loop["wait"]["share"] for loop in content["loops"]]
    assert shares[1] > shares[0]
    assert content["verdict"] == content["loops"][1]["verdict"]


@pytest.mark.processes
def test_accelerate_launch_is_seen_through_and_spawned_workers_are_left_alone(
    capfd: pytest.CaptureFixture[str], no_accelerate_left: None
) -> None:
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
    report, code, failures = watch([sys.executable, *launcher, str(SCRIPT), "accelerate", "torchvision:1:spawn"])
    captured = capfd.readouterr()
    assert (code, failures) == (0, ()), captured.err
    assert captured.out == said_plainly(["accelerate", "torchvision:0"])
    assert len(report.loops) == 3, "a loop for each loader, of the one process that trains"
    steps_of = {loop.name.partition(" ")[2]: loop.steps.count for loop in report.loops}
    assert steps_of["Slow (60)"] >= 20
    assert steps_of["Slow (61)"] >= 20


@pytest.mark.processes
def test_where_no_loop_can_be_seen_it_says_so_and_passes_the_exit_code_on(capfd: pytest.CaptureFixture[str]) -> None:
    report, code, _ = watch([sys.executable, "-I", "-c", "print('hi'); raise SystemExit(7)"])
    assert (code, capfd.readouterr().out) == (7, "hi\n")
    assert report.verdict.word == "INCONCLUSIVE"
    assert "without the hook" in report.verdict.why
    check_report(report.as_dict())
    report, code, _ = watch(["sh", "-c", f"{sys.executable} -c 'print(1)'; kill -TERM $$"])
    assert code == 128 + signal.SIGTERM
    assert "no DataLoader" in report.verdict.why


@pytest.mark.processes
def test_a_report_that_cannot_be_made_or_written_leaves_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seven = [sys.executable, "-I", "-c", "raise SystemExit(7)"]
    assert watch_and_say(seven, json=Path("/proc/nowhere/a.json")) == 7
    assert "cannot be written" in capfd.readouterr().err
    monkeypatch.setattr("fastload.profiling.hook.records.make_report", lambda *values: 1 / 0)
    assert watch_and_say(seven) == 7
    assert "Mind: the watching had trouble: ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.processes
def test_ctrl_c_reaches_the_script_once_and_the_report_so_far_is_given(tmp_path: Path) -> None:
    words = ["-m", "bench.cli", "gpu-util", "--json", tmp_path / "a.json", "--", sys.executable, SCRIPT, "slow"]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (out, process.returncode) == ("stopped by hand\n", 3), err
    report = json.loads((tmp_path / "a.json").read_text())
    check_report(report)
    assert report["loops"][0]["steps"]["count"] >= 25
    assert "INPUT-BOUND" in err
