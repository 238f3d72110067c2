"""A writer of betons that is killed leaves nothing that looks whole, and the next run finishes it."""

import importlib.util
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import pytest
from betons import write

from fastload.formats.ffcv import check_beton

needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason='ffcv is not installed: pip install "fastload[ffcv]"'
)

KILLED = """
import os, signal, sys, time
from pathlib import Path
import ffcv.memory_allocator, ffcv.writer
sys.path.insert(0, {tests!r})
from betons import N, sample, write

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(owner, name, number):
    real, calls = getattr(owner, name), []
    def wrapped(*args, **kwargs):
        calls.append(0)
        if len(calls) > number:
            die()
        return real(*args, **kwargs)
    setattr(owner, name, wrapped)

import fastload.files as files
import fastload.formats.ffcv_writer as w
(Path({folder!r}) / "warm").mkdir()
write(Path({folder!r}) / "warm" / "a.beton")
points = (
    [(ffcv.memory_allocator.MemoryAllocator, "malloc", k) for k in (0, 5, N - 1)]
    + [(ffcv.memory_allocator.MemoryAllocator, "flush_page", k) for k in (0, 1)]
    + [(ffcv.writer.DatasetWriter, name, 0) for name in ("prepare", "finalize")]
    + [(w, name, 0) for name in ("check_beton", "sha256_of")]
    + [(w, "sync", k) for k in range(2)]
    + [(files, "sync", 0)]
    + [(Path, "replace", k) for k in range(2)]
)
for number in range(len(points) + 6):
    folder = Path({folder!r}) / str(number)
    folder.mkdir()
    child = os.fork()
    if child == 0:
        try:
            if number < len(points):
                at_call(*points[number])
                write(folder / "a.beton")
            else:
                write(folder / "a.beton", sample=lambda i: (time.sleep(0.03), sample(i))[1], workers=1)
        finally:
            os._exit(3)
    if number >= len(points):
        time.sleep(0.03 * (number - len(points)))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (number, status)
print(len(points) + 6)
"""


@needs_ffcv
def test_a_writer_that_is_stopped_between_the_two_renames_is_finished_by_the_next(tmp_path):
    out, renamed, real = tmp_path / "a.beton", [], Path.replace

    def replace(file, target):
        renamed.append(target)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return real(file, target)

    with mock.patch.object(Path, "replace", replace), pytest.raises(KeyboardInterrupt):
        write(out)
    assert out.exists()
    assert not out.with_suffix(".json").exists()
    with pytest.raises(ZeroDivisionError):  # nor does another one that fails make it somebody else's
        write(out, sample=lambda _: 1 / 0)
    write(out)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.beton", "a.json"]


@needs_ffcv
@pytest.mark.processes
def test_a_killed_writer_leaves_no_file_that_looks_whole(tmp_path):
    made = write(tmp_path / "whole.beton")
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    num_whole = num_finished = 0
    for number in range(int(done.stdout)):
        out = tmp_path / str(number) / "a.beton"
        if out.with_suffix(".json").exists():  # killed behind the last rename
            num_finished += 1
        else:
            if out.exists():  # killed between the two renames: the next run finishes it
                check_beton(out)
                num_whole += 1
            write(out)
        assert sorted(f.name for f in out.parent.iterdir()) == ["a.beton", "a.json"]
        assert out.read_bytes() == made.read_bytes()
        about = made.with_suffix(".json").read_bytes()
        assert out.with_suffix(".json").read_bytes() == about.replace(b"whole.beton", b"a.beton")
        shutil.rmtree(out.parent)
    assert (num_whole, num_finished) == (2, 1)
