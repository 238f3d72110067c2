"""Runs a recipe unchanged and writes which samples this rank's loaders gave, split by split."""

import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastload.loader import Loader

original = Loader.__iter__
seen: dict[str, Any] = {"train": [], "valid": []}


def recorded(self: Loader) -> Iterator[Any]:
    seen.update(rank=self.rank, world_size=self.shares.world_size)
    for batch in original(self):
        seen[self.dataset.split] += self.batch_ids[: self.num_valid].tolist()
        yield batch


Loader.__iter__ = recorded  # type: ignore[method-assign]
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does for a script
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as e:
    if e.code:
        raise
(Path(os.environ["FASTLOAD_TEST_IDS"]) / f"rank-{seen['rank']}.json").write_text(json.dumps(seen))
