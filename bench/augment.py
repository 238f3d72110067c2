"""`bench augment`: how fast a stored batch becomes a training batch, beside torchvision, Kornia and FFCV."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2 as T
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fastload
from bench.peers import MEAN, STD
from fastload.augment import compiling
from fastload.devices import parse_device
from fastload.errors import ConfigError
from fastload.machine import installed
from fastload.profiling.report import described

OURS, BATCH, IMAGE, KORNIA, FFCV = "fastload", "torchvision, per batch", "torchvision, per image", "Kornia", "FFCV"
JITTER = (0.4, 0.4, 0.4, 0.1)
PIPELINES = ("crop, flip", "crop, flip, jitter", "crop, flip, TrivialAugmentWide")
# Peers that have no installation here are named in the result, not left out in silence.
OTHERS = {"cvcuda": "CV-CUDA", "triton_augment": "triton-augment"}

Run = Callable[[], Any]


def measure(*, store: int, size: int, batch_size: int | None, rounds: int, device: str | None) -> dict[str, Any]:
    """Run every peer in turn on one batch of noise and return the result, ready for JSON."""
    where = parse_device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # events are of the current one
    count = batch_size or (512 if where.type == "cuda" else 64)
    if rounds < 1 or count < 1 or not 1 <= size <= store:
        raise ConfigError(f"rounds={rounds}, batch_size={count}, size={size}, store={store}: at least 1 of each, and "
                          "crops of 1 to store pixels.")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, store, store, 3), dtype=torch.uint8, generator=generator).to(where)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    results: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for pipeline in PIPELINES:
        peers, missing = _peers(pipeline, images, size, dtype)
        left_out |= missing
        results[pipeline] = _compare(peers, rounds, count, where)
    written = count * 3 * size * size * dtype.itemsize
    result = {
        "schema": "fastload-bench-augment", "version": 1, **described(),
        "data": {"name": "noise", "images": count, "stored": store},
        "peers": installed(["torchvision", "kornia", "ffcv", "triton"]),
        "settings": {"store": store, "size": size, "batch_size": count, "rounds": rounds, "device": where.type,
                     "output": f"{dtype}, channels_last", "threads": torch.get_num_threads(),
                     "jitter": list(JITTER), "end": "normalization",
                     "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "")},
        "results": results, "not_measured": left_out,
    }  # fmt: skip
    if where.type == "cuda":
        result["floor"] = _floor(images.numel() + written, where)
        for row in results.values():
            ours = row[OURS]
            ours["times_floor"] = round(ours["ms"] * 1000 / result["floor"]["microseconds"], 2)
    return result


def transforms(pipeline: str, size: int) -> list[Any]:
    """Return a pipeline's transforms, with normalization at their end."""
    found: list[Any] = [T.RandomResizedCrop(size, antialias=True), T.RandomHorizontalFlip()]
    if "jitter" in pipeline:
        found.append(T.ColorJitter(*JITTER))
    if "Trivial" in pipeline:
        found.append(T.TrivialAugmentWide())
    return [*found, T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(MEAN, STD)]


def _peers(pipeline: str, images: torch.Tensor, size: int, dtype: torch.dtype) -> tuple[dict[str, Run], dict[str, str]]:
    """Return the peers that are there, and why others are not."""
    augment = fastload.Augment(transforms(pipeline, size), dtype=dtype)
    theirs = T.Compose(transforms(pipeline, size)[:-3] + transforms(pipeline, size)[-2:])
    images_NCHW = images.permute(0, 3, 1, 2).contiguous()
    epoch = iter(range(1 << 30))

    def formatted(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype, memory_format=torch.channels_last)

    peers: dict[str, Run] = {
        OURS: lambda: augment(images, epoch=next(epoch)),
        # Its own layout, contiguous: on the CPU no conversion is asked of it.
        BATCH: (lambda: theirs(images_NCHW)) if images.device.type == "cpu" else lambda: formatted(theirs(images_NCHW)),
        IMAGE: lambda: torch.stack([theirs(image) for image in images_NCHW]).to(dtype),
    }
    missing = {}
    for name, make in ((KORNIA, _kornia), (FFCV, _ffcv)):
        try:
            found = make(pipeline, images, size, dtype)
        except ImportError as e:
            missing[name] = f"not installed ({e.name})"
            continue
        if found is not None:
            peers[name] = found
        else:
            missing[f"{name}: {pipeline}"] = "has no such transforms here"
    for module, name in OTHERS.items():
        try:
            importlib.import_module(module)
            missing[name] = "installed, and not yet part of this benchmark"
        except ImportError:
            missing[name] = "not installed"
    return peers, missing


def _kornia(pipeline: str, images: torch.Tensor, size: int, dtype: torch.dtype) -> Run:
    import kornia.augmentation as K

    stages: list[Any] = [K.RandomResizedCrop((size, size), p=1.0), K.RandomHorizontalFlip()]
    if "jitter" in pipeline:
        stages.append(K.ColorJitter(*JITTER, p=1.0))
    if "Trivial" in pipeline:
        from kornia.augmentation.auto import TrivialAugment

        stages.append(TrivialAugment())
    stages.append(K.Normalize(torch.tensor(MEAN), torch.tensor(STD)))
    augment = K.AugmentationSequential(*stages, data_keys=["input"]).to(images.device)
    images_NCHW = images.permute(0, 3, 1, 2).contiguous()
    return lambda: augment(images_NCHW.float() / 255).to(dtype)


def _ffcv(pipeline: str, images: torch.Tensor, size: int, dtype: torch.dtype) -> Run | None:
    """Return FFCV's crop (of its decoder), mirror and table of normalized values, compiled as it does."""
    if pipeline != PIPELINES[0] or images.device.type != "cpu":
        return None
    threads = torch.get_num_threads()
    from ffcv.libffcv import resize_crop
    from ffcv.pipeline.compiler import Compiler
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip
    from ffcv.transforms.utils.fast_crop import get_random_crop

    Compiler.set_enabled(True)
    # Its import takes all threads but one from torch, for everybody; this gives them back.
    Compiler.set_num_threads(threads)
    spread, crop, box = Compiler.get_iterator(), Compiler.compile(resize_crop), get_random_crop
    scale, ratio = np.array([0.08, 1.0]), np.array([3 / 4, 4 / 3])

    def crop_all(stored: Any, out: Any) -> Any:
        for i in spread(len(stored)):
            top, left, height, width = box(stored.shape[1], stored.shape[2], scale, ratio)
            crop(stored[i], top, top + height, left, left + width, out[i])
        return out

    crop_all.is_parallel = True  # type: ignore[attr-defined]
    mirror_op = RandomHorizontalFlip()
    mirror = Compiler.compile(mirror_op.generate_code())
    table = NormalizeImage(np.array(MEAN) * 255, np.array(STD) * 255, np.float32)
    shape = (len(images), size, size, 3)
    table.lookup_table = np.ascontiguousarray(table.lookup_table)
    normalize = Compiler.compile(table.generate_code())
    compiled, stored = Compiler.compile(crop_all), images.numpy()
    # Memory that is used again for every batch, as its loader does.
    cropped, mirrored, scaled = np.empty(shape, np.uint8), np.empty(shape, np.uint8), np.empty(shape, np.float32)
    numbers = np.arange(len(images))

    def run() -> Any:
        first = mirror(compiled(stored, cropped), mirrored)
        return torch.from_numpy(normalize(first, scaled, numbers)).permute(0, 3, 1, 2)

    made = run()
    return run if made.shape == (len(images), 3, size, size) else None


def _wait_until_compiled(run: Run) -> None:
    """Run until what fastload compiles for a CPU, in a thread of its own beside the first batches, is there."""
    for _ in range(24):
        run()
    compiling.wait()


def _compare(peers: dict[str, Run], rounds: int, count: int, device: torch.device) -> dict[str, Any]:
    """Run the peers in turn; the first round, which compiles and fills caches, does not count."""
    if device.type == "cpu":
        _wait_until_compiled(peers[OURS])
    spent: dict[str, list[float]] = {name: [] for name in peers}
    asked: dict[str, list[float]] = {name: [] for name in peers}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for turn in bar.track(range(rounds + 1), description="rounds of each"):
            for name, run in peers.items():
                seconds, host = _time(run, device)
                if turn > 0:
                    spent[name].append(seconds)
                    asked[name].append(host)
    ours = statistics.median(spent[OURS])
    found: dict[str, Any] = {}
    for name, run in peers.items():
        median = statistics.median(spent[name])
        found[name] = {
            "ms": round(median * 1000, 3), "images_per_second": round(count / median),
            "fastload_is_times_faster": round(median / ours, 2), "all_ms": [round(s * 1000, 3) for s in spent[name]],
        }  # fmt: skip
        if device.type != "cuda":
            # What other programs on the machine do not change: seconds of cores, not of the clock.
            found[name]["core_ms"] = round(statistics.median(asked[name]) * 1000, 1)
        else:
            found[name]["host_us"] = round(statistics.median(asked[name]) * 1e6, 1)
            found[name]["launches"] = _launches(run)
    return found


def _time(run: Run, device: torch.device) -> tuple[float, float]:
    """Return two times of one call.

    On a CPU: seconds until the batch is there, and seconds of all its cores. On a GPU: seconds of its work with the
    host ahead of it, and the host's seconds alone; of a call that waits for the GPU, takes 0.2 s or queues a thousand
    launches, the first holds some of the second.
    """
    if device.type != "cuda":
        begin, begin_cores = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - begin, time.process_time() - begin_cores
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    host = time.perf_counter() - begin
    torch.cuda.synchronize()
    # Again, behind a spin that lasts longer than launching did, at any clock below 3 GHz: on an idle GPU the events
    # would show how fast the host launches. A call that compiles takes seconds, and is not waited for.
    torch.cuda._sleep(int((1e-3 + 1.5 * min(host, 0.2)) * 3e9))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000, host


def _launches(run: Run) -> int | None:
    """Return how many kernels, copies and fills one call starts on the GPU; None where torch cannot trace them."""
    from torch.profiler import ProfilerActivity, profile

    # acc_events: without it torch warns that a later cycle, of which there is none, clears what was traced.
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        run()
        torch.cuda.synchronize()
    # Whatever is measured here launches something: none means no CUPTI.
    return len([event for event in profiler.events() or () if "CUDA" in str(event.device_type)]) or None


def _floor(num_bytes: int, device: torch.device) -> dict[str, float]:
    """Return the least time that so many bytes take: at the bandwidth of a plain copy, measured here."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [_time(lambda: target.copy_(source), device)[0] for _ in range(12)]
    bandwidth = 2 * source.numel() / statistics.median(times[2:])
    return {
        "bytes": num_bytes, "copy_gb_per_second": round(bandwidth / 1e9, 1),
        "microseconds": round(num_bytes / bandwidth * 1e6, 1),
    }  # fmt: skip


def say(result: dict[str, Any]) -> None:
    """Print the table."""
    s = result["settings"]
    table = Table(title=f"{s['batch_size']} images, {s['store']} -> {s['size']} px, {s['output']}, {s['device']}")
    for column in ("pipeline", "by", "ms", "images/s", "fastload is"):
        table.add_column(column, justify="left" if column in ("pipeline", "by") else "right")
    for pipeline, peers in result["results"].items():
        for name, row in peers.items():
            table.add_row(
                pipeline, name, f"{row['ms']:.2f}", f"{row['images_per_second']:,}",
                "" if name == OURS else f"{row['fastload_is_times_faster']:.1f} times faster",
            )  # fmt: skip
    Console().print(table)
    if "floor" in result:
        floor = result["floor"]
        print(f"floor: {floor['bytes']:,} bytes at {floor['copy_gb_per_second']:,} GB/s = {floor['microseconds']} us")
        for pipeline, peers in result["results"].items():
            ours = peers[OURS]
            launches = "launches not traced" if ours["launches"] is None else f"{ours['launches']} launches"
            print(f"  {pipeline}: {ours['times_floor']} times the floor, {launches}, "
                  f"{ours['host_us']} us on the host")  # fmt: skip
    for name, reason in result["not_measured"].items():
        print(f"not measured: {name}: {reason}")
