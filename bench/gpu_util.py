"""`bench gpu-util`: the same training step, fed several ways, and its ceiling.

X_real: images/s of the run. X_load: of the loader alone. X_replay: of the step on a few batches that
are already on the device. headspace = 1 - X_real / X_replay; efficiency = X_real / min(X_load, X_both), where X_both
is X_replay and the loader's own work on the device, one after the other.
"""

from __future__ import annotations

import itertools
import shlex
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.progress import Progress

import fastload
from bench.cores import num_cores
from bench.feeds import Feed, Step
from bench.peers import beton_loader, check_enough, fast_loader, find_pair, folder_loader, training_folder
from fastload.devices import parse_device
from fastload.errors import ConfigError, printable
from fastload.gain import predicted_rate
from fastload.profiling.actions import MEASURED, Advice, advise, resident_bytes, stored_side
from fastload.profiling.loops import IN_MEMORY, make_loop
from fastload.profiling.report import Action, Loop, Report, ResidentGain, Run, Sample, described
from fastload.profiling.samples import time_samples

NUM_CACHED = 4
NUM_BLOCKS = 3
LOADERS = ("folder", "ffcv", "host", "mapped", "gpu", "auto")
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "resnet_flowers.py"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run; a wrong option is a ConfigError."""

    model: str
    size: int
    batch_size: int
    steps: int
    workers: int
    precision: str
    device: str | None
    max_images: int
    loaders: tuple[str, ...] = ("folder", "auto")
    assume_gpu_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("size", "batch_size", "steps", "max_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: at least 1 is needed.")
        if self.workers < 0:
            raise ConfigError(f"workers={self.workers}: 0 or more processes can load.")
        if self.precision not in ("no", "bf16"):
            raise ConfigError(f"precision={self.precision!r}: not one of no, bf16.")
        unknown = [name for name in self.loaders if name not in LOADERS]
        if unknown or not self.loaders:
            raise ConfigError(f"--loader {printable(','.join(unknown))}: not one of {', '.join(LOADERS)}.")
        if self.assume_gpu_rate is not None and not self.assume_gpu_rate > 0:
            raise ConfigError(f"assume_gpu_rate={self.assume_gpu_rate}: images per second, more than 0, are needed.")
        if not timm.is_model(self.model):
            raise ConfigError(f"model {printable(repr(self.model))} is not known to timm; try resnet18 or resnet50.")


def measure(data: Path, options: Options) -> dict[str, Any]:
    """Measure and return the report (schema `fastload-gpu-util`), ready for JSON.

    Raises:
        ConfigError, SourceError, DatasetError: options or data that cannot be measured.
    """
    folder, dataset = find_pair(data)
    device = parse_device(options.device)
    store = stored_side(options.size) if dataset is None else fastload.open_dataset(dataset).sample_shape[0]
    if store < options.size:
        raise ConfigError(
            f"{printable(data)} stores {store} pixels, less than --size {options.size}; pass --size {store} or less."
        )
    with (
        training_folder(folder, options.max_images) as (images, count),
        tempfile.TemporaryDirectory() as scratch,
    ):
        # The first batch of an epoch never counts: an epoch of one batch has no step to measure.
        check_enough(folder, count, options.batch_size, num_batches=2)
        step = _make_step(options, len(list(images.iterdir())), device)
        feeds = [
            _feed(kind, images, dataset, Path(scratch), store, options, device)
            for kind in dict.fromkeys(options.loaders)
        ]
        loops = _run(feeds, step, options, device)
    return _report(folder, data, count, store, loops, feeds, options, device).as_dict()


def _feed(
    kind: str, images: Path, dataset: Path | None, scratch: Path, store: int, options: Options, device: torch.device
) -> Feed:
    """Return one way of feeding, what it needs converted first."""
    sizes: dict[str, Any] = {"size": options.size, "batch_size": options.batch_size}
    if kind == "folder":
        loader = folder_loader(
            images, store=store, workers=options.workers, pin=device.type == "cuda", endless=True, **sizes
        )
        return Feed(f"ImageFolder + DataLoader({options.workers})", loader, device)
    if kind == "ffcv":
        loader = beton_loader(images, scratch / "beton", store=store, workers=max(1, options.workers), device=device,
                              **sizes)  # fmt: skip
        return Feed(f"fastload, ffcv({max(1, options.workers)})", loader, device)
    if dataset is None:
        dataset = scratch / "bench.fastload"
        if not dataset.exists():
            fastload.convert(images, dataset, size=store, progress=True)
    loader = fast_loader(dataset, device=device, placement=kind, **sizes)
    placed = loader.placement.kind
    return Feed(f"fastload, {placed}", loader, device, memory_bytes=resident_bytes(len(loader.dataset), store))


def _run(feeds: list[Feed], step: Step, options: Options, device: torch.device) -> tuple[Loop, ...]:
    """Run blocks of everything in turn: a machine that others use too changes its speed from minute to minute."""
    cached = [
        (images.to(device), labels.to(device)) for images, labels in itertools.islice(feeds[-1].forever(), NUM_CACHED)
    ]
    replay = Feed("replay", cached, device)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for _ in bar.track(range(NUM_BLOCKS), description="blocks of steps, fed each way"):
            for feed in (replay, *feeds):
                feed.run_block(step, -(-options.steps // NUM_BLOCKS))
            for feed in feeds:
                feed.load_block()
    if device.type == "cuda":
        for feed in feeds:
            feed.window(step)
    loops = []
    for feed in feeds:
        measured = feed.measured(replay.x_real, _sample(feed, options))
        loops.append(make_loop(feed.name, feed.timing, device.type, feed.feeding, measured, warmup=feed.num_warmup))
    return tuple(loops)


def _sample(feed: Feed, options: Options) -> Sample | None:
    if not isinstance(feed.loader, torch.utils.data.DataLoader):
        return None
    return time_samples(feed.loader.dataset, collate=feed.loader.collate_fn, batch_size=options.batch_size)


def _report(
    folder: Path, data: Path, count: int, store: int, loops: tuple[Loop, ...], feeds: list[Feed], options: Options,
    device: torch.device,
) -> Report:  # fmt: skip
    first, gain = loops[0], _gain(loops, feeds, count, store)
    converted = feeds[0].feeding.in_memory
    actions = advise(Advice(
        loop=first, gain=gain, source=str(folder), converted=converted, store=store,
        num_cores=num_cores(), num_workers=feeds[0].feeding.num_workers,
        persistent_workers=feeds[0].feeding.persistent_workers, pinned=feeds[0].feeding.pinned,
        assume_gpu_rate=options.assume_gpu_rate,
    ))  # fmt: skip
    if data != folder:  # converted already
        actions = tuple(_with_dataset(action, data) for action in actions)
    return Report(
        environment=described(),
        run=Run(
            entry="bench", data=folder.resolve().name, model=options.model, size=options.size,
            batch_size=options.batch_size, device=device.type, precision=options.precision,
            num_warmup=feeds[0].num_warmup,
        ),
        loops=loops, verdict=first.verdict, cause=first.cause, resident_gain=gain, actions=actions,
    )  # fmt: skip


def _gain(loops: tuple[Loop, ...], feeds: list[Feed], count: int, store: int) -> ResidentGain | None:
    """Return what the first loop would gain from memory: of its speed, the ceiling and the loader alone, no more."""
    of_memory = [loop for loop, feed in zip(loops, feeds, strict=True) if feed.feeding.in_memory]
    real, replay = loops[0].throughput.x_real, loops[0].throughput.x_replay
    load = of_memory[0].throughput.x_load if of_memory else None
    if feeds[0].feeding.in_memory or real is None or replay is None or load is None:
        return None
    return ResidentGain(
        speedup=predicted_rate(replay.value, load.value) / real.value, basis=MEASURED,
        memory_bytes=resident_bytes(count, store), num_images=count,
    )  # fmt: skip


def _with_dataset(action: Action, data: Path) -> Action:
    if action.command is None or not action.command.startswith("fastload convert"):
        return action
    command = None
    if RECIPE.is_file():  # not where bench was installed without its checkout
        recipe = RECIPE.relative_to(Path.cwd()) if RECIPE.is_relative_to(Path.cwd()) else RECIPE
        command = f"accelerate launch {shlex.quote(printable(recipe))} {shlex.quote(printable(data))}"
    return replace(action, text="The images are converted: train from them with fastload.Loader.", command=command)


def _make_step(options: Options, num_classes: int, device: torch.device) -> Step:
    torch.manual_seed(0)
    model = timm.create_model(options.model, num_classes=max(2, num_classes)).to(device)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    _try_model(model, options, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _try_model(model: torch.nn.Module, options: Options, device: torch.device) -> None:
    """Run a model once, before minutes are spent on converting: many take images of one size only."""
    try:
        with torch.no_grad():
            model(torch.zeros(min(2, options.batch_size), 3, options.size, options.size, device=device))
    except Exception as e:  # each model says it its own way
        raise ConfigError(
            f"--model {printable(options.model)} does not run on images of --size {options.size} "
            f"({printable(e).rstrip('.')}); pass the size that it is made for, or another model."
        ) from None


def reached_gain(report: dict[str, Any]) -> float | None:
    """Return times the images/s that the first loop from memory reached over the first one; None where none ran."""
    first, *others = (loop["throughput"]["x_real"] for loop in report["loops"])
    placed = [
        rate["value"] for loop, rate in zip(report["loops"][1:], others, strict=True)
        if rate is not None and loop["name"].removeprefix("fastload, ") in IN_MEMORY
    ]  # fmt: skip
    return placed[0] / first["value"] if placed and first is not None else None
