"""Two ranks, and then three, share RAM and swap samples; each writes what it saw to OUT/NUMBER-OF-RANKS/RANK.json.

python -m tests.sharing_ranks DATASET OUT
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fastload import Augment, Loader, open_dataset, placement
from fastload.errors import PlacementError
from fastload.formats import Dataset
from fastload.stores import sharded
from tests.forked_ranks import fork_ranks

PLAIN = Augment(dtype=torch.uint8)


def pixels(loader: Loader, opened: Dataset) -> bool:
    """Take a pass; whether every image was the dataset's."""
    good = True
    for images, labels in loader:
        for image, label, i in zip(images, labels, loader.batch_ids.tolist(), strict=True):
            expected, number = opened[i]
            good &= torch.equal(image.permute(1, 2, 0), expected) and int(label) == number
    return good


def share(opened: Dataset) -> dict[str, object]:
    """One copy of the samples, in memory without a name."""
    rank, found = dist.get_rank(), {}
    host = Loader(opened, 2, augment=PLAIN, placement="host", drop_last=False)
    found["host_pixels"] = pixels(host, opened)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:fastload" in line]
    found["memory"] = sorted({fields[4] for fields in maps})  # the inode
    # A second loader takes the same copy; where one rank has let go of it, all of them make a new one.
    twins = [Loader(opened, 3, augment=PLAIN, placement="host", shuffle=False)]
    found["twin"] = twins[0]._store.samples is host._store.samples  # type: ignore[union-attr]
    if rank == 0:
        twins.clear()
        del host
    host = Loader(opened, 2, augment=PLAIN, placement="host", drop_last=False)
    found["anew_pixels"] = pixels(host, opened)
    twins.clear()
    dist.barrier()
    host._store.samples[rank] = 100 + rank  # type: ignore[union-attr]
    dist.barrier()
    found["seen"] = [int(host._store.samples[r].float().mean()) for r in range(dist.get_world_size())]  # type: ignore[union-attr]
    dist.barrier()
    del host
    found["left"] = sum("memfd:fastload" in line for line in Path("/proc/self/maps").read_text().splitlines())
    return found


def swap(opened: Dataset) -> dict[str, object]:
    """Shares that are swapped, in pieces of one sample."""
    found: dict[str, object] = {}
    sharded.STAGING_BYTES = 1
    shared = {"augment": PLAIN, "placement": "gpu_sharded", "device": "cpu"}
    apart = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    for name, options in {"drop": {}, "keep": {"drop_last": False}, "slow": {"reshuffle_every": 2}}.items():
        loader = Loader(opened, 2, seed=3, **shared, **options)  # type: ignore[arg-type]
        alone = Loader(opened, 2, seed=3, **shared, **apart, **options)  # type: ignore[arg-type]
        epochs = []
        for _ in range(5):
            seen = []
            for (images, _), (read_anew, _) in zip(loader, alone, strict=True):
                assert torch.equal(images, read_anew), "what was swapped is not what is on the disk"
                seen += loader.batch_ids[: loader.num_valid].tolist()
            epochs.append(seen)
        found[name] = epochs
    evaluation = Loader(opened, 2, shuffle=False, **shared)  # type: ignore[arg-type]
    found["evaluation_pixels"] = pixels(evaluation, opened)
    found["evaluation"] = [i for _ in evaluation for i in evaluation.batch_ids[: evaluation.num_valid].tolist()]
    return found


def refuse(opened: Dataset) -> dict[str, object]:
    """One rank that cannot: all of them are told, and none waits for it."""
    found: dict[str, object] = {}
    if dist.get_rank() == 1:
        placement.free_host_bytes = lambda: 0
    try:
        Loader(opened, 2, placement="host")
    except PlacementError as e:
        found["refused"] = str(e)
    found["auto"] = Loader(opened, 2).placement.kind
    return found


def one_rank(rank: int, dataset: Path, out: Path) -> None:
    dist.init_process_group("gloo")
    opened = open_dataset(dataset)
    found = {**share(opened), **swap(opened), **refuse(opened)}
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    dataset, out = (Path(a) for a in sys.argv[1:])
    for world_size in (2, 3):
        here = out / str(world_size)
        here.mkdir()
        if fork_ranks(world_size, lambda rank, here=here: one_rank(rank, dataset, here)):  # type: ignore[misc]
            sys.exit(f"{world_size} ranks failed")
