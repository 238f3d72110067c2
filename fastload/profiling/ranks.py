"""Reports of several ranks as one: each leaves a file, and the first rank reads them.

Files, and no collective call: a rank that has failed would leave the others waiting in one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastload.files import write_text

WAIT_SECONDS = 5.0  # for a rank that has not said that it will come
MOST_SECONDS = 90.0  # for one that has, and still measures: its slow loader, once more


def current(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (rank, number of ranks) as launchers say it, else torch.distributed; (0, 1) where neither does."""
    words = [environment.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    rank, world_size = (int(w) if w.isdecimal() else -1 for w in words)
    if 0 <= rank < world_size:
        return rank, world_size
    distributed = sys.modules.get("torch.distributed")  # ranks that were spawned may have no such variables
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def num_here(world_size: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return how many of the ranks run on this node."""
    return int(environment.get("LOCAL_WORLD_SIZE", world_size))


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one report of all ranks': every loop of each, and what follows for the rank that waited most."""
    chief = max(reports, key=_wait_share)
    loops = sorted((loop for report in reports for loop in report["loops"]), key=lambda loop: loop["rank"])
    return {**chief, "run": {**chief["run"], "num_ranks": len(reports)}, "loops": loops}


def announce(rank: int, world_size: int, name: str) -> None:
    """Say that this rank's report will come, however long it takes; `gather` follows on every rank that says so."""
    if world_size > 1 and rank != 0 and _is_on_first_node(rank):
        _leave(f"{name}-{rank}.pid", str(os.getpid()))


def gather(report: dict[str, Any], rank: int, world_size: int, name: str, since: float = 0.0) -> dict[str, Any] | None:
    """Leave this rank's report for rank 0, which returns all that come in time as one; others get None.

    Ranks of rank 0's node find each other; what others report is left out.

    Args:
        report: of this rank.
        rank, world_size: which and of how many.
        name: of the loop, the same on every rank and for no other loop of this run.
        since: when the measuring began, in seconds as of `time.time`. What is older is of a run before this one,
            which in a notebook has the same parent and port.
    """
    if world_size == 1:
        return report
    if rank != 0:
        if _is_on_first_node(rank):
            _leave(f"{name}-{rank}.json", json.dumps(report))
        return None
    folder = _folder()
    if folder is None:
        return report
    for file in folder.glob(f"{name}-*"):
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < since:
                file.unlink()
    begin, found = time.monotonic(), {0: report}
    while len(found) < num_here(world_size):
        missing = [other for other in range(1, world_size) if other not in found]
        is_coming = [_is_alive(folder / f"{name}-{other}.pid") for other in missing]  # before looking for the report
        for other in missing:
            file = folder / f"{name}-{other}.json"
            if file.exists():
                found[other] = json.loads(file.read_text())
                file.unlink()
                file.with_suffix(".pid").unlink(missing_ok=True)
        if time.monotonic() - begin > (MOST_SECONDS if any(is_coming) else WAIT_SECONDS):
            break
        time.sleep(0.02)
    with suppress(OSError):  # another loop's report may lie there
        folder.rmdir()
    return merge([found[key] for key in sorted(found)])


def _is_on_first_node(rank: int) -> bool:
    return os.environ.get("LOCAL_RANK", str(rank)) == str(rank)


def _folder() -> Path | None:
    """Return where the ranks of this run, here, leave their files; None where somebody else has taken the place."""
    # The launcher is the parent of all ranks here; what it started before, under the same number, had another port.
    run = [os.environ.get(name, "0") for name in ("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")]
    words = [str(os.getuid()), str(os.getppid()), *(w if w.isdecimal() else "0" for w in run)]
    folder = Path(tempfile.gettempdir(), f"fastload-{'-'.join(words)}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return None if folder.is_symlink() or folder.stat().st_uid != os.getuid() else folder


def _leave(name: str, text: str) -> None:
    for _ in range(3):
        folder = _folder()
        if folder is None:
            return
        with suppress(FileNotFoundError):  # rank 0, done with another loop, has just removed the folder
            write_text(folder / name, text)
            return


def _is_alive(mark: Path) -> bool:
    try:
        os.kill(int(mark.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def _wait_share(report: dict[str, Any]) -> float:
    shares = [loop["wait"]["share"] for loop in report["loops"]]
    return max((share for share in shares if share is not None), default=-1.0)
