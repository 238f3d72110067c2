"""Where the time of one sample goes: some `dataset[i]`, timed alone, with opening, decoding and transforms apart.

What is called is wrapped for as long as that takes, in this thread only; results stay what they are. A shallow copy of
the dataset is asked, so that a file which it opens lazily is not left open in the one that workers inherit, and the
states of the random generators are put back.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from fastload.devices import generators_kept
from fastload.profiling.intervals import thinned
from fastload.profiling.report import Sample

NUM_SAMPLES = 64
MAX_SECONDS = 5.0

# (module, name, what it does): wrapped where the module is loaded already.
_CALLS = (
    ("PIL.Image", "open", "open"),
    ("PIL.ImageFile", "ImageFile.load", "decode"),
    ("torchvision.io", "read_file", "open"),
    ("torchvision.io.image", "read_file", "open"),
    ("torchvision.io", "read_image", "decode"),
    ("torchvision.io", "decode_image", "decode"),
    ("torchvision.io", "decode_jpeg", "decode"),
    ("torchvision.io", "decode_png", "decode"),
    ("cv2", "imread", "decode"),
    ("cv2", "imdecode", "decode"),
    ("simplejpeg", "decode_jpeg", "decode"),
    ("torchvision.transforms", "Compose.__call__", "transform"),
    ("torchvision.transforms.v2", "Compose.forward", "transform"),
    ("albumentations", "Compose.__call__", "transform"),
)


def time_samples(
    dataset: Any, *, collate: Callable[[list[Any]], Any] | None = None, batch_size: int = 1, count: int = NUM_SAMPLES
) -> Sample | None:
    """Time `count` samples, spread over the dataset, at most five seconds; None where it cannot be asked for any.

    Args:
        dataset: map-style: with a length and `dataset[i]`.
        collate: makes a batch of a list of samples; timed on `batch_size` of those at a time.
        batch_size: images per batch.
        count: how many samples.

    Returns:
        Seconds per sample. `open` is everything but decoding, transforms and collating: opening, reading, labels. No
        part is charged with another one within it: a transform may make a lazy image decode itself.
    """
    # One that is gone through may have a length, too, and nothing at a position.
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return None
    try:
        positions = thinned(len(dataset), count)
    except (TypeError, NotImplementedError):
        return None
    own = _unshared(dataset)
    with generators_kept(), _Watch.installed(own) as watch:
        end, taken, total = time.perf_counter() + MAX_SECONDS, [], 0.0
        for position in positions:
            begin = time.perf_counter()
            taken.append(own[position])
            total += time.perf_counter() - begin
            if time.perf_counter() > end:
                break
    if not taken:
        return None
    num = len(taken)
    decode, transform = watch.seconds["decode"] / num, watch.seconds["transform"] / num
    return Sample(
        open=max(0.0, total / num - decode - transform), decode=decode, transform=transform,
        collate=_collate_seconds(collate, taken, batch_size), count=num,
    )  # fmt: skip


def _collate_seconds(collate: Callable[[list[Any]], Any] | None, taken: Sequence[Any], batch_size: int) -> float | None:
    if collate is None:
        return None
    begin = time.perf_counter()
    for low in range(0, len(taken), batch_size):
        collate(list(taken[low : low + batch_size]))
    return (time.perf_counter() - begin) / len(taken)


class _Watch:
    """Adds up the time of wrapped calls, each without those within it."""

    def __init__(self) -> None:
        self.seconds = {"open": 0.0, "decode": 0.0, "transform": 0.0}
        self._thread = threading.get_ident()
        self._inner = [0.0]  # per call under way: seconds of wrapped calls within it

    def timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() != self._thread:
                return call(*arguments, **options)
            self._inner.append(0.0)
            begin = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                seconds = time.perf_counter() - begin
                self.seconds[part] += max(0.0, seconds - self._inner.pop())
                self._inner[-1] += seconds

        return wrapped

    def reading(self, load: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap Pillow's load(), which reads the file as it decodes: reading is `open`."""

        def wrapped(image: Any, *arguments: Any, **options: Any) -> Any:
            file = getattr(image, "fp", None)
            if file is None or threading.get_ident() != self._thread:
                return load(image, *arguments, **options)
            image.fp = timed = _TimedFile(file, self)
            try:
                return load(image, *arguments, **options)
            finally:
                if image.fp is timed:
                    image.fp = file

        return wrapped

    @classmethod
    @contextmanager
    def installed(cls, dataset: Any) -> Iterator[_Watch]:
        watch = cls()
        with ExitStack() as stack:
            for module, path, part in _CALLS:
                owner: Any = sys.modules.get(module)
                *classes, name = path.split(".")
                for inner in classes:
                    owner = getattr(owner, inner, None)
                # Only what is the owner's own: two names of one function are not timed twice by way of a parent class.
                call = None if owner is None else vars(owner).get(name)
                if callable(call):
                    wrapped = watch.timed(watch.reading(call) if name == "load" else call, part)
                    stack.enter_context(mock.patch.object(owner, name, wrapped))
            inner = innermost(dataset)
            transform = getattr(inner, "transform", None)
            if callable(transform) and not hasattr(transform, "transforms"):  # a Compose is timed by its class
                # Put back: a dataset that refused to be copied is the loop's own.
                stack.enter_context(mock.patch.object(inner, "transform", watch.timed(transform, "transform")))
            yield watch


class _TimedFile:
    """A file of which reading is timed."""

    def __init__(self, file: Any, watch: _Watch) -> None:
        self._file = file
        self.read = watch.timed(file.read, "open")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _unshared(dataset: Any) -> Any:
    """Return a copy of the dataset, and of those it wraps (Subset), that shares nothing but what they hold."""
    try:
        own = copy.copy(dataset)
        if hasattr(own, "dataset"):
            own.dataset = _unshared(own.dataset)
    except Exception:  # one that refuses to be copied is asked itself
        return dataset
    return own


def innermost(dataset: Any) -> Any:
    """Return the dataset that lies within those that wrap it (Subset)."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset
