"""The loader: order, exact shares per rank, gather, augment -> batches on the device.

Not a `DataLoader` and not an `IterableDataset`, so `accelerator.prepare` leaves it alone; what
Accelerate wants to know while it is iterated, it tells through `GradientState`.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fastload.augment import Augment
from fastload.augment.philox import derive
from fastload.chosen import choose_samples
from fastload.cut import parse_cut
from fastload.devices import parse_device, rank_of
from fastload.errors import ConfigError, printable
from fastload.formats import AnyDataset, Dataset
from fastload.placement import Kind, Placement
from fastload.resharding import Holdings
from fastload.shares import Shares
from fastload.stores import Served, Wanted
from fastload.stores.copying import Copies, Copy
from fastload.stores.sharded import ShardedStore
from fastload.storing import Wish, make_store, one_size, place, without_steps
from fastload.together import can_talk

STATE_VERSION = 1
# Augmentation on the CPU draws for as many samples at once: of batches of 64, drawing one by one takes 60% of the time.
DRAWN_AT_ONCE = 1024


class Loader:
    """Batches of augmented images on the device, and their labels; or of the rows of a table.

    `for images, labels in loader`: images [B, C, S, T] as `augment` makes them, labels int64 [B], both
    on `device` and owned by the caller. Of a table, features float32 [B, D] as they are stored, and labels
    int64 [B] or float32 [B, T]. Each pass is an epoch with its own order and draws; all ranks
    together see each sample at most once (`drop_last`) or exactly once.

    Args:
        dataset: one split, from `open_dataset`; or any map-style dataset, which is read through DataLoader.
        batch_size: samples per rank and step.
        augment: an Augment, of images only; without one, float32 images in 0..1 of the stored size.
        device: where batches are wanted; Accelerate's, else cuda, else mps, else cpu.
        placement: the memory that serves them: `gpu`, `gpu_sharded` (each rank a share), `host`, `mapped`; `ffcv`
            (a .beton) and `folder` (sample by sample through DataLoader, to compare with); or `auto`: the fastest
            of gpu, host and mapped that fits. Loaders of one split in one process share its copy in `gpu` or `host`.
        shuffle: a new order every epoch, keyed on (seed, epoch), of the samples that have a label.
        drop_last: leave out the partial last step; as `shuffle` where not given: training needs equal
            steps, evaluation every sample.
        seed: of order and draws.
        rank, world_size: which share; from Accelerate or torch.distributed where not given. Then every rank makes
            its loaders, in the same order: they choose one placement, and those of a node share one copy of `host`.
            All ranks take the same passes: a look at one batch on one rank alone puts it an epoch ahead of the others,
            until all call `set_epoch`; in `gpu_sharded` it may wait for them for ever.
        cut: of images of their own sizes: torchvision's RandomResizedCrop, Resize((S, T)), or Resize and CenterCrop,
            done on the CPU as they are decoded. Augment does the rest.
        workers: threads (`ffcv`) or processes (`folder`) that read and decode; one per core where not given.
        reserve_bytes: GPU memory kept for the model; where not given, `auto` keeps half of what is free.
        reshuffle_every: `gpu_sharded`: epochs after which ranks swap samples.
        progress: say on standard error where the samples go, and show a bar while they do.
        indices: ids of the samples to load instead of all: whole numbers [n], a list, array or tensor. One that is
            there twice comes twice, in one epoch augmented alike. A torch Subset of a dataset brings its own. The whole
            split is placed, except in `gpu_sharded`.

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

    # Where a new one stands.
    epoch = 0
    num_valid = 0
    end_of_dataloader = False
    on_device_work: Callable[[], None] | None = None
    _steps_done = 0  # of the current pass, in batches handed out
    _resuming = False

    def __init__(
        self,
        dataset: AnyDataset | Any,
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
        cut: Any = None,
        workers: int | None = None,
        reserve_bytes: int | None = None,
        reshuffle_every: int = 1,
        progress: bool = False,
        indices: Any = None,
    ) -> None:
        here = rank_of(rank, world_size)
        self.rank = here.rank
        chosen = choose_samples(dataset, indices, shuffle=shuffle)
        dataset, self._ids, self._digest = chosen.dataset, chosen.ids, chosen.digest
        self.dataset: AnyDataset = dataset
        num_samples = len(dataset) if self._ids is None else len(self._ids)
        self.shares = Shares(
            num_samples=num_samples, batch_size=batch_size, world_size=here.world_size,
            drop_last=shuffle if drop_last is None else drop_last,
        )  # fmt: skip
        self._check(seed, workers, reshuffle_every, augment)
        self.augment = augment if augment is not None or not dataset.is_uint8 else Augment()
        self.device = parse_device(device)
        # What images are like that augmentation finds on the CPU as they are stored.
        self._like: torch.Tensor | None = None
        if isinstance(dataset, Dataset) and dataset.is_uint8 and not dataset.is_table and self.device.type == "cpu":
            self._like = torch.empty((0, *dataset.sample_shape), dtype=torch.uint8, device="cpu")
        self.shuffle = shuffle
        self.seed = seed
        self.reshuffle_every = reshuffle_every
        self._cut = None if cut is None else parse_cut(cut)
        one_size(dataset, self._cut)
        wish = Wish(
            kind=placement, device=self.device, batch_size=batch_size, rank=here.rank, world_size=here.world_size,
            together=rank is None and can_talk(here.world_size), reserve_bytes=reserve_bytes, workers=workers,
            cut=self._cut, in_place=augment is not None and self.device.type == "cpu", progress=progress,
        )  # fmt: skip
        self._place(wish)
        self.batch_ids = torch.empty(0, dtype=torch.int64, device="cpu")
        self.remainder = self.shares.remainder

    def _place(self, wish: Wish) -> None:
        """Put the samples where `wish` wants them, and their labels beside them."""
        dataset, shares = self.dataset, self.shares
        self.placement: Placement = place(dataset, wish)
        self._holdings = Holdings(shares, self.seed)
        if self._is_sharded:
            self._holdings.check()
        self._store = make_store(dataset, self.placement, wish, self._holdings, self._ids)
        # Where this rank's own samples begin in an order of all of them, if it has any.
        own = self.rank * shares.batch_size
        is_apart = self.placement.kind == "gpu_sharded" and not self.shuffle
        self._first = own if is_apart and own < shares.num_samples else 0
        self._labels, is_there = dataset.labels, self.placement.kind in ("gpu", "gpu_sharded")
        self._copies = Copies(self.device) if self.device.type == "cuda" and not is_there else None
        if self._labels is not None and is_there:
            self._labels = self._labels.to(self.device)

    @classmethod
    def from_accelerator(cls, accelerator: Any, dataset: AnyDataset | Any, batch_size: int, **options: Any) -> Loader:
        """Return a loader with the accelerator's device and this process's share.

        Args:
            accelerator: Accelerate's; with `split_batches`, `batch_size` is that of all ranks together.
            dataset, batch_size, options: as of Loader.

        Raises:
            ConfigError: as Loader; or `split_batches` and a batch that the ranks cannot share equally.
        """
        world_size = int(accelerator.num_processes)
        if accelerator.split_batches:
            if batch_size % world_size:
                raise ConfigError(
                    f"batch_size={batch_size}: split_batches shares it among {world_size} ranks; pass a multiple."
                )
            batch_size //= world_size
        # Rank and number of ranks are not passed on: Accelerate's state, which it has set up, says them.
        return cls(dataset, batch_size, **{"device": accelerator.device, **options})

    def __len__(self) -> int:
        """Return the number of steps in one epoch, the same on every rank."""
        return self.shares.num_steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._leave_pass()
        self._resuming = False
        first, epoch = self._steps_done, self.epoch
        augment = self.augment  # of the whole pass: draws are made ahead
        with self._registered(), closing(self._serve(epoch, first, augment)) as served:
            fetched = deque([self._fetch(next(served))])
            for step in range(first, len(self)):
                last = step + 1 == len(self)
                if not last:
                    # Before this batch is used: the copy of the next one runs beside the step.
                    fetched.append(self._fetch(next(served)))
                wanted, batch = self._finish(*fetched.popleft(), epoch, augment)
                if self._copies is not None:
                    self._copies.end()  # nobody holds what was copied any more: from here on its memory may be taken
                self.num_valid, self.batch_ids, self.end_of_dataloader = wanted.num_valid, wanted.ids, last
                self.epoch, self._steps_done = (epoch + 1, 0) if last else (epoch, step + 1)
                yield batch
                del batch  # the caller's alone: its memory may be taken again while the next one is made

    def skip(self, num_steps: int) -> None:
        """Leave out the next `num_steps` steps, over the end of an epoch if need be: none of them is read."""
        if num_steps < 0:
            raise ConfigError(f"num_steps={num_steps}: a number of steps from 0 on is needed.")
        self._leave_pass()
        epochs, self._steps_done = divmod(self._steps_done + num_steps, len(self))
        self.epoch += epochs
        self._resuming = self._steps_done > 0

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next pass, from its start."""
        if epoch < 0:
            raise ConfigError(f"epoch={epoch}: epochs are counted from 0.")
        self.epoch, self._steps_done, self._resuming = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, the same on every rank; `load_state_dict` goes on from there."""
        one_for_all = "whole" if self.shuffle else "file"
        return {
            "version": STATE_VERSION,
            "dataset": self.dataset.digest,
            "split": self.dataset.split,
            "seed": self.seed,
            "order": f"shares, swapped every {self.reshuffle_every}" if self._is_sharded else one_for_all,
            "epoch": self.epoch,
            "samples_seen": self._steps_done * self.shares.global_batch,
            "global_batch": self.shares.global_batch,
            **({} if self._digest is None else {"indices": self._digest}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken: the next pass gives the batches that were still to come.

        Raises:
            ConfigError: another dataset, split, seed, version or list of samples; or within an epoch another global
                batch or order.
        """
        own = self.state_dict()
        if state.get("version") != STATE_VERSION:
            raise ConfigError(f"loader state has version {state.get('version')!r}, not {STATE_VERSION}; start anew.")
        within = ("global_batch", "order") if state["samples_seen"] else ()
        for key in ("dataset", "split", "seed", "indices", *within):
            if state.get(key) != own.get(key):
                raise ConfigError(
                    f"loader state has {key} {printable(state.get(key))}, this loader {printable(own.get(key))}; "
                    "use the same, or start anew."
                )
        # Where this loader drops the last step, and the other had only that one to go, the epoch is over.
        epochs, self._steps_done = divmod(int(state["samples_seen"]) // self.shares.global_batch, len(self))
        self.epoch = int(state["epoch"]) + epochs
        self._resuming = self._steps_done > 0

    @property
    def _is_sharded(self) -> bool:
        return self.placement.kind == "gpu_sharded" and self.shuffle

    def _check(self, seed: int, workers: int | None, reshuffle_every: int, augment: Augment | None) -> None:
        shares = self.shares
        if not 0 <= self.rank < shares.world_size:
            raise ConfigError(f"rank={self.rank}: ranks of {shares.world_size} are counted from 0.")
        if shares.num_steps == 0:
            raise without_steps(self.dataset, shares)
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed}: seeds lie between 0 and 2**63 - 1.")
        if reshuffle_every < 1 or (workers is not None and workers < 0):
            raise ConfigError(
                f"reshuffle_every={reshuffle_every}, workers={workers}: at least 1 epoch, and 0 or more workers."
            )
        if self.dataset.is_table and augment is not None:
            raise ConfigError(f"{printable(self.dataset.path)} is a table, and augment is for images; leave it out.")
        if not self.dataset.is_uint8 and augment is not None:
            raise ConfigError(
                f"{printable(self.dataset.path)} gives floats, and augment takes stored pixels; leave augment out, or "
                "the dataset's own ToTensor and Normalize."
            )

    def _leave_pass(self) -> None:
        """Go on with the next epoch where the last pass was left before its end: it shall not be repeated."""
        if self._steps_done and not self._resuming:
            self.epoch += 1
            self._steps_done = 0

    def _order(self, epoch: int) -> torch.Tensor:
        """Return sample ids in the order of an epoch, of all ranks; of a sharded placement, of this one."""
        if not self.shuffle:
            return torch.arange(len(self.dataset), device="cpu") if self._ids is None else self._ids
        if isinstance(self._store, ShardedStore):
            held = self._store.held[self._holdings.order(epoch, self.rank)]
            order = held if len(held) else torch.zeros(1, dtype=torch.int64, device="cpu")
        else:
            low, high = derive(self.seed, epoch)
            generator = torch.Generator().manual_seed((high << 32 | low) - 2**63)
            order = torch.randperm(self.shares.num_samples, generator=generator, device="cpu")
        return order if self._ids is None else self._ids[order]

    def _serve(self, epoch: int, first: int, augment: Augment | None) -> Generator[Served, None, None]:
        """Return what the store gives for the steps of an epoch from `first` on."""
        if isinstance(self._store, ShardedStore) and self.shuffle:
            self._store.begin_round(epoch // self.reshuffle_every)
        return self._store.serve(self._steps(epoch, first, augment))

    def _steps(self, epoch: int, first: int, augment: Augment | None) -> Iterator[Wanted]:
        """Yield what the steps of an epoch want, from `first` on, with what can be drawn for them ahead."""
        order = self._order(epoch)
        at_once = 1 if self._like is None else max(1, DRAWN_AT_ONCE // self.shares.batch_size)
        for low in range(first, len(self), at_once):
            some = [self._wanted(order, step, epoch) for step in range(low, min(low + at_once, len(self)))]
            drawn = None
            if self._like is not None and augment is not None:
                drawn = augment.ahead(self._like, [w.ids for w in some], epoch=epoch, seed=self.seed)
            if drawn is not None:
                some = [replace(w, drawn=d) for w, d in zip(some, drawn, strict=True)]
            yield from some

    def _wanted(self, order: torch.Tensor, step: int, epoch: int) -> Wanted:
        start, stop, num_padding = self.shares.rows(step, self.rank)
        if self._is_sharded:  # the order is this rank's own
            start, stop = step * self.shares.batch_size, step * self.shares.batch_size + stop - start
        # Padding repeats the first sample, or the first that this rank holds: of the right shape, and never counted.
        padding = order[self._first : self._first + 1].expand(num_padding)
        ids = torch.cat([order[start:stop], padding])
        boxes = None if self._cut is None else partial(self._cut.boxes, seed=self.seed, epoch=epoch)
        return Wanted(ids=ids, num_valid=stop - start, boxes=boxes)

    def _fetch(self, served: Served) -> tuple[Served, Copy | None]:
        """Look up the labels of one step, and begin the copy of its samples to the device."""
        samples, labels, copy = served.samples, served.labels, None
        if labels is None:
            assert self._labels is not None
            labels = self._labels[served.wanted.ids.to(self._labels.device, non_blocking=True)]
        if samples.device != self.device and self._copies is not None:
            copy = self._copies.begin(samples, labels)
            samples, labels = copy.samples, copy.labels
        elif samples.device != self.device:
            samples, labels = samples.to(self.device), labels.to(self.device)
        return replace(served, samples=samples, labels=labels), copy

    def _finish(
        self, served: Served, copy: Copy | None, epoch: int, augment: Augment | None
    ) -> tuple[Wanted, tuple[torch.Tensor, torch.Tensor]]:
        """Augment what was fetched, on the stream that uses it; nothing else holds it, and it goes with this call."""
        wanted, samples, rows, labels = served.wanted, served.samples, served.rows, served.labels
        assert labels is not None
        if self.on_device_work is not None:
            self.on_device_work()
        if copy is not None:
            copy.join()
        if augment is None:
            samples = samples if rows is None else samples.index_select(0, rows)
        elif wanted.drawn is not None:
            samples = augment.made(samples, rows, wanted.drawn)
        else:
            samples, labels = augment(samples, labels, ids=wanted.ids, rows=rows, epoch=epoch, seed=self.seed)
        return wanted, (samples, labels)

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
