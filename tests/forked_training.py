"""All of test_resuming's processes, forked from one: killed_training in OUT/alone, then train_ranks in OUT/ranks.

    python -m tests.forked_training DATASET OUT

Prints what killed_training found, as JSON.
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
    print(json.dumps(train_and_kill(dataset, out / "alone")), flush=True)
    (out / "ranks").mkdir()
    sys.exit(fork_ranks(2, lambda rank: one_rank(rank, dataset, out / "ranks")))
