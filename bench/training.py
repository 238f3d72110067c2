"""`bench training`: a whole training by the usual loop and by a recipe's: seconds, and accuracy, seed by seed.

Both train the same network on the same images with the same transforms, optimizer, steps and precision. The usual
loop decodes files in DataLoader's workers and draws by torchvision; the recipe trains through Trainer on a dataset
that was converted before (the seconds of that are told). Runs take turns, one seed after the other.
"""

from __future__ import annotations

import csv
import itertools
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torchvision.transforms.v2 as T
from PIL import Image
from rich.console import Console
from torch import nn

import fastload
from bench.peers import MEAN, STD
from fastload.devices import parse_device, set_switches
from fastload.errors import ConfigError, printable
from fastload.profiling.report import described

SCHEMA = "fastload-bench-training"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train; a wrong option is a ConfigError."""

    model: str
    size: int
    batch_size: int
    epochs: int
    seeds: int
    workers: int
    lr: float
    crop: Literal["padded", "resized"]
    precision: Literal["no", "bf16"]

    def __post_init__(self) -> None:
        for name in ("size", "batch_size", "epochs", "seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: at least 1 is needed.")
        if self.workers < 0 or self.lr <= 0:
            raise ConfigError(f"workers={self.workers}, lr={self.lr:g}: 0 or more workers, and a rate above 0.")
        if self.model != "quick" and not timm.is_model(self.model):
            raise ConfigError(f"model {printable(repr(self.model))}: not known to timm; try resnet18, or quick.")


class Files(torch.utils.data.Dataset[tuple[Any, int]]):
    """What people write: a list of files and labels, opened by Pillow, transformed one by one."""

    def __init__(self, files: list[tuple[Path, int]], transform: Any) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the transformed image and its label."""
        file, label = self.files[index]
        with Image.open(file) as image:
            return self.transform(image.convert("RGB")), label


def measure(folder: Path, options: Options) -> dict[str, Any]:
    """Train both ways with each seed, and return the result, ready for JSON.

    Raises:
        SourceError, ConfigError: no image folder, or options that do not fit it.
    """
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="fastload-bench-") as scratch:
        begin = time.perf_counter()
        dataset = _converted(folder, Path(scratch) / "bench.fastload", options.size)
        convert_seconds = time.perf_counter() - begin
        files = _files(folder, dataset)
        if not files["valid"]:
            raise ConfigError(f"{printable(folder)} has too few images to leave a tenth out; add a folder valid/.")
        _warm_up(options, 1 + max(label for _, label in files["train"]))
        runs: dict[str, list[dict[str, float]]] = {"usual loop": [], "recipe": []}
        for seed in range(options.seeds):
            for name, train in (("usual loop", _usual_loop), ("recipe", _recipe)):
                data: Any = files if name == "usual loop" else dataset
                begin = time.perf_counter()
                accuracy = train(data, options, seed, Path(scratch))
                runs[name].append({"accuracy": round(accuracy, 4), "seconds": round(time.perf_counter() - begin, 1)})
                seconds = runs[name][-1]["seconds"]
                console.print(f"seed {seed}, {name}: {accuracy:.2%} in {seconds:.0f} s", highlight=False)
    return {
        "schema": SCHEMA, "version": 1, **described(),
        "data": {"name": folder.name, "train": len(files["train"]), "valid": len(files["valid"])},
        "settings": asdict(options), "convert_seconds": round(convert_seconds, 1), "runs": runs,
        "accuracy": {name: _spread(rows) for name, rows in runs.items()},
        "seconds": {name: statistics.median(r["seconds"] for r in rows) for name, rows in runs.items()},
        "times_faster": round(statistics.median(
            slow["seconds"] / fast["seconds"] for slow, fast in zip(runs["usual loop"], runs["recipe"], strict=True)
        ), 2),
    }  # fmt: skip


def say(result: dict[str, Any]) -> None:
    """Print the result."""
    console = Console(soft_wrap=True)
    for name, spread in result["accuracy"].items():
        console.print(
            f"{name}: {spread['mean']:.2%} (from {spread['lowest']:.2%} to {spread['highest']:.2%}), "
            f"{result['seconds'][name]:.0f} s", highlight=False,
        )  # fmt: skip
    console.print(
        f"the recipe took {1 / result['times_faster']:.0%} of the usual loop's time, and once "
        f"{result['convert_seconds']:.0f} s to convert", highlight=False,
    )  # fmt: skip


def _converted(folder: Path, out: Path, size: int) -> Path:
    from fastload.sources import detect

    has_split = {r.split for r in detect(folder).records} > {"train"}
    fastload.convert(folder, out, size=size, split=None if has_split else {"valid": 0.1}, progress=True)
    return out


def _files(folder: Path, dataset: Path) -> dict[str, list[tuple[Path, int]]]:
    """Return the files of each split, as the dataset has them; a `test` split validates where there is no other."""
    found: dict[str, list[tuple[Path, int]]] = {}
    with (dataset / "samples.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            found.setdefault(row["split"], []).append((folder / row["path"], int(row["label"])))
    found.setdefault("valid", found.get("test", []))
    return found


def _transforms(options: Options) -> tuple[list[Any], list[Any]]:
    crop = (
        T.RandomCrop(options.size, padding=options.size // 8) if options.crop == "padded"
        else T.RandomResizedCrop(options.size, scale=(0.35, 1.0))
    )  # fmt: skip
    end = [T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(MEAN, STD)]
    return [crop, T.RandomHorizontalFlip(), *end], end


def _network(options: Options, num_classes: int) -> nn.Module:
    if options.model != "quick":
        network: nn.Module = timm.create_model(options.model, num_classes=num_classes)
        return network
    # The notes' CIFAR-10 network, for 32 pixels.
    widths, layers = (3, 32, 32, 64), list[nn.Module]()
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(64 * (options.size // 8) ** 2, 64), nn.ReLU(), nn.Linear(64, num_classes)
    )


def _warm_up(options: Options, num_classes: int) -> None:
    """Set for both ways what Trainer sets for a process, and take one step that no run has to begin with."""
    device = parse_device(None)
    set_switches(device, tf32=True, deterministic=False)
    model = _network(options, num_classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(options.batch_size, 3, options.size, options.size, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        logits = model(images.contiguous(memory_format=torch.channels_last))
    logits.float().sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _usual_loop(files: dict[str, list[tuple[Path, int]]], options: Options, seed: int, _scratch: Path) -> float:
    torch.manual_seed(seed)
    device = parse_device(None)
    resize = T.Resize((options.size, options.size))
    train, valid = (
        torch.utils.data.DataLoader(
            Files(files[split], T.Compose([resize, *steps])), options.batch_size, shuffle=split == "train",
            drop_last=split == "train", num_workers=options.workers, persistent_workers=options.workers > 0,
            pin_memory=device.type == "cuda",
        ) for split, steps in zip(("train", "valid"), _transforms(options), strict=True)
    )  # fmt: skip
    model = _network(options, 1 + max(label for _, label in files["train"]))
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")
    accuracy = 0.0
    for _ in range(options.epochs):
        model.train()
        for images, labels in train:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with cast:
                logits = model(images)
            loss = nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        model.eval()
        right = torch.zeros((), dtype=torch.int64, device=device)
        with torch.no_grad(), cast:
            for images, labels in valid:
                right += (model(images.to(device)).argmax(1) == labels.to(device)).sum()
        accuracy = int(right) / len(files["valid"])
    return accuracy


def _recipe(dataset: Path, options: Options, seed: int, scratch: Path) -> float:
    trainer = fastload.Trainer(fastload.TrainConfig(
        epochs=options.epochs, optimizer="adam", lr=options.lr, weight_decay=0.0, schedule="constant", seed=seed,
        mixed_precision=options.precision, output=scratch / f"run{seed}",
    ))  # fmt: skip
    splits = [fastload.open_dataset(dataset, "train"), _validation(dataset)]
    augments = [fastload.Augment(T.Compose(steps)) for steps in _transforms(options)]
    train = fastload.Loader(splits[0], options.batch_size, augment=augments[0], seed=seed)
    valid = fastload.Loader(splits[1], options.batch_size, augment=augments[1], shuffle=False)
    model = _network(options, len(splits[0].classes))
    result = trainer.fit(model, train, valid)
    last = result.epochs[-1].accuracy
    assert last is not None
    return last


def _validation(dataset: Path) -> Any:
    try:
        return fastload.open_dataset(dataset, "valid")
    except fastload.errors.DatasetError:
        return fastload.open_dataset(dataset, "test")


def _spread(rows: list[dict[str, float]]) -> dict[str, float]:
    values = [r["accuracy"] for r in rows]
    return {"mean": round(statistics.mean(values), 4), "lowest": min(values), "highest": max(values),
            "std": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0}  # fmt: skip
