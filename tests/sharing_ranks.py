"""One of several processes: shares RAM with the others, and swaps samples with them; writes what it saw to OUT."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fastload import Augment, Loader, open_dataset, placement
from fastload.errors import PlacementError
from fastload.stores import sharded

dataset, out = (Path(a) for a in sys.argv[1:])
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
opened = open_dataset(dataset)
found: dict[str, object] = {}
plain = Augment(dtype=torch.uint8)


def pixels(loader: Loader) -> bool:
    """Take a pass; whether every image was the dataset's."""
    good = True
    for images, labels in loader:
        for image, label, i in zip(images, labels, loader.batch_ids.tolist(), strict=True):
            expected, number = opened[i]
            good &= torch.equal(image.permute(1, 2, 0), expected) and int(label) == number
    return good


# One copy of the samples, in memory without a name.
host = Loader(opened, 2, augment=plain, placement="host", drop_last=False)
found["host_pixels"] = pixels(host)
maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:fastload" in line]
found["memory"] = sorted({fields[4] for fields in maps})  # the inode
# A second loader takes the same copy; where one rank has let go of it, all of them make a new one.
twins = [Loader(opened, 3, augment=plain, placement="host", shuffle=False)]
found["twin"] = twins[0]._store.samples is host._store.samples  # type: ignore[union-attr]
if rank == 0:
    twins.clear()
    del host
host = Loader(opened, 2, augment=plain, placement="host", drop_last=False)
found["anew_pixels"] = pixels(host)
twins.clear()
dist.barrier()
host._store.samples[rank] = 100 + rank  # type: ignore[union-attr]
dist.barrier()
found["seen"] = [int(host._store.samples[r].float().mean()) for r in range(world_size)]  # type: ignore[union-attr]
dist.barrier()
del host
found["left"] = sum("memfd:fastload" in line for line in Path("/proc/self/maps").read_text().splitlines())

# Shares that are swapped, in pieces of one sample.
sharded.STAGING_BYTES = 1
for name, options in {"drop": {}, "keep": {"drop_last": False}, "slow": {"reshuffle_every": 2}}.items():
    loader = Loader(opened, 2, augment=plain, placement="gpu_sharded", device="cpu", seed=3, **options)  # type: ignore[arg-type]
    alone = Loader(
        opened, 2, augment=plain, placement="gpu_sharded", device="cpu", seed=3, rank=rank, world_size=world_size,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    epochs = []
    for _ in range(5):
        seen = []
        for (images, _), (read_anew, _) in zip(loader, alone, strict=True):
            assert torch.equal(images, read_anew), "what was swapped is not what is on the disk"
            seen += loader.batch_ids[: loader.num_valid].tolist()
        epochs.append(seen)
    found[name] = epochs
evaluation = Loader(opened, 2, augment=plain, placement="gpu_sharded", device="cpu", shuffle=False)
found["evaluation_pixels"] = pixels(evaluation)
found["evaluation"] = [i for _ in evaluation for i in evaluation.batch_ids[: evaluation.num_valid].tolist()]

# One rank that cannot: all of them are told, and none waits for it.
if rank == 1:
    placement.free_host_bytes = lambda: 0
try:
    Loader(opened, 2, placement="host")
except PlacementError as e:
    found["refused"] = str(e)
found["auto"] = Loader(opened, 2).placement.kind
(out / f"{rank}.json").write_text(json.dumps(found))
dist.barrier()
dist.destroy_process_group()
