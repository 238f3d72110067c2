"""`bench gpu-util`: the same training step, fed two ways, and its ceiling.

X_real: images/s of the run. X_load: of the loader alone. X_replay: of the step on a few batches that
are already on the device. headspace = 1 - X_real / X_replay; efficiency = X_real / min(X_load, X_replay).
"""

from __future__ import annotations

import itertools
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import fastload
from bench.peers import fast_loader, find_pair, folder_loader, training_folder
from fastload.devices import parse_device
from fastload.errors import ConfigError, SourceError, printable
from fastload.profiling import Timing, WaitMeter, judge
from fastload.profiling.report import command, environment, rounded, write_json
from fastload.profiling.verdict import MIN_STEPS, efficiency, headspace

NUM_WARMUP = 3
NUM_CACHED = 4
NUM_BLOCKS = 3
NOISE = 0.1  # a run this much above its ceiling was measured on a machine that others used
NUM_LOAD = 12  # batches in one block of X_load

Step = Callable[[torch.Tensor, torch.Tensor], None]


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

    def __post_init__(self) -> None:
        for name in ("size", "batch_size", "steps", "max_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: at least 1 is needed.")
        if self.workers < 0:
            raise ConfigError(f"workers={self.workers}: 0 or more processes can load.")
        if self.precision not in ("no", "bf16"):
            raise ConfigError(f"precision={self.precision!r}: not one of no, bf16.")
        if not timm.is_model(self.model):
            raise ConfigError(f"model {printable(repr(self.model))} is not known to timm; try resnet18 or resnet50.")


def measure(data: Path, options: Options) -> dict[str, Any]:
    """Measure and return the result, ready for JSON."""
    folder, dataset = find_pair(data)
    device = parse_device(options.device)
    # As conversion is advised: an eighth of room for the crop to move in.
    store = options.size * 8 // 7 if dataset is None else fastload.open_dataset(dataset).sample_shape[0]
    if store < options.size:
        raise ConfigError(
            f"{printable(data)} stores {store} pixels, less than --size {options.size}; pass --size {store} or less."
        )
    with (
        training_folder(folder, options.max_images) as (images, count),
        tempfile.TemporaryDirectory() as scratch,
    ):
        if count < options.batch_size:
            raise SourceError(
                f"{printable(folder)} has {count} training images, less than one batch of {options.batch_size}; "
                "use a smaller --batch-size."
            )
        begin, convert_seconds = time.perf_counter(), None
        if dataset is None:
            dataset = Path(scratch) / "bench.fastload"
            fastload.convert(images, dataset, size=store, progress=True)
            convert_seconds = time.perf_counter() - begin
        loaders = {
            "folder": folder_loader(images, store=store, size=options.size, batch_size=options.batch_size,
                                    workers=options.workers),
            "fastload": fast_loader(dataset, size=options.size, batch_size=options.batch_size, device=device),
        }  # fmt: skip
        placement = loaders["fastload"].placement.kind
        step = _make_step(options, len(list(images.iterdir())), device)
        feeds = {name: Feed(loader, options.workers) for name, loader in loaders.items()}
        cached = [(images.to(device), labels.to(device)) for images, labels in itertools.islice(
            feeds["fastload"].forever(), NUM_CACHED)]  # fmt: skip
        replay = Feed(cached, 0)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            # In turn, block by block: a machine that others use too changes its speed from one minute to the next.
            for _ in bar.track(range(NUM_BLOCKS), description="blocks of steps, fed each way"):
                for feed in (replay, *feeds.values()):
                    feed.run_block(step, -(-options.steps // NUM_BLOCKS), device)
                for feed in feeds.values():
                    feed.load_block(device)
        x_replay = replay.x_real
        rows = {name: _row(feed, x_replay, device) for name, feed in feeds.items()}
    rows["folder"]["name"] = f"ImageFolder + DataLoader({options.workers})"
    rows["fastload"]["name"] = f"fastload, {placement}"
    return {
        "schema": "fastload-gpu-util", "version": 1, "command": command(), **environment(),
        "device": device.type,
        "basis": "CUDA events on the compute stream" if device.type == "cuda" else "host clock, synchronous steps",
        "data": {"name": folder.resolve().name, "images": count, "stored": store, "placement": placement,
                 "convert_seconds": rounded(convert_seconds, 2)},
        "settings": {k: v for k, v in asdict(options).items() if k != "device"},
        "x_replay": rounded(x_replay, 1), "loaders": rows,
        "resident_gain": rounded(_ratio(rows["fastload"]["x_real"], rows["folder"]["x_real"])),
        "verdict": rows["folder"]["verdict"],
        "next_command": _next_command(folder, data, store),
    }  # fmt: skip


def _next_command(folder: Path, data: Path, store: int) -> str:
    if data != folder:
        return f"accelerate launch recipes/resnet_flowers.py {shlex.quote(data.name)}"
    return f"fastload convert {shlex.quote(folder.name)} --size {store}"


def _make_step(options: Options, num_classes: int, device: torch.device) -> Step:
    torch.manual_seed(0)
    model = timm.create_model(options.model, num_classes=max(2, num_classes)).to(device)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
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


class Feed:
    """One way of feeding the step, run in blocks; its iterator stays where it is between them."""

    def __init__(self, loader: Any, num_workers: int) -> None:
        self._loader = loader
        self._iterator = iter(loader)
        # What a DataLoader has read ahead while others ran is used up before anything counts.
        self._num_warmup = max(NUM_WARMUP, 2 * num_workers + 1)
        self.blocks: list[Timing] = []
        self.load_speeds: list[float] = []

    def run_block(self, step: Step, num_steps: int, device: torch.device) -> None:
        """Run the training step until `num_steps` of them count."""
        meter = WaitMeter(device, num_warmup=self._num_warmup)
        while meter.num_steps < num_steps:
            for images, labels in meter.watch(self._iterator, loader=self._loader):
                if meter.num_steps >= num_steps:
                    break
                step(images, labels)
            else:
                self._iterator = iter(self._loader)
        self.blocks.append(meter.result())

    def load_block(self, device: torch.device) -> None:
        """Take batches and do nothing with them."""
        batches = self.forever()
        for _ in range(self._num_warmup):
            next(batches)
        begin, count = time.perf_counter(), 0
        for images, _ in itertools.islice(batches, NUM_LOAD):
            count += len(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.load_speeds.append(count / (time.perf_counter() - begin))

    def forever(self) -> Iterator[Any]:
        """Yield batches from where the iterator stands, epoch after epoch."""
        while True:
            yield from self._iterator
            self._iterator = iter(self._loader)

    @property
    def x_real(self) -> float | None:
        """Images/s of the run: the median over blocks."""
        speeds = [t.images_per_second for t in self.blocks if t.images_per_second is not None]
        return statistics.median(speeds) if speeds else None


def _row(feed: Feed, x_replay: float | None, device: torch.device) -> dict[str, Any]:
    x_real, x_load = feed.x_real, statistics.median(feed.load_speeds)
    wall = sum(t.wall_seconds for t in feed.blocks)
    wait_share = sum(t.wait_seconds for t in feed.blocks) / wall if wall > 0 else None
    num_steps = sum(t.num_steps for t in feed.blocks)
    milliseconds = sorted(1e3 * s for t in feed.blocks for s in t.step_seconds)
    on_gpu = device.type == "cuda"
    share = efficiency(x_real, x_load, x_replay)
    return {
        "x_real": rounded(x_real, 1), "x_load": rounded(x_load, 1),
        "data_wait": rounded(wait_share), "gpu_data_wait": rounded(wait_share) if on_gpu else None, "gpu_busy": None,
        "headspace": rounded(headspace(x_real, x_replay)), "efficiency": rounded(share),
        "num_steps": num_steps,
        "step_ms_p50": rounded(statistics.median(milliseconds), 2),
        "step_ms_p95": rounded(milliseconds[int(0.95 * (len(milliseconds) - 1))], 2),
        "x_real_blocks": [rounded(t.images_per_second, 1) for t in feed.blocks],
        "verdict": str(judge(wait_share, num_steps, device.type, share)),
    }  # fmt: skip


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def say(result: dict[str, Any], file: Path | None) -> None:
    """Print the table and the verdict; write the JSON where asked."""
    data, settings = result["data"], result["settings"]
    label = "CPU training" if result["device"] == "cpu" else result["device"]
    table = Table(
        title=f"{settings['model']}, {settings['size']} pixels, batches of {settings['batch_size']}, {label}; "
        f"{data['images']:,} images of {escape(printable(data['name']))}"
    )
    table.add_column("fed by")
    for heading in ("images/s", "data wait", "loader alone", "ceiling", "headspace"):
        table.add_column(heading, justify="right")
    for row in result["loaders"].values():
        table.add_row(
            row["name"], _number(row["x_real"]), _share(row["data_wait"]), _number(row["x_load"]),
            _number(result["x_replay"]), _share(row["headspace"]),
        )  # fmt: skip
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for row in result["loaders"].values():
        console.print(f"{row['name']}: {row['verdict']}", markup=False)
    gain = result["resident_gain"]
    if gain is not None:
        more = f"{gain:.2f} times the images/s" if gain >= 1.05 else f"next to nothing ({gain:.2f} times the images/s)"
        console.print(f"Converting gains {more} of this training step on this machine.", markup=False)
    if any(row["headspace"] is not None and row["headspace"] < -NOISE for row in result["loaders"].values()):
        console.print(
            "The run came out faster than its ceiling: this machine was busy with other things; run it again."
        )
    if settings["steps"] < MIN_STEPS:
        console.print(f"Measured with {settings['steps']} steps; pass --steps {MIN_STEPS} or more.", markup=False)
    console.print(f"Next: {printable(result['next_command'])}", markup=False)
    if file is not None:
        write_json(file, result)
        print(f"wrote {file}")


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0%}"
