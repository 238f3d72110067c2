"""All of test_resuming's processes, forked from one: killed_training in OUT/alone, then train_ranks in OUT/ranks.

    python -m tests.forked_training DATASET OUT

Writes what killed_training found to OUT/alone.json.
"""

import json
import sys
from pathlib import Path

import timm  # noqa: F401 - once, and not in every process

from tests.forked_ranks import fork_ranks
from tests.killed_training import train_and_kill
from tests.train_ranks import one_rank

if __name__ == "__main__":
    dataset, out = (Path(a) for a in sys.argv[1:])
    (out / "alone.json").write_text(json.dumps(train_and_kill(dataset, out / "alone")))
    (out / "ranks").mkdir()
    sys.exit(fork_ranks(2, lambda rank: one_rank(rank, dataset, out / "ranks")))
