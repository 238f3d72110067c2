"""One of two processes: writes which samples it saw, and what was gathered, to OUT/RANK.json."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from fastload import Loader, open_dataset

dataset, out = (Path(a) for a in sys.argv[1:])
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
