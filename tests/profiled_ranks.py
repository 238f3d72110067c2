"""Two ranks that average over gloo, profiled: one's samples are slow to come. Reports go to OUT."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import fastload
from fastload.profiling import ranks

out = Path(sys.argv[1])
ranks.WAIT_SECONDS = 0.2  # measuring rank 1's loader once more takes longer
SECONDS = (0.0, 0.004)


class Slow(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(SECONDS[self.rank])
        return torch.full((8,), float(index)), index


def run(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    loaders = [torch.utils.data.DataLoader(Slow(rank, count), batch_size=4) for count in (100, 84)]
    with (
        fastload.Profile(loaders[0], replay=True, name="train", json=out / "train.json") as train,
        fastload.Profile(loaders[1], name="valid", json=out / "valid.json", quiet=True) as valid,
    ):
        for batches in (train, valid):
            for rows, _ in batches:
                total = rows.sum()
                dist.all_reduce(total)
                time.sleep(0.002)
    found = [watch.report is not None for watch in (train, valid)]
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    mp.start_processes(run, (number,), nprocs=2, start_method="fork")
