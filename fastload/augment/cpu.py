"""Crops, warps, colours and erasing on the CPU: compiled for whole batches, and by torch until that is ready.

The resampling of crops is torch's own for uint8 (what torchvision does with uint8 images), which rounds to whole grey
levels: within 1.1 levels of `reference.py` before colour, 0.3 on average. What a warp moves is not rounded.
compiled.py makes the crops, compiled_colour.py what is behind them; both are compiled beside the first batches and give
the bytes that torch gives on a pool of threads, image by image, each image staying in its core's cache.

Shape letters: N batch, H W stored pixels, S T output, C channels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

from fastload.augment import batched
from fastload.augment.batched import DIRECT, Windows, empty, exact_windows, gathered, spread, windows
from fastload.augment.compiling import coloured, compiled, ready
from fastload.augment.maps import Geometry
from fastload.augment.painting import Painting
from fastload.augment.plan import Pass, Plan
from fastload.augment.sampling import copy_by_slices, is_stored
from fastload.augment.spec import Values


def _is_direct(dtype: torch.dtype, memory_format: torch.memory_format) -> bool:
    """Whether the compiled function writes the output itself."""
    return dtype in DIRECT and (dtype != torch.uint8 or memory_format == torch.channels_last)


def suits(images_NHWC: torch.Tensor, plan: Plan, dtype: torch.dtype) -> bool:
    """Whether this way is for the plan: passes of which only the first does more than warps and colours."""
    if images_NHWC.device.type != "cpu" or images_NHWC.dtype != torch.uint8 or images_NHWC.shape[3] not in (1, 3):
        return False
    for node in plan.nodes:
        if not isinstance(node, Pass) or node.channels != images_NHWC.shape[3] or node.geometry.fold:
            return False
        if not is_stored(node.geometry.fill) or any(s.noise is not None for s in node.steps):
            return False
    first, *later = (node.geometry for node in plan.nodes)  # type: ignore[union-attr]
    if (first.resized and first.padded) or not all(_only_warps(g, first.out) for g in later):
        return False
    # Bare copies are as fast in `reference.copied` until the compiled ones are there.
    idle = not later and not plan.nodes[0].steps  # type: ignore[union-attr]
    return not (first.copies and idle) or (dtype in DIRECT and compiled() is not None)


def _only_warps(g: Geometry, size: tuple[int, int]) -> bool:
    """Whether nothing but a warp happens to images of `size`."""
    same = Geometry.identity(*size)
    return g.out == size and all(
        np.all(there == here)
        for a, b in ((g.y, same.y), (g.x, same.x))
        for there, here in ((a.start, b.start), (a.step, b.step), (a.low, b.low), (a.high, b.high))
    )


def run(
    images_MHWC: torch.Tensor, rows: torch.Tensor | None, plan: Plan, values: Values, dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> torch.Tensor:  # fmt: skip
    """Return what `reference.run` and `reference.finish` do for a plan that `suits`.

    Args:
        images_MHWC: uint8, contiguous where `rows` are given.
        rows: which of the images, int64 [N]; None takes all.
        plan, values, dtype, memory_format: what to do, and what to give.

    Returns:
        [N, C, S, T] of `dtype` in `memory_format`.
    """
    passes = tuple(node for node in plan.nodes if isinstance(node, Pass))
    node = passes[0]
    num_images, channels, (height, width) = len(images_MHWC if rows is None else rows), node.channels, node.geometry.out
    last = memory_format == torch.channels_last
    out = empty((num_images, channels, height, width), dtype, channels_last=last)
    painting = Painting(passes, num_images, values)
    left: Sequence[int] = range(num_images)
    fast = compiled()
    if fast is None:
        images_MHWC, rows = gathered(images_MHWC, rows), None
        stored = _crops(images_MHWC, node) if node.geometry.resized else _copies(images_MHWC, node)
    else:
        w = Windows.of(node.geometry, images_MHWC.shape[1:], num_images)
        told = (fast.make, images_MHWC, rows, w, painting.moved, values.scale, values.offset)
        if _is_direct(dtype, memory_format) and painting.idle:
            batched.run(*told, out, planar=not last)
            return out
        crops_NSTC = empty((num_images, channels, height, width), torch.uint8, channels_last=True)
        batched.run(*told, crops_NSTC, planar=False)
        crops_NSTC = crops_NSTC.permute(0, 2, 3, 1)
        stored = crops_NSTC.__getitem__
        if (paint := coloured()) is not None:
            left = painting.compiled(paint.paint, images_MHWC, rows, crops_NSTC, out, planar=not last)
    which = range(num_images) if rows is None else rows.tolist()

    def one(i: int) -> None:
        painting.by_torch(out[i], images_MHWC[which[i] : which[i] + 1], lambda: stored(i), i)

    spread(one, left)
    return out


def ahead(
    like: torch.Tensor, plan: Plan, num_images: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> Windows | None:
    """Return all that `made` needs of a plan; None where `run` has more to do than resample or copy.

    Args:
        like: any number of images, uint8 [M, H, W, C].
        plan, num_images: their draws.
        dtype, memory_format: what to give.
    """
    node = plan.nodes[0]
    if ready() is None or len(plan.nodes) > 1 or not suits(like, plan, dtype) or not _is_direct(dtype, memory_format):
        return None
    assert isinstance(node, Pass)
    if node.steps or node.geometry.matrix is not None or not whole_windows(plan, num_images):
        return None
    return Windows.of(node.geometry, like.shape[1:], num_images)


def made(
    images_MHWC: torch.Tensor, rows: torch.Tensor | None, w: Windows, values: Values, dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> torch.Tensor:  # fmt: skip
    """Return what `run` does, for windows of `ahead`."""
    fast, last = ready(), memory_format == torch.channels_last
    assert fast is not None
    out = empty((len(w.ys), w.stored[2], *w.size), dtype, channels_last=last)
    none = [False] * len(w.ys)
    batched.run(fast.make, images_MHWC, rows, w, none, values.scale, values.offset, out, planar=not last)
    return out


def _copies(images_NHWC: torch.Tensor, node: Pass) -> Callable[[int], torch.Tensor]:
    copied = copy_by_slices(images_NHWC, node.geometry)
    return lambda i: copied[i]


def _crops(images_NHWC: torch.Tensor, node: Pass) -> Callable[[int], torch.Tensor]:
    """Return what gives the resampled image i, uint8 [S, T, C].

    A resize reads whole pixels of its window. Where windows do not lie on whole pixels (a crop behind a resize),
    the resize is done from the window's own pixels, and the crop taken out of what it gives.
    """
    g, num_images = node.geometry, len(images_NHWC)
    axes = [windows(a, num_images).tolist() for a in (g.y, g.x)]

    def crop(i: int) -> torch.Tensor:
        (top, bottom, all_rows, row, up), (left, right, all_columns, column, mirrored) = (axis[i] for axis in axes)
        window = images_NHWC[i, top:bottom, left:right].permute(2, 0, 1)[None]
        made = _scratch(all_rows, all_columns, images_NHWC.shape[3])
        # Into memory with channels last: else torch takes twice as long, to bring it into another order.
        torch.ops.aten._upsample_bilinear2d_aa.out(window, [all_rows, all_columns], False, None, None, out=made)
        made_STC = made[0].permute(1, 2, 0)[row : row + g.y.size, column : column + g.x.size]
        flips = [k for k, flipped in ((0, up), (1, mirrored)) if flipped]
        return made_STC.flip(flips) if flips else made_STC

    return crop


def _scratch(height: int, width: int, channels: int) -> torch.Tensor:
    """Return memory of this thread for one image, uint8 [1, C, height, width], channels last."""
    shape = (1, height, width, channels)
    if getattr(_own, "shape", None) != shape:
        _own.shape, _own.memory = shape, torch.empty(shape, dtype=torch.uint8, device="cpu")
    memory: torch.Tensor = _own.memory
    return memory.permute(0, 3, 1, 2)


_own = threading.local()


def whole_windows(plan: Plan, num_images: int) -> bool:
    """Whether every window lies on whole stored pixels, and its output on whole pixels of the resized window."""
    node = plan.nodes[0]
    if not isinstance(node, Pass):
        return True
    if node.geometry.matrix is not None and (node.geometry.y.size, node.geometry.x.size) != node.geometry.out:
        return False  # a crop or a resize stands behind the warp: the axis maps alone give another size
    if not node.geometry.resized:
        return True
    for axis in (node.geometry.y, node.geometry.x):
        exact = exact_windows(axis, num_images)
        if np.abs(exact - np.rint(exact)).max(initial=0) > 1e-6:
            return False
        every, first = exact[:, 2], exact[:, 3]
        if first.min(initial=0) < -1e-6 or (first + axis.size - every).max(initial=0) > 1e-6:
            return False
    return True
