"""Crops, warps and colours on the CPU: image by image on a pool of threads, each image staying in its core's cache.

The resampling is torch's own for uint8 (what torchvision does with uint8 images), which rounds to whole grey
levels: within 1.1 levels of `reference.py` before colour, 0.3 on average. What a warp moves is not rounded.
compiled.py gives the same bytes for a batch at a time, once it is compiled, beside the first batches.

Shape letters: N batch, H W stored pixels, S T output, C channels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch

from fastload.augment import batched
from fastload.augment.arithmetic import Array
from fastload.augment.batched import Windows, empty, exact_windows, gathered, spread, windows
from fastload.augment.compiling import compiled, ready
from fastload.augment.maps import IDENTITY, Geometry
from fastload.augment.plan import Code, Pass, Plan, Step, transfer
from fastload.augment.pointwise import OPERATIONS, blur
from fastload.augment.sampling import copy_by_slices, warped
from fastload.augment.spec import Values

DIRECT = (torch.float32, torch.uint8)  # what the compiled function writes


def _is_direct(dtype: torch.dtype, memory_format: torch.memory_format) -> bool:
    """Whether the compiled function writes the output itself."""
    return dtype in DIRECT and (dtype != torch.uint8 or memory_format == torch.channels_last)


def suits(images_NHWC: torch.Tensor, plan: Plan, dtype: torch.dtype) -> bool:
    """Whether this way is for the plan: one pass that resamples along the axes, or only copies, then colours."""
    node = plan.nodes[0]
    if images_NHWC.device.type != "cpu" or images_NHWC.dtype != torch.uint8 or len(plan.nodes) > 1:
        return False
    if not isinstance(node, Pass) or node.channels != images_NHWC.shape[3] or node.channels not in (1, 3):
        return False
    g = node.geometry
    if g.fold or (g.resized and g.padded):
        return False
    whole = all(f == int(f) and 0 <= f <= 255 for f in g.fill)
    if not whole or any(Code.ERASE in s.kinds for s in node.steps):
        return False
    # Bare copies are as fast in `reference.copied` until the compiled ones are there.
    return not g.copies or bool(node.steps) or (dtype in DIRECT and compiled() is not None)


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
    node = plan.nodes[0]
    assert isinstance(node, Pass)
    num_images, channels, (height, width) = len(images_MHWC if rows is None else rows), node.channels, node.geometry.out
    last = memory_format == torch.channels_last
    out = empty((num_images, channels, height, width), dtype, channels_last=last)
    codes = [_listed(s.code, num_images) for s in node.steps]
    numbers = [_listed(s.values[0] if s.values else 0.0, num_images) for s in node.steps]
    warps = _warped(node, num_images)
    fast = compiled()
    if fast is None:
        images_MHWC, rows = gathered(images_MHWC, rows), None
        stored = _crops(images_MHWC, node) if node.geometry.resized else _copies(images_MHWC, node)
    else:
        w = Windows.of(node.geometry, images_MHWC.shape[1:], num_images)
        told = (fast.make, images_MHWC, rows, w, warps, values.scale, values.offset)
        if _is_direct(dtype, memory_format) and not any(warps) and not any(map(any, codes)):
            batched.run(*told, out, planar=not last)
            return out
        crops_NSTC = empty((num_images, channels, height, width), torch.uint8, channels_last=True)
        batched.run(*told, crops_NSTC, planar=False)
        stored = crops_NSTC.permute(0, 2, 3, 1).__getitem__
    which = range(num_images) if rows is None else rows.tolist()
    scale, offset = (torch.tensor(v).expand(channels) for v in (values.scale, values.offset))
    finish = _Finish(scale, offset, width if last else None)

    def one(i: int) -> None:
        if warps[i]:
            alone = transfer(node.geometry, lambda a: float(np.broadcast_to(a, num_images)[i]))
            crop_STC = _moved(images_MHWC[which[i] : which[i] + 1], alone)[0].permute(1, 2, 0)
        else:
            crop_STC = stored(i)
        active = [(Code(int(c[i])), n[i], s) for c, n, s in zip(codes, numbers, node.steps, strict=True) if c[i]]
        finish(out[i], crop_STC, active)

    spread(one, num_images)
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
    if ready() is None or not suits(like, plan, dtype) or not _is_direct(dtype, memory_format):
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


class _Finish:
    """The colour steps of one image, and its way to the output.

    Args:
        scale, offset: float32 [C], from stored values to what is wanted.
        width: of the output, where its channels are last; None where they are planes.
    """

    def __init__(self, scale: torch.Tensor, offset: torch.Tensor, width: int | None) -> None:
        self._last = width is not None
        self._planes, self._offsets = (255 * scale)[:, None, None], offset[:, None, None]
        if width is None:
            self._scale, self._offset = scale[:, None, None], offset[:, None, None]
        else:
            # One long row per pixel row: broadcasting over a last axis of 3 runs at a quarter of the speed.
            self._scale, self._offset = scale.repeat(width), offset.repeat(width)

    def __call__(self, out_CST: torch.Tensor, x_STC: torch.Tensor, active: list[tuple[Code, float, Step]]) -> None:
        """Take the steps `active`, each with its code and number, and write the image."""
        if not active:
            self._copy(out_CST, x_STC)
            return
        x = x_STC.permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
        for code, number, step in active:
            value = torch.full((1, 1, 1, 1), number)
            x = blur(x, value, step.radius) if code == Code.BLUR else OPERATIONS[code](x, value)
        if out_CST.dtype == torch.uint8:
            out_CST.copy_(x[0].mul(255).round_().clamp_(0, 255))
        else:
            # Scaled as planes: one copy then brings the channels together.
            out_CST.copy_((x[0] * self._planes).add_(self._offsets))

    def _copy(self, out_CST: torch.Tensor, x_STC: torch.Tensor) -> None:
        if out_CST.dtype == torch.uint8:
            whole = x_STC if x_STC.dtype == torch.uint8 else x_STC.round().clamp_(0, 255)
            out_CST.copy_(whole.permute(2, 0, 1))
            return
        if self._last:
            rows = x_STC.to(torch.float32).reshape(len(x_STC), -1)
            target = out_CST.permute(1, 2, 0).reshape(len(x_STC), -1)
        else:
            rows, target = x_STC.permute(2, 0, 1).to(torch.float32), out_CST
        if out_CST.dtype == torch.float32:
            torch.addcmul(self._offset, rows, self._scale, out=target)
        else:
            target.copy_(torch.addcmul(self._offset, rows, self._scale))


def _warped(node: Pass, num_images: int) -> list[bool]:
    """Return which images a warp moves."""
    if node.geometry.matrix is None:
        return [False] * num_images
    moved = np.zeros(num_images, bool)
    for there, same in zip(node.geometry.matrix, IDENTITY, strict=True):
        moved |= np.broadcast_to(there != same, num_images)
    listed: list[bool] = moved.tolist()
    return listed


def _moved(image_1HWC: torch.Tensor, g: Geometry) -> torch.Tensor:
    """Return one image through its warp, float32 [1, C, S, T]: `sampling.warped`, by grid_sample where that is it.

    Where nothing shrinks, the axis maps' filter is two pixels wide: bilinear, held at the window's edges.
    """
    shrinks = max(abs(g.y.step), abs(g.x.step)) > 1 + 1e-9
    if g.nearest or g.padded or g.supersample > 1 or shrinks or g.matrix is None:
        return warped(image_1HWC, g)
    rows, columns = (torch.arange(n, dtype=torch.float32) + 0.5 for n in g.out)
    m, across, down = g.matrix, columns, rows[:, None]
    over = (m[6] * across + (m[7] * down + m[8])).reciprocal_()
    x, y = (m[0] * across + (m[1] * down + m[2])) * over, (m[3] * across + (m[4] * down + m[5])) * over
    top, bottom, left, right = (round(edge) for edge in (g.y.low, g.y.high, g.x.low, g.x.high))
    window = image_1HWC[:, top:bottom, left:right].permute(0, 3, 1, 2).to(torch.float32).contiguous()
    grid = torch.stack([
        (x * g.x.step).add_(g.x.start - left).mul_(2 / (right - left)).sub_(1),
        (y * g.y.step).add_(g.y.start - top).mul_(2 / (bottom - top)).sub_(1),
    ], dim=-1)[None]  # fmt: skip
    value = torch.nn.functional.grid_sample(window, grid, padding_mode="border", align_corners=False)
    half_x, half_y = (
        torch.minimum(at, size - at).add_(0.5).clamp_(0, 1) for at, size in ((x, g.x.size), (y, g.y.size))
    )
    cover = half_x.mul_(half_y)
    value *= cover
    if g.warp_fill is None:
        return value
    outside = torch.tensor(g.warp_fill).view(-1, 1, 1)
    return (value - outside).mul_(cover).add_(outside)


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
        _own.shape, _own.memory = shape, torch.empty(shape, dtype=torch.uint8)
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


def _listed(value: Array, num_images: int) -> list[float]:
    listed: list[float] = np.broadcast_to(value, num_images).tolist()
    return listed
