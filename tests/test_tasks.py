"""Conversion in pieces: tasks and merge, the lock they share, Dask, the Slurm script."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from fastload import conversion, convert
from fastload.conversion import merge
from fastload.errors import ConfigError, DatasetError, DecodeError
from fastload.files import write_whole
from fastload.output import Output
from fastload.plan import read_plan
from fastload.sources import detect
from tests.conftest import ROOT, convert_small
from tests.test_cli import fastload
from tests.test_conversion import contents


@pytest.fixture
def small_shards() -> object:
    with mock.patch.object(conversion, "SHARD_BYTES", 4 * 20 * 20 * 3) as patched:
        yield patched


@pytest.mark.parametrize("count", [1, 3, 7])
def test_tasks_and_merge_give_the_bytes_of_one_run(
    folder: Path, tmp_path: Path, small_shards: object, count: int
) -> None:
    expected = contents(convert(folder, tmp_path / "expected", size=20))
    out = tmp_path / "out.fastload"
    for index in reversed(range(1, count + 1)):  # in any order, on any machine
        assert convert(folder, out, size=20, task=f"{index}/{count}") == tmp_path / "out.fastload.partial"
        assert not out.exists()
    assert merge(out) == out
    assert contents(out) == expected
    assert not (tmp_path / "out.fastload.partial").exists()


@pytest.mark.parametrize("room", ["write_text", "Output.publish", "Path.unlink"])
def test_a_merge_that_was_stopped_is_finished_by_the_same_command(folder: Path, tmp_path: Path, room: str) -> None:
    convert(folder, tmp_path / "out", size=8, task="1/1")
    with (
        mock.patch(f"fastload.conversion.{room}", side_effect=OSError(errno.ENOSPC, "No space left on device")),
        pytest.raises((DatasetError, OSError), match="No space left"),
    ):
        merge(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert contents(merge(tmp_path / "out")) == contents(convert(folder, tmp_path / "expected", size=8))


def test_skipped_images_of_several_tasks(folder: Path, tmp_path: Path, small_shards: object) -> None:
    for path in ("train/bee/001.jpg", "train/ant/002.jpg", "valid/bee/000.jpg"):
        (folder / path).write_bytes(b"x")
    expected = contents(convert(folder, tmp_path / "expected", size=20, on_bad="skip"))
    for index in (1, 2):
        convert(folder, tmp_path / "out", size=20, on_bad="skip", task=f"{index}/2")
    assert contents(merge(tmp_path / "out.partial")) == expected  # named as it lies there


def test_merge_says_what_is_missing(folder: Path, tmp_path: Path, small_shards: object) -> None:
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match="no such folder"):
        merge(out)
    convert(folder, out, size=20, task="2/3")
    with pytest.raises(DatasetError, match=r"4 of 6 shards are missing.*--task 1/6 writes"):
        merge(out)
    # A plain run takes what the tasks have written and finishes the rest.
    kept = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out.partial").glob("*.safetensors")}
    assert len(kept) == 2
    convert(folder, out, size=20)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(out) == contents(convert(folder, tmp_path / "again", size=20))
    with pytest.raises(DatasetError, match="exists"):
        merge(out)


def test_tasks_of_another_plan_are_refused(folder: Path, tmp_path: Path, small_shards: object) -> None:
    convert(folder, tmp_path / "idle", size=20, task="9/9")  # has written nothing but the plan
    with pytest.raises(DatasetError, match="other options"):
        convert(folder, tmp_path / "idle", size=21, task="1/9")
    convert(folder, tmp_path / "out", size=20, task="1/3")
    with pytest.raises(DatasetError, match="other options"):
        convert(folder, tmp_path / "out", size=21, task="2/3")
    (folder / "train" / "bee" / "new.jpg").write_bytes((folder / "train" / "bee" / "000.jpg").read_bytes())
    with pytest.raises(DatasetError, match="another source"):
        convert(folder, tmp_path / "out", size=20, task="6/6")


@pytest.mark.parametrize("task", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", "", "1.0/2"])
def test_a_task_that_is_none(folder: Path, tmp_path: Path, task: str) -> None:
    with pytest.raises(ConfigError, match="write it as I/N"):
        convert(folder, tmp_path / "out", task=task)
    assert not (tmp_path / "out.partial").exists()


def test_a_task_beyond_the_last_shard_has_nothing_to_do(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out", size=8, task="2/5")
    convert(folder, tmp_path / "out", size=8, task="5/5")
    with pytest.raises(DatasetError, match="1 of 2 shards"):
        merge(tmp_path / "out")


def test_the_plan_can_be_read_again(folder: Path, tmp_path: Path) -> None:
    source = detect(folder)
    (folder / "train" / "bee" / os.fsdecode(b"\xff\n name.jpg")).write_bytes(
        (folder / "train" / "bee" / "000.jpg").read_bytes()
    )
    again = detect(folder)
    assert again.digest() != source.digest()
    partial = convert(folder, tmp_path / "out", size=8, task="1/1")
    plan = read_plan(partial / "plan.json")
    assert plan.source.records == again.records
    (partial / "plan.json").write_text((partial / "plan.json").read_text().replace('"size": 8', '"size": 9'))
    with pytest.raises(DatasetError, match="was changed"):
        merge(tmp_path / "out")
    (partial / "plan.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        merge(tmp_path / "out")
    (partial / "plan.json").unlink()
    with pytest.raises(DatasetError, match="no tasks have run"):
        merge(tmp_path / "out")


# --- who holds the output ---


def test_tasks_hold_the_folder_together_and_others_are_told(folder: Path, tmp_path: Path) -> None:
    output = Output(tmp_path / "out", "manifest.json")
    with output.held(shared=True):
        convert(folder, tmp_path / "out", size=8, task="1/2")
        for call in (lambda: convert(folder, tmp_path / "out", size=8), lambda: merge(tmp_path / "out")):
            with pytest.raises(DatasetError, match=rf"is being written by process {os.getpid()} on "):
                call()
        (output.folder / ".other.tmp").touch()  # of a task that is still running
        convert(folder, tmp_path / "out", size=8, task="2/2")
        assert (output.folder / ".other.tmp").exists()
    assert {f.name for f in output.folder.iterdir()} == {
        "plan.json",
        "train-00000.safetensors",
        "valid-00000.safetensors",
    }
    with (
        output.held(),
        mock.patch("fastload.output.TIDY_SECONDS", 0.1),
        pytest.raises(DatasetError, match="is being written"),
    ):
        convert(folder, tmp_path / "out", size=8, task="1/2")


HOLD = """
import sys
from pathlib import Path
from fastload.output import Output
output = Output(Path(sys.argv[1]), "manifest.json")
for _ in range(int(sys.argv[2])):
    with output.held(shared=True):
        pass
"""


@pytest.mark.processes
@pytest.mark.parametrize("leaves", ["a folder with shards", "an empty folder"])
def test_a_task_that_begins_waits_for_one_that_tidies_up(tmp_path: Path, leaves: str) -> None:
    if leaves != "an empty folder":  # else the last of them takes it away
        (tmp_path / "out.partial").mkdir()
        for number in range(64):
            (tmp_path / "out.partial" / f"train-{number:05d}.safetensors").touch()
    tasks = [
        subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "out", "200"], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [task.communicate(timeout=120)[1] for task in tasks] == [""] * 3


def test_a_folder_without_anything_to_resume_is_taken_away(tmp_path: Path) -> None:
    with Output(tmp_path / "out", "manifest.json").held() as partial:
        assert partial.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_used_without(folder: Path, tmp_path: Path) -> None:
    with mock.patch("fcntl.flock", side_effect=OSError(95, "Operation not supported")):
        convert(folder, tmp_path / "out", size=8, task="1/2")
        convert(folder, tmp_path / "out", size=8, task="2/2")
        assert merge(tmp_path / "out").is_dir()


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    file = tmp_path / "a"

    def parts() -> object:
        yield b"one"
        with pytest.raises(BlockingIOError):
            write_whole(file, [b"two"])
        yield b"!"

    write_whole(file, parts())  # type: ignore[arg-type]
    assert file.read_bytes() == b"one!"
    write_whole(file, [b"2"])
    assert file.read_bytes() == b"2"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


RACE = """
import sys
from fastload import conversion
from fastload.errors import DatasetError
conversion.SHARD_BYTES = 4 * 20 * 20 * 3
try:
    conversion.convert(sys.argv[1], sys.argv[2], size=20, workers=1)
    print("wrote")
except DatasetError as e:
    print("refused" if "being written by" in str(e) or "exists" in str(e) else repr(e))
"""


@pytest.mark.processes
def test_processes_that_race_for_one_output(folder: Path, tmp_path: Path) -> None:
    expected = contents(convert_small(folder, tmp_path / "expected", conversion))
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, folder, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(racer.communicate(timeout=120)[0].strip() for racer in racers)
    assert said == ["refused", "wrote"]
    assert contents(tmp_path / "out") == expected
    assert not (tmp_path / "out.partial").exists()


def test_who_comes_when_the_dataset_is_published_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match="out exists"), Output(tmp_path / "out", "manifest.json").held():
        pytest.fail("there is nothing to write")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


# --- Slurm and Dask ---


@pytest.mark.processes
def test_the_slurm_script_as_slurm_would_run_it(folder: Path, tmp_path: Path) -> None:
    expected = contents(convert(folder, tmp_path / "expected", size=16))
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "1"}
    for index in ("1", "2"):
        done = subprocess.run(
            ["bash", ROOT / "launch" / "convert_slurm.sh", folder, tmp_path / "out", "--size", "16"],
            env=env | {"SLURM_ARRAY_TASK_ID": index, "SLURM_ARRAY_TASK_COUNT": "2"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"task {index}/2 is done" in done.stdout
    assert "13 train, 7 valid" in fastload("merge", tmp_path / "out").stdout
    assert contents(tmp_path / "out") == expected


@pytest.fixture(scope="module")
def cluster() -> object:
    """A scheduler and two workers, processes of their own as on a real cluster."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL"
    ) as running:
        yield running


@pytest.mark.processes
@pytest.mark.filterwarnings("default")
def test_dask_workers_write_the_same_bytes(
    folder: Path, tmp_path: Path, small_shards: object, cluster: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = cluster.scheduler_address  # type: ignore[attr-defined]
    expected = contents(convert(folder, tmp_path / "expected", size=20))
    monkeypatch.chdir(tmp_path)  # relative paths, which the workers' own folder would lead elsewhere
    assert contents(convert(folder.relative_to(tmp_path), "out", size=20, dask=address)) == expected

    (folder / "valid" / "bee" / "001.jpg").write_bytes(b"x")
    with pytest.raises(DecodeError, match=r"valid/bee/001\.jpg"):
        convert(folder, "bad", size=20, dask=address)
    assert not Path("bad").exists()
    assert any(Path("bad.partial").iterdir())
    expected = contents(convert(folder, "skipped", size=20, on_bad="skip"))
    assert contents(convert(folder, "bad", size=20, on_bad="skip", dask=address)) == expected


@pytest.mark.processes
@pytest.mark.filterwarnings("default")
def test_a_dask_scheduler_that_is_not_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("fastload.conversion_dask.CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(ConfigError, match="no scheduler answers"):
            convert(folder, tmp_path / "out", size=8, dask=address)
    with pytest.raises(ConfigError, match="one of them"):
        convert(folder, tmp_path / "out", size=8, dask=address, task="1/2")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
def test_a_dask_scheduler_without_workers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("fastload.conversion_dask.CONNECT_SECONDS", 1)
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, dashboard_address=None, protocol="tcp", silence_logs="CRITICAL"
        ) as idle,
        pytest.raises(ConfigError, match="has no workers; start some"),
    ):
        convert(folder, tmp_path / "out", size=8, dask=idle.scheduler_address)
    assert not (tmp_path / "out.partial").exists()
