"""Which memory serves a dataset, and the store for it: what Loader asks for when it is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fastload.cut import Cut
from fastload.errors import ConfigError, FastloadError, PlacementError, printable
from fastload.formats import AnyDataset, Beton, Dataset, MapDataset
from fastload.placement import Kind, Need, Placement, check_kind, choose, gib
from fastload.resharding import Holdings
from fastload.shares import Shares
from fastload.stores import Store, copies
from fastload.stores.beton import BetonFile, BetonStore, can_decode
from fastload.stores.folder import FolderStore
from fastload.stores.mapped import MappedStore
from fastload.stores.sharded import ShardedStore
from fastload.stores.shared import host_tensor
from fastload.stores.tensors import TensorStore, fill
from fastload.together import gather_numbers

# Memory that holds a split as it is in the dataset.
Whole = Literal["gpu", "host"]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked of the store.

    Attributes:
        kind: the placement.
        device: where batches are wanted.
        batch_size, rank, world_size: this rank's steps.
        together: the ranks make their loaders alike and can talk to each other.
        reserve_bytes: kept free for the model.
        workers: processes or threads of placements that read sample by sample; None: one per core.
        cut: how images of their own sizes become one size.
        in_place: augmentation reads images in the store's own memory, if that is RAM: no batch is gathered before.
        progress: say where the samples go, and show a bar while they do.
    """

    kind: Kind
    device: torch.device
    batch_size: int
    rank: int
    world_size: int
    together: bool
    reserve_bytes: int | None
    workers: int | None
    cut: Cut | None
    in_place: bool
    progress: bool


def describe(dataset: AnyDataset) -> str:
    """Return a split's size in words, e.g. `3,887 x 128x128x3 uint8`."""
    return f"{len(dataset):,} x {dataset.sample}"


def place(dataset: AnyDataset, wish: Wish) -> Placement:
    """Choose the memory; ranks that are together take the same, the slowest that one of them needs.

    Raises:
        ConfigError: no such placement, or not for such a dataset.
        PlacementError: the memory does not hold it, here or on another rank.
    """
    failure: FastloadError | None = None
    placement: Placement | None = None
    try:
        placement = _choose(dataset, wish)
    except FastloadError as e:
        failure = e
    if wish.together:
        kinds = [kind for kind in get_args(Kind) if kind != "auto"]
        own = -1 if placement is None else kinds.index(placement.kind)
        told = [number for (number,) in gather_numbers([own], wish.device)]
        if failure is None and min(told) < 0:
            failure = PlacementError(f"rank {told.index(-1)} cannot place the samples; see what it says.")
        elif placement is not None and max(told) != own:
            reason = f"as rank {told.index(max(told))} has to"
            placement = Placement(kind=kinds[max(told)], reason=f"{describe(dataset)}, {reason}")
    if failure is not None or placement is None:
        raise failure or PlacementError("no placement")
    if wish.progress:
        Console(stderr=True, soft_wrap=True).print(f"{dataset.split}: {placement}", highlight=False, markup=False)
    return placement


def need_of(dataset: Dataset, batch_size: int, world_size: int = 1) -> Need:
    """Return what a split needs of memory."""
    return Need(
        num_samples=len(dataset), sample_shape=dataset.sample_shape, itemsize=dataset.shards[0].itemsize,
        batch_size=batch_size, what=describe(dataset), world_size=world_size,
    )  # fmt: skip


def _choose(dataset: AnyDataset, wish: Wish) -> Placement:
    check_kind(wish.kind)
    if isinstance(dataset, Dataset):
        return _choose_resident(dataset, wish)
    possible = ("ffcv", "folder") if isinstance(dataset, Beton) else ("folder",)
    if wish.kind not in (*possible, "auto"):
        raise ConfigError(
            f'placement="{wish.kind}" is for what fastload convert writes, and {printable(dataset.path)} is read '
            f"sample by sample; use placement={' or '.join(possible)}, or convert it."
        )
    what = describe(dataset)
    if wish.kind == "ffcv" or (wish.kind == "auto" and isinstance(dataset, Beton) and can_decode()):
        return Placement(kind="ffcv", reason=f"{what}, decoded by ffcv's functions on {num_workers(wish)} threads")
    return Placement(kind="folder", reason=f"{what}, one by one through DataLoader({num_workers(wish)})")


def _choose_resident(dataset: Dataset, wish: Wish) -> Placement:
    """Choose the memory; a copy that another loader has there takes no more of it."""
    whole: tuple[Whole, ...] = get_args(Whole)
    shared = {
        kind: Placement(kind=kind, reason=f"{describe(dataset)}, the copy of another loader of this process")
        for kind in whole if copies.find(_name(dataset, wish, kind)) is not None
    }  # fmt: skip
    # The fastest memory that there is: no look at what is free could find better.
    first = "gpu" if wish.kind == "auto" else wish.kind
    if first in shared:
        return shared[first]
    need = need_of(dataset, wish.batch_size, wish.world_size)
    placement = choose(wish.kind, need, wish.device, reserve_bytes=wish.reserve_bytes)
    return shared.get("host", placement) if wish.kind == "auto" and placement.kind == "mapped" else placement


def _name(dataset: Dataset, wish: Wish, kind: Whole) -> copies.Name:
    """Return the name of a copy of a split in GPU memory or in RAM."""
    where: dict[str, Any] = {"together": wish.together} if kind == "host" else {"device": wish.device}
    return copies.Name(path=dataset.path.resolve(), digest=dataset.digest, split=dataset.split, kind=kind, **where)


def num_workers(wish: Wish) -> int:
    """Return how many processes or threads read: as asked, else one per core of this rank."""
    if wish.workers is not None:
        return wish.workers
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def one_size(dataset: AnyDataset, cut: Cut | None) -> tuple[int, int] | None:
    """Return (S, T) of the batches where a store decodes images; None where they come as they are.

    Raises:
        ConfigError: images of their own sizes, and no cut; or a cut, and nothing to cut.
        TransformError: images that are known to be smaller than the cut.
    """
    if isinstance(dataset, Dataset) or not dataset.is_uint8:
        if cut is not None:
            raise ConfigError(
                f"cut is for images of their own sizes, and those of {printable(dataset.path)} are of one size; "
                "leave it out, and crop in augment."
            )
        return None
    if cut is not None:
        if isinstance(dataset, Beton):
            cut.check(dataset.sizes.numpy())  # now, not in the midst of an epoch
        return cut.size
    if isinstance(dataset, MapDataset):
        return None
    if dataset.one_size is None:
        raise ConfigError(
            f"{printable(dataset.path)} holds images of their own sizes, {dataset.sample}; pass "
            "cut=torchvision.transforms.v2.RandomResizedCrop(224), or Resize(256) and CenterCrop(224)."
        )
    return dataset.one_size


def make_store(
    dataset: AnyDataset, placement: Placement, wish: Wish, holdings: Holdings, ids: torch.Tensor | None
) -> Store:
    """Bring the samples to where `placement` says.

    Args:
        holdings, ids: of a sharded placement: who holds what, and the sample id of each position where some are
            left out.
    """
    pinned = wish.device.type == "cuda"
    if placement.kind == "ffcv":
        assert isinstance(dataset, Beton)
        size = one_size(dataset, wish.cut)
        assert size is not None
        file = BetonFile(path=dataset.path, modes=dataset.modes, places=dataset.places_N2, sizes=dataset.sizes.numpy())
        return BetonStore(file, size, threads=max(1, num_workers(wish)), pinned=pinned)
    if placement.kind == "folder" or not isinstance(dataset, Dataset):
        size = one_size(dataset, wish.cut)
        return FolderStore(dataset, dataset.source_name, size, workers=num_workers(wish), pinned=pinned)
    shards = dataset.shards
    if placement.kind == "mapped":
        return MappedStore(shards, dataset.places, pinned=pinned, in_place=wish.in_place)
    if placement.kind == "gpu_sharded":
        # Nobody else's: it changes as the ranks swap.
        every = torch.arange(len(dataset), device="cpu") if ids is None else ids
        read = MappedStore(shards, dataset.places, pinned=pinned).gather
        total = len(holdings.first(wish.rank)) * dataset.row_bytes
        bar = byte_bar(f"load {dataset.split}", total, wish.progress)
        with _enough_memory(placement.kind, total, wish.device), bar as advance:
            return ShardedStore(
                holdings, every, wish.rank, read, shards[0][:0], wish.device, swap=wish.together, advance=advance
            )
    if placement.kind == "host":
        return TensorStore(_copy(dataset, wish, "host"), pinned=pinned, in_place=wish.in_place)
    return TensorStore(_copy(dataset, wish, "gpu"))


def _copy(dataset: Dataset, wish: Wish, kind: Whole) -> torch.Tensor:
    """Return all samples in one tensor in the wished memory: the one that is there already, or a new one."""
    name = _name(dataset, wish, kind)
    found = copies.find(name)
    if name.together and not all(there for (there,) in gather_numbers([int(found is not None)], wish.device)):
        found = None  # a rank has let go of its own already, and a new one is made by all of them
    if found is not None:
        return found
    shards = dataset.shards
    bar = byte_bar(f"load {dataset.split}", dataset.num_bytes, wish.progress)
    with _enough_memory(kind, dataset.num_bytes, wish.device), bar as advance:
        if kind == "host":
            samples = host_tensor(shards, wish.device, together=name.together, advance=advance)
        else:
            samples = torch.empty((len(dataset), *dataset.sample_shape), dtype=shards[0].dtype, device=wish.device)
            fill(samples, shards, advance=advance)
    return copies.keep(name, samples)


def without_steps(dataset: AnyDataset, shares: Shares) -> ConfigError:
    """Return the error for a split that makes not a single step, with what would."""
    place, split, count = printable(dataset.path), dataset.split, len(dataset)
    if not count:
        return ConfigError(f"{place}: {split} is empty: no image of it could be read (see bad.csv); leave it out.")
    if not shares.num_samples:
        return ConfigError(
            f"{place}: none of the {count:,} samples of {split} has a label; pass shuffle=False to predict them."
        )
    return ConfigError(
        f"{place}: {split} has {shares.num_samples:,} samples, less than one step of {shares.global_batch:,} "
        f"({shares.batch_size} x {shares.world_size} ranks); use a smaller batch size, or drop_last=False."
    )


@contextmanager
def _enough_memory(kind: str, num_bytes: int, device: torch.device) -> Iterator[None]:
    """Say in one sentence that the GPU lacks memory for samples: between choosing and taking, others took of it."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        free, total = torch.cuda.mem_get_info(device)
        raise PlacementError(
            f'placement="{kind}": {device} has no {gib(num_bytes)} in one piece for the samples ({gib(free)} of '
            f'{gib(total)} are free); use placement="host", or end what else is on that GPU.'
        ) from e


@contextmanager
def byte_bar(name: str, total: int, show: bool) -> Iterator[Callable[[int], object]]:
    """Show `total` bytes on standard error; yields what is called with the number that are done."""
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
