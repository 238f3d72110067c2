"""Converts FOLDER to SCRATCH/out0, out1, ... and kills -9 each run before its next file operation on the output.

Run k dies before operation k, counted from 0, and is then run again to the end; the last one was not reached
by its kill. Prints as JSON: was it killed, how many shards were finished then, how many of these were kept.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

from fastload import conversion, pool

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
conversion.SHARD_BYTES = 4 * 20 * 20 * 3
pool.TASK_ROWS = 2  # so that both processes write into each shard
folder, scratch = (Path(a) for a in sys.argv[1:])
warnings.simplefilter("ignore", DeprecationWarning)  # forking beside torch's threads


def run(out: Path, kill_before: int | None) -> bool:
    """Convert in a process of its own; return whether it was killed."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def watch(event: str, args: tuple[object, ...]) -> None:
            nonlocal count
            if event in OPERATIONS and str(args[0]).startswith(str(out)) and os.getpid() == own:
                if count == kill_before:
                    os.kill(own, signal.SIGKILL)
                count += 1

        own = os.getpid()
        sys.addaudithook(watch)
        status = 1
        try:
            conversion.convert(folder, out, size=20, workers=2)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def shards(place: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in place.glob("[tv]*.safetensors")}


outcomes = []
while not outcomes or outcomes[-1]["killed"]:
    number = len(outcomes)
    out, partial = scratch / f"out{number}", scratch / f"out{number}.partial"
    killed = run(out, number)
    before = shards(out if out.exists() else partial)
    if killed and out.exists():
        # The kill came after the rename: the dataset is whole, which the caller compares.
        after = before
    else:
        if killed:
            assert not run(out, None)
        after = shards(out)
    outcomes.append(
        {"killed": killed, "finished": len(before), "kept": sum(after.get(n) == t for n, t in before.items())}
    )
print(json.dumps(outcomes))
