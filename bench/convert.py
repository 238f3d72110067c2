"""`bench convert`: how fast a folder becomes a dataset, beside the decoder alone, ffcv's writer and the usual loop."""

from __future__ import annotations

import csv
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torchvision.io import decode_jpeg

import fastload
from fastload.errors import ConfigError, SourceError, printable
from fastload.machine import installed
from fastload.profiling.report import described
from fastload.profiling.system import descendants
from fastload.sources import detect

BARE, OURS, FFCV, LOOP = "decode_jpeg alone", "fastload convert", "ffcv's writer", "PIL loop"
NUM_DISTINCT = 8  # photographs that are made; the others are links to them
TASK_FILES = 16


def measure(
    folder: Path | None, *, size: int, workers: int, rounds: int, repeat: int, made: str | None, count: int,
    slow_images: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run every peer in turn on the same files and return the result, ready for JSON.

    With `slow_images`, the PIL loop and ffcv's writer, whose time per image does not depend on their number, take
    only so many.
    """
    if min(rounds, workers, repeat, count, slow_images or 1) < 1:
        raise ConfigError(
            f"rounds={rounds}, workers={workers}, repeat={repeat}, count={count}, slow_images={slow_images}: "
            "each at least 1."
        )
    with tempfile.TemporaryDirectory(prefix="fastload-bench-") as scratch, _images(folder, made, count) as original:
        images = Path(scratch) / "images"
        num_files, num_bytes = _link_times(original, images, repeat)
        out = Path(scratch) / "bench.fastload"
        peers = _peers(images, out, size, workers, slow_images)
        _warm_up(original, Path(scratch) / "few", out, size, workers)
        speeds: dict[str, list[float]] = {name: [] for name in peers}
        cpu_ms: dict[str, list[float]] = {name: [] for name in peers}
        with Progress(console=Console(stderr=True), transient=True) as bar:
            for _ in bar.track(range(rounds), description="rounds of each"):
                for name, run in peers.items():
                    _remove(Path(scratch))
                    begin, begin_cpu = time.perf_counter(), _cpu_seconds()
                    num_images = run()
                    speeds[name].append(num_images / (time.perf_counter() - begin))
                    cpu_ms[name].append((_cpu_seconds() - begin_cpu) / num_images * 1000)
        _remove(Path(scratch))
        peak_bytes = peak_memory_bytes(images, out, size, workers)
        decibels = _psnr(images, out, size)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    shown = (made and f"{count} made photographs of {made}") or printable((folder or Path()).resolve().name)
    return {
        "schema": "fastload-bench-convert", "version": 1, **described(),
        "libraries": installed(("opencv-python-headless", "numba")),
        "data": {"name": shown, "images": num_files, "bytes": num_bytes, "repeat": repeat,
                 "distinct": NUM_DISTINCT if made else num_files // repeat},
        "settings": {"size": size, "fit": "stretch", "workers": workers, "rounds": rounds, "slow_images": slow_images},
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "all_rounds": {name: [round(v, 1) for v in values] for name, values in speeds.items()},
        # Beside the clock: what a machine that others use as well cannot distort as much.
        "cpu_ms_per_image": {name: round(statistics.median(values), 3) for name, values in cpu_ms.items()},
        "ratios": _ratios(medians, workers),
        "psnr_db": decibels,
        "peak_memory_mib": round(peak_bytes / 2**20),
        "not_measured": "a GPU, a network file system, a cold page cache" + ("" if FFCV in peers else ", ffcv"),
    }  # fmt: skip


def _ratios(medians: dict[str, float], workers: int) -> dict[str, float]:
    ours = medians[OURS]
    ratios = {"of_bare_decoding": ours / medians[BARE], "times_pil_loop_per_core": ours / workers / medians[LOOP],
              "times_pil_loop": ours / medians[LOOP]}  # fmt: skip
    if FFCV in medians:
        ratios["times_ffcv_writer"] = ours / medians[FFCV]
    return {name: round(value, 3) for name, value in ratios.items()}


def _warm_up(original: Path, few: Path, out: Path, size: int, workers: int) -> None:
    """Run each once on a few images: what is imported, compiled or started for the first time does not count."""
    _link_times(original, few, 1, most=4 * TASK_FILES)
    for run in _peers(few, out, size, workers, None).values():
        _remove(out.parent)
        run()


def _peers(images: Path, out: Path, size: int, workers: int, slow_images: int | None) -> dict[str, Callable[[], int]]:
    """Return what to run, each of which returns how many images it did. All files are read here, once."""
    source = detect(images)
    files = [images / record.path for record in source.records]
    contents: dict[Path, bytes] = {}  # by the file behind the link: --repeat shall not need its memory
    for file in files:
        if (real := file.resolve()) not in contents:
            contents[real] = file.read_bytes()
    jpegs = [data for data in (contents[f.resolve()] for f in files) if data[:3] == b"\xff\xd8\xff"]
    if not jpegs:
        raise SourceError(f"{printable(images.name)} has no JPEG, so there is nothing to hold conversion against.")

    def bare() -> int:
        def task(first: int) -> None:
            for data in jpegs[first : first + TASK_FILES]:
                decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(task, range(0, len(jpegs), TASK_FILES)))
        return len(jpegs)

    def ours() -> int:
        fastload.convert(images, out, size=size, workers=workers)
        return len(files)

    def loop() -> int:
        return len(np.stack([_pillow(f.read_bytes(), size) for f in files[:slow_images]]))

    peers = {BARE: bare, OURS: ours, LOOP: loop}
    if installed(("ffcv",))["ffcv"] is None:
        Console(stderr=True).print("ffcv is not installed, so its writer is left out: pip install fastload\\[ffcv]")
        return peers

    def ffcv() -> int:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

        fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        writer = DatasetWriter(str(out.with_suffix(".beton")), fields, num_workers=workers)
        with _silent_stderr():  # its progress bar
            writer.from_indexed_dataset(_Resized(files[:slow_images], [r.label for r in source.records], size))
        return len(files[:slow_images])

    return {**peers, FFCV: ffcv}


class _Resized:
    """Samples as ffcv's writer wants them: it resizes by powers and aspect only, so Pillow brings them to size."""

    def __init__(self, files: list[Path], labels: list[int], size: int) -> None:
        self.files, self.labels, self.size = files, labels, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        return _pillow(self.files[index].read_bytes(), self.size), self.labels[index]


def _pillow(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Return one image as the usual loop makes it; also what the pixels are held against."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def _psnr(images: Path, dataset: Path, size: int) -> dict[str, float]:
    """Return the median and the lowest PSNR (dB) of at most 400 stored images against Pillow's."""
    with (dataset / "samples.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
        samples = list(csv.DictReader(opened))
    decibels = []
    splits = {split: fastload.open_dataset(dataset, split) for split in {s["split"] for s in samples}}
    places = dict.fromkeys(splits, 0)
    every = max(1, len(samples) // 400)
    for number, sample in enumerate(samples):
        place = places[sample["split"]]
        places[sample["split"]] += 1
        if number % every:
            continue
        stored = splits[sample["split"]][place][0].numpy().astype(np.float64)
        error = float(np.mean((stored - _pillow((images / sample["path"]).read_bytes(), size)) ** 2))
        decibels.append(10 * np.log10(255**2 / max(error, 1e-3)))
    return {"median": round(statistics.median(decibels), 1), "lowest": round(min(decibels), 1)}


def peak_memory_bytes(images: Path, out: Path, size: int, workers: int) -> int:
    """Convert in a process of its own; return the most that it and its children held, shared pages counted once.

    0 where the system does not tell (/proc/PID/smaps_rollup is Linux's).
    """
    arguments = ["convert", str(images), str(out), "--size", str(size), "--workers", str(workers)]
    peak = 0
    with subprocess.Popen(
        [sys.executable, "-m", "fastload.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            peak = max(peak, sum(_own_bytes(pid) for pid in (process.pid, *descendants(process.pid))))
            time.sleep(0.05)
        assert process.stderr is not None
        error = process.stderr.read()
    if process.returncode:
        raise SourceError(f"fastload convert ended with code {process.returncode}: {printable(error[-300:])}")
    return peak


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@contextmanager
def _images(folder: Path | None, made: str | None, count: int) -> Iterator[Path]:
    if (folder is None) == (made is None):
        raise ConfigError("bench convert wants an image folder, or --made WIDTHxHEIGHT, and not both.")
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fastload-made-") as scratch:
        width, _, height = (made or "").partition("x")
        if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
            raise ConfigError(f"--made {printable(made)}: write it as WIDTHxHEIGHT, e.g. --made 4000x3000.")
        make_photographs(Path(scratch), int(width), int(height), count)
        yield Path(scratch)


def make_photographs(folder: Path, width: int, height: int, count: int) -> None:
    """Write JPEGs with detail at every scale, as photographs have, into two class folders."""
    for number in range(count):
        file = folder / f"class{number % 2}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number >= NUM_DISTINCT:
            original = number % NUM_DISTINCT
            os.link(folder / f"class{original % 2}" / f"{original:05d}.jpg", file)
            continue
        generator = np.random.default_rng(number)
        total = np.zeros((height, width, 3), np.float32)
        for octave in range(2, 11):
            cells = generator.normal(0, 60 * 0.62**octave, (3 * 2**octave // 4 + 1, 2**octave, 3)) + 14
            layer = Image.fromarray((cells * 4 + 128).clip(0, 255).astype(np.uint8))
            total += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128
        total = (total - total.mean()) / total.std() * 48 + 120
        Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(file, quality=92)


def _link_times(original: Path, images: Path, repeat: int, most: int | None = None) -> tuple[int, int]:
    """Fill `images` with `repeat` links to every image, or the first `most`; return how many, and their bytes."""
    source, num_bytes = detect(original), 0
    for record in source.records[:most]:
        file = (original / record.path).resolve()
        num_bytes += file.stat().st_size * repeat
        for turn in range(repeat):
            link = images / Path(record.path).with_name(f"{turn}_{Path(record.path).name}")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    return len(source.records) * repeat, num_bytes


def _cpu_seconds() -> float:
    """Return the processor time of this process and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _remove(scratch: Path) -> None:
    shutil.rmtree(scratch / "bench.fastload", ignore_errors=True)
    (scratch / "bench.beton").unlink(missing_ok=True)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def say(result: dict[str, Any]) -> None:
    """Print the table."""
    s, data = result["settings"], result["data"]
    title = f"{data['images']:,} images ({data['name']}), {s['size']} px, {s['workers']} workers"
    table = Table(title=f"{title}, {result['machine']['cores']} cores")
    table.add_column("")
    table.add_column("images/s", justify="right")
    table.add_column("fastload is", justify="right")
    table.add_column("CPU ms per image", justify="right")
    ours = result["images_per_second"][OURS]
    for name, speed in result["images_per_second"].items():
        table.add_row(f"{name}, 1 core" if name == LOOP else name, f"{speed:,}", f"{ours / speed:.2f} times",
                      f"{result['cpu_ms_per_image'][name]:.2f}")  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        f"PSNR against Pillow: median {result['psnr_db']['median']} dB, lowest {result['psnr_db']['lowest']} dB; "
        f"peak memory: {result['peak_memory_mib']:,} MiB with all processes"
    )
