"""Loaders that are slow for a known reason, and evidence of what needs a GPU to be seen."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastload.profiling.causes import Evidence

BATCH_SIZE = 4
Step = Callable[[Any], None]
Setting = Callable[[], AbstractContextManager[tuple[Any, Step]]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A loader and a step, made when they are needed, and the cause that is to be found."""

    name: str
    expected: str
    setting: Setting
    epochs: int = 1


def spin(cpu_seconds: float) -> None:
    """Use so much processor time, however long it takes to get it."""
    end = time.thread_time() + cpu_seconds
    while time.thread_time() < end:
        pass


class Images(torch.utils.data.Dataset[torch.Tensor]):
    """One JPEG again and again.

    Args:
        file: the JPEG.
        count: how often.
        read_seconds: pause while reading it, as from a slow disk.
        pause_seconds: pause without reading, as before a lock.
        augment_seconds: processor time of the transform.
        decode: whether it is decoded; else a tensor is made up.
    """

    def __init__(
        self, file: Path, count: int, *, read_seconds: float = 0.0, pause_seconds: float = 0.0,
        augment_seconds: float = 0.0, decode: bool = True,
    ) -> None:  # fmt: skip
        self._file, self._count, self._decode = file, count, decode
        self._read_seconds, self._pause_seconds, self._augment_seconds = read_seconds, pause_seconds, augment_seconds
        self.transform = self._transform

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        if not self._decode:
            self._pause()
            return torch.as_tensor(self.transform(torch.zeros(3, 8, 8)))
        with self._file.open("rb") as file:
            if self._read_seconds:
                time.sleep(self._read_seconds)
            image = Image.open(file)
            image.load()
        self._pause()
        return torch.as_tensor(self.transform(torch.zeros(3, 8, 8)))

    def _pause(self) -> None:
        if self._pause_seconds:
            time.sleep(self._pause_seconds)

    def _transform(self, image: torch.Tensor) -> torch.Tensor:
        if self._augment_seconds:
            spin(self._augment_seconds)
        return image


@contextmanager
def jpeg(side: int) -> Iterator[Path]:
    """Yield a JPEG of noise, which takes long to decode for its size."""
    with tempfile.TemporaryDirectory(prefix="fastload-truth-") as folder:
        file = Path(folder) / "image.jpg"
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file, quality=90)
        yield file


def _late(_: int) -> None:
    time.sleep(0.3)  # what a worker imports and opens before its first sample


def made(
    *, side: int = 8, count: int = 400, workers: int = 2, step_seconds: float = 0.002, persistent: bool = False,
    cores: int | None = None, late: bool = False, spinning: bool = False, **images: Any,
) -> Setting:  # fmt: skip
    """Return a setting of a DataLoader over `Images` and a step that takes so long.

    Args:
        side: of the JPEG.
        count: samples of an epoch.
        workers, persistent: of the DataLoader.
        step_seconds: of the step; processor time where it is `spinning`, else it sleeps, as one on a GPU would.
        cores: that process and workers may use.
        late: whether workers take a while to start.
        images: of Images.
    """

    @contextmanager
    def setting() -> Iterator[tuple[Any, Step]]:
        allowed = os.sched_getaffinity(0)
        with jpeg(side) as file:
            if cores is not None:
                os.sched_setaffinity(0, sorted(allowed)[:cores])
            try:
                loader = torch.utils.data.DataLoader(
                    Images(file, count, **images), BATCH_SIZE, num_workers=workers,
                    persistent_workers=persistent and workers > 0, worker_init_fn=_late if late else None,
                )  # fmt: skip
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # more workers than cores: that is the point
                    yield loader, lambda _: (spin if spinning else time.sleep)(step_seconds)
            finally:
                os.sched_setaffinity(0, allowed)

    return setting


CASES = (
    Case(name="slow disk", expected="storage-bound", setting=made(side=100, read_seconds=0.008)),
    Case(name="slow decoding", expected="decode-bound", setting=made(side=500)),
    Case(name="slow transforms", expected="augment-bound", setting=made(decode=False, augment_seconds=0.006)),
    Case(name="one worker", expected="one-worker", setting=made(decode=False, augment_seconds=0.004, workers=1)),
    Case(name="no worker", expected="one-worker", setting=made(decode=False, augment_seconds=0.004, workers=0)),
    Case(
        name="workers started anew", expected="epoch-starts", epochs=6,
        setting=made(count=80, late=True, decode=False, step_seconds=0.01),
    ),
    Case(name="a lock", expected="loader-sleeps", setting=made(decode=False, pause_seconds=0.008)),
    Case(
        name="four workers on one core", expected="starved-cores",
        setting=made(decode=False, augment_seconds=0.004, workers=4, cores=1),
    ),
    Case(
        name="loader and step on one core", expected="interference",
        setting=made(
            count=240, decode=False, augment_seconds=0.008, step_seconds=0.05, spinning=True, cores=1, workers=1
        ),
    ),
    Case(
        name="balanced", expected="balanced",
        setting=made(decode=False, augment_seconds=0.0005, step_seconds=0.06, count=240),
    ),
)  # fmt: skip


def evidence_cases() -> Iterator[tuple[str, str, Evidence]]:
    """Yield (name, cause, evidence) of what only a GPU shows: the figures that a window of traced steps gives there."""
    quiet = Evidence(wait_share=0.01, num_steps=60, num_workers=4, worker_cpu=(0.4,) * 4)
    yield "pageable copies", "copy-bound", _with(quiet, busy_share=0.6, copy_share=0.31, pinned=False)
    yield ".item() in every step", "launch-bound", _with(quiet, busy_share=0.45, copy_share=0.01, syncs_per_step=1.0)
    yield "many small kernels", "launch-bound", _with(quiet, busy_share=0.5, copy_share=0.0, syncs_per_step=0.0)
    yield "a GPU that is busy", "balanced", _with(quiet, busy_share=0.96, copy_share=0.01, syncs_per_step=0.0)


def _with(seen: Evidence, **more: Any) -> Evidence:
    return Evidence(**{**vars(seen), **more})
