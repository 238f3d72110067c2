"""The loader: order, exact shares per rank, gather, augment -> batches on the device.

Not a `DataLoader` and not an `IterableDataset`, so `accelerator.prepare` leaves it alone; what
Accelerate wants to know while it is iterated, it tells through `GradientState`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fastload.augment import Augment
from fastload.augment.philox import derive
from fastload.devices import Rank, current_rank, parse_device
from fastload.errors import ConfigError, printable
from fastload.formats import Dataset
from fastload.placement import Kind, Placement, choose
from fastload.records import UNLABELLED
from fastload.shares import Shares
from fastload.stores import MappedStore, Store, TensorStore

STATE_VERSION = 1


class Loader:
    """Batches of augmented images on the device, and their labels.

    `for images, labels in loader`: images [B, C, S, T] as `augment` makes them, labels int64 [B], both
    on `device` and owned by the caller. Each pass is an epoch with its own order and draws; all ranks
    together see each sample at most once (`drop_last`) or exactly once.

    Args:
        dataset: one split, from `open_dataset`.
        batch_size: samples per rank and step.
        augment: an Augment; without one, float32 images in 0..1 of the stored size.
        device: where batches are wanted; Accelerate's, else cuda, else mps, else cpu.
        placement: the memory that serves them: `gpu`, `host`, `mapped`, or `auto`: the fastest that fits.
        shuffle: a new order every epoch, keyed on (seed, epoch), of the samples that have a label.
        drop_last: leave out the partial last step; as `shuffle` where not given: training needs equal
            steps, evaluation every sample.
        seed: of order and draws.
        rank, world_size: which share; from Accelerate or torch.distributed where not given.
        progress: show a bar on standard error while the images are brought into place.

    Attributes:
        dataset: what it loads.
        placement: where the images lie, and why.
        shares: the arithmetic of steps and ranks.
        num_valid: rows of the current batch that count; the rest is padding to equal shapes.
        batch_ids: sample ids of the current batch, int64 [B] on the CPU.
        epoch: number of the current pass, or of the next one between passes.
        remainder, end_of_dataloader: what Accelerate's GradientState asks for.
        on_device_work: called just before the loader's own work on the device begins, so that a
            profiler does not book copy and augmentation as waiting.

    Raises:
        ConfigError: an argument cannot be right, or the split is smaller than one step.
        PlacementError: the asked-for memory does not hold the images.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        augment: Augment | None = None,
        device: str | torch.device | None = None,
        placement: Kind = "auto",
        shuffle: bool = True,
        drop_last: bool | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        progress: bool = False,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ConfigError("rank and world_size go together; pass both or neither.")
        here = current_rank() if rank is None or world_size is None else Rank(rank=rank, world_size=world_size)
        self.rank = here.rank
        # Unlabelled samples are there for prediction: in a fixed order they come along, to train on they do not.
        labelled = torch.nonzero(dataset.labels != UNLABELLED).flatten()
        self._ids = labelled if shuffle and len(labelled) < len(dataset) else None
        num_samples = len(dataset) if self._ids is None else len(self._ids)
        self.shares = Shares(
            num_samples=num_samples, batch_size=batch_size, world_size=here.world_size,
            drop_last=shuffle if drop_last is None else drop_last,
        )  # fmt: skip
        if not 0 <= self.rank < self.shares.world_size:
            raise ConfigError(f"rank={self.rank}: ranks of {self.shares.world_size} are counted from 0.")
        if self.shares.num_steps == 0:
            raise ConfigError(
                f"{printable(dataset.path)}: {dataset.split} has {num_samples:,} samples, less than one step of "
                f"{self.shares.global_batch:,} ({batch_size} x {self.shares.world_size} ranks); "
                "use a smaller batch size, or drop_last=False."
            )
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed}: seeds lie between 0 and 2**63 - 1.")
        self.dataset = dataset
        self.augment = augment if augment is not None else Augment()
        self.device = parse_device(device)
        self.shuffle = shuffle
        self.seed = seed
        self.placement: Placement = choose(placement, dataset.num_bytes, describe(dataset), self.device)
        self._store = self._make_store(progress)
        # A stream of their own: copies of the next batch then run beside the step that uses this one.
        self._copies: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._labels = dataset.labels.to(self.device) if self.placement.kind == "gpu" else dataset.labels

        self.epoch = 0
        self.num_valid = 0
        self.batch_ids = torch.empty(0, dtype=torch.int64)
        self.remainder = self.shares.remainder
        self.end_of_dataloader = False
        self.on_device_work: Callable[[], None] | None = None
        self._steps_done = 0  # of the current pass, in batches handed out
        self._resuming = False

    def __len__(self) -> int:
        """Return the number of steps in one epoch, the same on every rank."""
        return self.shares.num_steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._steps_done and not self._resuming:
            self.epoch += 1  # the last pass was left before its end: this is a new one, with a new order
            self._steps_done = 0
        self._resuming = False
        order = self._order()
        first, epoch = self._steps_done, self.epoch
        with self._registered():
            upcoming = self._fetch(order, first)
            for step in range(first, len(self)):
                fetched, last = upcoming, step + 1 == len(self)
                if not last:
                    # Before this batch is used: the copy of the next one runs beside the step.
                    upcoming = self._fetch(order, step + 1)
                batch = self._finish(fetched, epoch)
                self.num_valid, self.batch_ids, self.end_of_dataloader = fetched.num_valid, fetched.ids, last
                self.epoch, self._steps_done = (epoch + 1, 0) if last else (epoch, step + 1)
                yield batch

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next pass, from its start."""
        if epoch < 0:
            raise ConfigError(f"epoch={epoch}: epochs are counted from 0.")
        self.epoch, self._steps_done, self._resuming = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, the same on every rank; `load_state_dict` goes on from there."""
        return {
            "version": STATE_VERSION,
            "dataset": self.dataset.digest,
            "split": self.dataset.split,
            "seed": self.seed,
            "epoch": self.epoch,
            "samples_seen": self._steps_done * self.shares.global_batch,
            "global_batch": self.shares.global_batch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken: the next pass gives the batches that were still to come.

        Raises:
            ConfigError: another dataset, split, seed or version, or within an epoch another global batch.
        """
        own = self.state_dict()
        if state.get("version") != STATE_VERSION:
            raise ConfigError(f"loader state has version {state.get('version')!r}, not {STATE_VERSION}; start anew.")
        for key in ("dataset", "split", "seed", *(("global_batch",) if state["samples_seen"] else ())):
            if state[key] != own[key]:
                raise ConfigError(
                    f"loader state has {key} {printable(state[key])}, this loader {printable(own[key])}; "
                    "use the same, or start anew."
                )
        self.epoch = int(state["epoch"])
        self._steps_done = int(state["samples_seen"]) // self.shares.global_batch
        self._resuming = self._steps_done > 0

    def _make_store(self, progress: bool) -> Store:
        pinned = self.device.type == "cuda"
        shards = self.dataset.shards
        if self.placement.kind == "mapped":
            return MappedStore(shards, pinned=pinned)
        in_gpu = self.placement.kind == "gpu"
        with _bar(f"load {self.dataset.split}", self.dataset.num_bytes, progress) as advance:
            where = self.device if in_gpu else torch.device("cpu")
            return TensorStore(shards, where, pinned=pinned and not in_gpu, advance=advance)

    def _order(self) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        low, high = derive(self.seed, self.epoch)
        generator = torch.Generator().manual_seed((high << 32 | low) - 2**63)
        order = torch.randperm(self.shares.num_samples, generator=generator)
        return order if self._ids is None else self._ids[order]

    def _fetch(self, order: torch.Tensor, step: int) -> _Fetched:
        """Gather the stored images and labels of one step, and begin their copy to the device."""
        start, stop, num_padding = self.shares.rows(step, self.rank)
        # Padding repeats the order's first sample: real data of the right shape, and never counted.
        ids = torch.cat([order[start:stop], order[:1].expand(num_padding)])
        if isinstance(self._store, TensorStore) and self.placement.kind == "gpu":
            # All images are there: augmentation takes its own out of them, and no batch is copied.
            rows = ids.to(self.device, non_blocking=True)
            labels = self._labels[rows]
            return _Fetched(
                ids=ids, num_valid=stop - start, images=self._store.images, labels=labels, copied=None, rows=rows
            )
        images = self._store.gather(ids)
        labels = self._labels[ids.to(self._labels.device, non_blocking=True)]
        copied = None
        if images.device != self.device:
            with torch.cuda.stream(self._copies) if self._copies is not None else nullcontext():
                images = images.to(self.device, non_blocking=True)
                labels = labels.to(self.device, non_blocking=True)
            copied = self._copies.record_event() if self._copies is not None else None
        return _Fetched(ids=ids, num_valid=stop - start, images=images, labels=labels, copied=copied)

    def _finish(self, fetched: _Fetched, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment what was fetched, on the stream that uses it."""
        if self.on_device_work is not None:
            self.on_device_work()
        if fetched.copied is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(fetched.copied)
            # The memory belongs to the copying stream: without this it would be given away while still in use.
            fetched.images.record_stream(stream)
            fetched.labels.record_stream(stream)
        return self.augment(
            fetched.images, fetched.labels, ids=fetched.ids, rows=fetched.rows, epoch=epoch, seed=self.seed
        )

    @contextmanager
    def _registered(self) -> Iterator[None]:
        """Tell Accelerate's GradientState, where it is in use, that this is the loader being iterated."""
        state = sys.modules.get("accelerate.state")
        if state is None:
            yield
            return
        gradient_state = state.GradientState()
        self.end_of_dataloader = False
        gradient_state._add_dataloader(self)
        try:
            yield
        finally:
            gradient_state._remove_dataloader(self)


@dataclass(frozen=True, kw_only=True)
class _Fetched:
    """Stored images and labels of one step, on the device or on their way there.

    `rows`: which of `images` they are, where these are all of them.
    """

    ids: torch.Tensor
    num_valid: int
    images: torch.Tensor
    labels: torch.Tensor
    copied: torch.cuda.Event | None
    rows: torch.Tensor | None = None


def describe(dataset: Dataset) -> str:
    """Return a split's size in words, e.g. `3,887 x 128x128x3 uint8`."""
    return f"{len(dataset):,} x {'x'.join(str(n) for n in dataset.image_shape)} uint8"


@contextmanager
def _bar(name: str, total: int, show: bool) -> Iterator[Callable[[int], object]]:
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
