"""Reports of several ranks as one: each leaves a file, and the first rank reads them.

Files, and no collective call: a rank that has failed would leave the others waiting in one.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastload.files import write_text

WAIT_SECONDS = 5.0


def current(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (rank, number of ranks) as launchers say it; (0, 1) where none does."""
    words = [environment.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    rank, world_size = (int(w) if w.isdecimal() else -1 for w in words)
    return (rank, world_size) if 0 <= rank < world_size else (0, 1)


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one report of all ranks': every loop of each, and what follows for the rank that waited most."""
    chief = max(reports, key=_wait_share)
    loops = sorted((loop for report in reports for loop in report["loops"]), key=lambda loop: loop["rank"])
    return {**chief, "run": {**chief["run"], "num_ranks": len(reports)}, "loops": loops}


def gather(report: dict[str, Any], rank: int, world_size: int, name: str) -> dict[str, Any] | None:
    """Leave this rank's report for rank 0, which returns all that come within some seconds as one; others get None.

    Ranks of one node find each other; of other nodes, each has its own.

    Args:
        report: of this rank.
        rank, world_size: which and of how many.
        name: of the loop, the same on every rank and for no other loop of this run.
    """
    if world_size == 1:
        return report
    # The launcher is the parent of all ranks here.
    folder = Path(tempfile.gettempdir(), f"fastload-{os.getuid()}-{os.getppid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return report if rank == 0 else None
    if rank != 0:
        write_text(folder / f"{name}-{rank}.json", json.dumps(report))
        return None
    end, found = time.monotonic() + WAIT_SECONDS, {0: report}
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    while len(found) < local and time.monotonic() < end:
        for other in range(1, world_size):
            file = folder / f"{name}-{other}.json"
            if other not in found and file.exists():
                found[other] = json.loads(file.read_text())
                file.unlink()
        time.sleep(0.02)
    return merge([found[key] for key in sorted(found)])


def _wait_share(report: dict[str, Any]) -> float:
    shares = [loop["wait"]["share"] for loop in report["loops"]]
    return max((share for share in shares if share is not None), default=-1.0)
