"""What several tests need: tiny image folders, a dataset of them, and the promise of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.gpu_help import asks_for_gpus

# Loaders take a GPU where there is one. What is not about GPUs is the same everywhere: they are seen by -m gpu only.
# xdist's processes do not see the command line, but have the environment of the one that does.
if "PYTEST_XDIST_WORKER" not in os.environ and not asks_for_gpus(sys.argv[1:]):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels then run, slowly, on tiny images
from PIL import Image

from fastload.augment import compiling

ROOT = Path(__file__).parents[1]
# Real photographs to test with, where they lie beside the checkout.
SHARED = ROOT.parent / "shared" / "data"
# Of the terminal or the service that runs the tests; commands would print in colours, or in columns of its width.
# Typer looks when it is imported, so before any test is; programs that tests start do not have them either.
for _name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS"):
    os.environ.pop(_name, None)

# Odd on purpose: nothing divides evenly. Class -> images.
TRAIN = {"bee": 5, "ant": 4, "wasp": 4}
VALID = {"bee": 2, "ant": 3, "wasp": 2}


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # Not item.keywords, where the name of a parameter stands, too.
        if item.get_closest_marker("kernels") and torch.cuda.is_available():
            item.add_marker(pytest.mark.gpu)
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.timeout(1200))  # most of it is Triton compiling
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA"))


def pytest_sessionstart() -> None:
    promised = os.environ.get("FASTLOAD_REQUIRE_CUDA") == "1" and asks_for_gpus(sys.argv[1:])
    if promised and not torch.cuda.is_available():
        pytest.exit("FASTLOAD_REQUIRE_CUDA=1, and torch finds no CUDA GPU", returncode=1)


def write_image(file: Path, seed: int, *, width: int = 37, height: int = 23) -> None:
    """Write a JPEG of smooth random colours: like a photograph, it survives resizing and compression."""
    file.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, quality=92)


def write_folder(root: Path, *, splits: bool = True) -> Path:
    """Write a folder of class folders, 13 training and 7 validation images."""
    seed = 0
    for split, counts in (("train", TRAIN), ("valid", VALID)) if splits else (("", TRAIN),):
        for name, count in counts.items():
            for number in range(count):
                write_image(root / split / name / f"{number:03d}.jpg", seed)
                seed += 1
    return root


@pytest.fixture
def no_accelerate_left() -> Iterator[None]:
    """Forget what Accelerate keeps per process, once a test is over."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    for state in (GradientState, AcceleratorState, PartialState):
        state._reset_state()


@pytest.fixture
def empty_memory() -> Iterator[None]:
    """Nothing in fsspec's memory, before a test and after it."""
    from tests.remote_help import Elsewhere, forget

    forget()
    Elsewhere.requests.clear()
    yield
    Elsewhere.failure = None
    forget()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "insects")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 13 + 7 images of 20x20 pixels in shards of 4 rows: never written to."""
    from fastload import conversion

    root = tmp_path_factory.mktemp("dataset")
    source = write_folder(root / "insects")
    return convert_small(source, root / "insects.fastload", conversion)


def convert_small(source: Path, out: Path, conversion: object, size: int = 20) -> Path:
    """Convert with shards of 4 images, so that a tiny folder has several."""
    from unittest import mock

    with mock.patch.object(conversion, "SHARD_BYTES", 4 * size * size * 3):
        return conversion.convert(source, out, size=size)  # type: ignore[attr-defined]


def num_threads() -> int:
    """Return how many threads run, without those of augmentation, which live as long as the process."""
    return sum(not thread.name.startswith("fastload-augment") for thread in threading.enumerate())


def comes_true(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Tell whether soon `condition` holds: what was told to stop needs a while, on a busy machine a longer one."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return holds


def launch(*words: object, timeout: float = 240, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of this Python's programs, a script or a module of the tests, from the repository's root."""
    first, *rest = (str(w) for w in words)
    program = [str(Path(sys.executable).parent / first)]
    if first.endswith(".py"):
        program = [sys.executable, first]
    elif first.startswith("tests."):
        program = [sys.executable, "-m", first]
    return subprocess.run(
        [*program, *rest],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled once in a process, in a thread that may begin at any batch, does not begin now."""
    monkeypatch.setattr("fastload.augment.compiling.WORTH_BATCHES", 1 << 60)
    compiling.wait()  # for an earlier test's: it still opens files
