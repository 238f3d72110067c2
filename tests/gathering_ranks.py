"""Two ranks, and then three, gather: each writes which samples it and all saw, to OUT/NUMBER-OF-RANKS/RANK.json.

python -m tests.gathering_ranks DATASET OUT
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from fastload import Loader, open_dataset
from tests.forked_ranks import fork_ranks


def one_rank(dataset: Path, out: Path) -> None:
    accelerator = Accelerator()
    found: dict[str, object] = {"world_size": accelerator.num_processes}
    for split, batch_size, shuffle in (("train", 2, True), ("valid", 2, False)):
        loader = Loader(open_dataset(dataset, split), batch_size, shuffle=shuffle)
        seen: list[int] = []
        gathered: list[int] = []
        for _ in loader:
            seen += loader.batch_ids[: loader.num_valid].tolist()
            gathered += accelerator.gather_for_metrics(loader.batch_ids).tolist()
        found[split], found[f"{split}_gathered"] = seen, gathered
    (out / f"{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    dataset, out = (Path(a) for a in sys.argv[1:])
    for world_size in (2, 3):
        here = out / str(world_size)
        here.mkdir()
        if fork_ranks(world_size, lambda _, here=here: one_rank(dataset, here)):  # type: ignore[misc]
            sys.exit(f"{world_size} ranks failed")
