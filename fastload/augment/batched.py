"""A batch at a time on the CPU: what compiled.py needs to know of one, its memory, and threads to share it out.

Shape letters: M stored images, N batch, H W stored pixels, S T output, C channels.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from fastload.augment.maps import AxisMap, Geometry
from fastload.augment.sampling import spans
from fastload.recycling import Blocks, take

DIRECT = (torch.float32, torch.uint8)  # what compiled functions write
# Of the output, at least, for a thread: 64 images of 32 px take 0.1 ms, two threads to wake as long.
RANGE_BYTES = 1 << 20
RANGES = 4


def empty(shape: tuple[int, int, int, int], dtype: torch.dtype, *, channels_last: bool) -> torch.Tensor:
    """Return memory for a batch [N, C, S, T]: of an earlier one that nobody holds any more, where there is one."""
    num_images, channels, height, width = shape
    if channels_last:
        return _blocks.empty((num_images, height, width, channels), dtype).permute(0, 3, 1, 2)
    return _blocks.empty(shape, dtype)


_blocks = Blocks()


def gathered(images_MHWC: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Return the images `rows`, or all."""
    if rows is None:
        return images_MHWC
    return take(images_MHWC, rows, _blocks.empty((len(rows), *images_MHWC.shape[1:]), images_MHWC.dtype))


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Which stored pixels N images are made of, as compiled.py wants to be told.

    Attributes:
        ys, xs: int64 [N, 5]; see compiled.py.
        resized: whether windows are resized, or copied.
        fill: uint8 [C], of padding.
        stored: (H, W, C) of the images that they lie in.
        size: (S, T).
    """

    ys: npt.NDArray[np.int64]
    xs: npt.NDArray[np.int64]
    resized: bool
    fill: npt.NDArray[np.uint8]
    stored: tuple[int, ...]
    size: tuple[int, int]

    @staticmethod
    def of(g: Geometry, stored: tuple[int, ...], num_images: int) -> Windows:
        """Return those of a geometry that `whole_windows` admits, or that copies."""
        if g.resized:
            ys, xs = (windows(a, num_images) for a in (g.y, g.x))
            # Compiled code looks at no bounds.
            assert all(
                (a[:, 0] >= 0).all() and (a[:, 1] <= end).all() for a, end in zip((ys, xs), stored, strict=False)
            )
        else:
            ys, xs = (_spans(a, end, num_images) for a, end in zip((g.y, g.x), stored, strict=False))
        fill = np.broadcast_to(np.array(g.fill, np.uint8), stored[2]).copy()
        return Windows(ys=ys, xs=xs, resized=g.resized, fill=fill, stored=stored, size=(g.y.size, g.x.size))

    def part(self, first: int, stop: int) -> Windows:
        """Return those of images first .. stop - 1."""
        return replace(self, ys=self.ys[first:stop], xs=self.xs[first:stop])


def run(
    make: Callable[..., None], images_MHWC: torch.Tensor, rows: torch.Tensor | None, w: Windows, left_out: list[bool],
    scale: tuple[float, ...], offset: tuple[float, ...], out: torch.Tensor, *, planar: bool,
) -> None:  # fmt: skip
    """Make a batch.

    Args:
        make: compiled.py's function.
        images_MHWC, rows: uint8, and int64 [N]: which of them; None takes all.
        w: their windows, [N].
        left_out: images that are not wanted, [N].
        scale, offset: by channel, from stored values to what is wanted.
        out: is filled, [N, C, S, T] of float32, or of uint8 with channels last.
        planar: `out` is contiguous, not channels last.
    """
    num_images, channels = len(w.ys), w.stored[2]
    which = np.arange(len(images_MHWC)) if rows is None else rows.numpy()
    assert images_MHWC.shape[1:] == w.stored
    assert len(which) == num_images
    assert out.shape == (num_images, channels, *w.size)
    array, nothing = (out if planar else out.permute(0, 2, 3, 1)).reshape(-1).numpy(), np.empty(0, np.uint8)
    both = (array, nothing.view(np.float32)) if out.dtype == torch.uint8 else (nothing, array)
    told = (images_MHWC.contiguous().numpy(), which, w.ys, w.xs, w.resized, np.array(left_out), w.fill,
            _repeated(scale, channels, w.size[1]), _repeated(offset, channels, w.size[1]), planar, np.array(w.size),
            *both)  # fmt: skip
    spread_ranges(lambda first, stop: make(*told, first, stop), num_images, out.nbytes)


@lru_cache(maxsize=16)
def _repeated(value: tuple[float, ...], channels: int, width: int) -> npt.NDArray[np.float32]:
    """Return one number for each channel of each pixel of a row, float32 [T * C]."""
    return np.tile(np.broadcast_to(np.array(value, np.float32), channels), width)


def windows(axis: AxisMap, num_images: int) -> npt.NDArray[np.int64]:
    """Return for each image: stored pixels first and end, pixels they are resized to, first of these, mirrored."""
    return np.rint(exact_windows(axis, num_images)).astype(np.int64)


def exact_windows(axis: AxisMap, num_images: int) -> npt.NDArray[np.float64]:
    """Return `windows` before they are rounded, [N, 5]."""
    made = np.empty((num_images, 5))
    made[:, 0], made[:, 1], made[:, 4] = axis.low, axis.high, np.less(axis.step, 0)
    step = np.abs(axis.step)
    made[:, 2] = (axis.high - axis.low) / step
    made[:, 3] = (np.where(made[:, 4] > 0, axis.start + axis.size * axis.step, axis.start) - axis.low) / step
    return made


def _spans(axis: AxisMap, num_stored: int, num_images: int) -> npt.NDArray[np.int64]:
    """Return for each image: stored pixels first and their number, output pixels of padding before, -, mirrored."""
    low, high, before, _, flipped = spans(axis, num_stored, num_images)
    return np.stack([low, high - low, before, np.zeros_like(low), flipped.astype(np.int64)], axis=1)


def spread_ranges(work: Callable[[int, int], None], count: int, num_bytes: int) -> None:
    """Call `work` for ranges (first, stop) that make up 0 .. count - 1, as `spread` does; `num_bytes` are written."""
    # Several for each thread: windows differ in size, and other processes take time. A small batch is done before
    # threads wake up.
    num_ranges = min(count, 1 if torch.get_num_threads() == 1 else RANGES * torch.get_num_threads())
    num_ranges = min(num_ranges, max(1, num_bytes // RANGE_BYTES))
    ends = [k * count // max(1, num_ranges) for k in range(num_ranges + 1)]
    spread(lambda k: work(ends[k], ends[k + 1]), range(num_ranges))


def spread(work: Callable[[int], None], numbers: Sequence[int]) -> None:
    """Call `work` for each number on a pool of threads; torch lets go of the interpreter within each operation."""
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(numbers) <= 1:
        for i in numbers:
            work(i)
        return
    pool = _pool(os.getpid(), num_threads)
    left = iter(numbers)  # of all threads: who is done early takes one more

    def several(_: int) -> None:
        for i in left:
            work(i)

    list(pool.map(several, range(num_threads)))  # an exception of a thread is raised here


@lru_cache(maxsize=4)
def _pool(process: int, num_threads: int) -> ThreadPoolExecutor:
    """Return the threads of this process; a forked one starts its own."""
    together = threading.Barrier(num_threads + 1)

    def start() -> None:
        # Asked first: a thread takes the process's number at its first question, and would forget this one.
        torch.get_num_threads()
        torch.set_num_threads(1)  # each thread works on an image of its own
        together.wait()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fastload-augment")
    for _ in range(num_threads):
        pool.submit(start)
    together.wait()
    # The setting is also what threads that start later begin with: put it back.
    torch.set_num_threads(num_threads)
    return pool
