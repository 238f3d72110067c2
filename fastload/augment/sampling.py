"""What geometry means, in plain torch, on any device.

Shape letters: N batch, H W stored pixels, S T output height and width, C channels.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fastload.augment.arithmetic import Array
from fastload.augment.maps import AxisMap, Geometry


def column(value: Array, num_images: int, device: torch.device) -> torch.Tensor:
    """Return per-image numbers of any backend as float64 [N]."""
    if not isinstance(value, torch.Tensor):
        value = torch.from_numpy(np.array(np.broadcast_to(value, num_images), np.float64))
    # Not to the CPU, which would read the numbers before a GPU has written them.
    moved: torch.Tensor = value.to(device, torch.float64, non_blocking=device.type != "cpu")
    return moved.expand(num_images)


def resample(images_NHWC: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Resample each image once: bilinear, antialiased where it shrinks.

    Returns:
        float32 [N, C, S, T], stored units.
    """
    if geometry.copies:
        if geometry.padded and not is_stored(geometry.fill):
            images_NHWC = images_NHWC.to(torch.float32)
        return copy_pixels(images_NHWC, geometry).permute(0, 3, 1, 2).to(torch.float32)
    return filtered(images_NHWC, geometry) if geometry.matrix is None else warped(images_NHWC, geometry)


def is_stored(fill: tuple[float, ...]) -> bool:
    """Whether a fill is one that uint8 can hold."""
    return all(f == int(f) and 0 <= f <= 255 for f in fill)


def filtered(images_NHWC: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Resample along the axes.

    Two products with dense triangle-filter matrices: torchvision's `resize(antialias=True)` in float32,
    for a box of its own per image.

    Returns:
        float32 [N, C, S, T], stored units.
    """
    _, height, width, num_channels = images_NHWC.shape
    rows_NSH = filter_weights(geometry.y, height, images_NHWC, geometry.fold)
    columns_NTW = filter_weights(geometry.x, width, images_NHWC, geometry.fold)
    # [N, H, C, W] in between: both products are then plain batched ones, and nothing is copied twice.
    images_NHCW = images_NHWC.to(torch.float32).transpose(2, 3)
    with _in_full(images_NHWC.device):
        narrow = torch.bmm(images_NHCW.reshape(-1, height * num_channels, width), columns_NTW.transpose(1, 2))
        out = torch.bmm(rows_NSH, narrow.view(len(narrow), height, num_channels * geometry.x.size))
    out_NCST = out.view(len(out), geometry.y.size, num_channels, geometry.x.size).transpose(1, 2)
    if geometry.padded and any(geometry.fill):
        # What the weights of stored pixels lack to 1 is padding.
        missing_NST = 1 - rows_NSH.sum(2)[:, :, None] * columns_NTW.sum(2)[:, None, :]
        out_NCST = out_NCST + missing_NST[:, None] * fill_C(geometry.fill, images_NHWC)[:, None, None]
    return out_NCST


@contextmanager
def _in_full(device: torch.device) -> Iterator[None]:
    """Multiply float32 in full: a training may have it rounded to the 11 bits of TF32, to a tenth of a level."""
    # As torch 2.9 says it, which a user may mix with the older way of speaking; 2.8 has that alone, for GPUs.
    switch = getattr(torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn, "matmul", None)
    name, full = ("fp32_precision", "ieee") if hasattr(switch, "fp32_precision") else ("allow_tf32", False)
    with _switching:  # by one thread at a time: it puts back what it found
        before = getattr(switch, name, full)
        if before in (full, "none"):
            yield
            return
        setattr(switch, name, full)
        try:
            yield
        finally:
            setattr(switch, name, before)


_switching = threading.Lock()


def filter_weights(axis: AxisMap, num_stored: int, images: torch.Tensor, fold: str = "") -> torch.Tensor:
    """Return the share of each stored pixel in each output pixel of one axis.

    The triangle filter of torch.nn.functional.interpolate(mode="bilinear", antialias=True,
    align_corners=False): as wide as an output pixel, never narrower than a stored one, cut off at
    the readable window and normalized there. Padding within the window takes its share, and an
    output pixel whose centre lies outside it is padding alone, so rows sum to at most 1.

    Returns:
        float32 [N, size, num_stored].
    """
    # Fractions of a pixel matter, thousands of pixels are possible: float64 until the weights are made.
    num_images, device = len(images), images.device
    names = (axis.start, axis.step, axis.low, axis.high, axis.fold_low, axis.fold_high)
    start, step, low, high, fold_low, fold_high = (column(a, num_images, device)[:, None, None] for a in names)
    output = torch.arange(axis.size, device=device, dtype=torch.float64)[:, None]
    centre = start + (output + 0.5) * step
    if fold:
        centre = folded(centre, fold_low, fold_high, fold)
    support = step.abs().clamp(min=1)
    reach = max(0, -math.floor(float(low.min())), math.ceil(float(high.max())) - num_stored) if num_images else 0
    pixel = torch.arange(-reach, num_stored + reach, device=device) + 0.5
    weights = (1 - (pixel - centre).abs() / support).clamp(min=0)
    weights = weights * ((pixel > low) & (pixel < high))
    total = weights.sum(2, keepdim=True)
    readable = (centre > low) & (centre < high) & (total > 0)
    weights = torch.where(readable, weights / total.clamp(min=1e-12), 0.0)
    return weights[:, :, reach : reach + num_stored].to(torch.float32)


def warped(images_NHWC: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Resample through a warp: the axis maps' own filter, read at the place that the matrix points to.

    Outside the canvas the fill is blended in as torchvision's grid_sample does: m * (m * v - fill) + fill,
    with m the share of the bilinear weights that fall on the canvas.

    Returns:
        float32 [N, C, S, T], stored units.
    """
    num_images, height, width, num_channels = images_NHWC.shape
    device, k = images_NHWC.device, geometry.supersample
    rows, columns = geometry.out
    m = [column(a, num_images, device)[:, None, None] for a in geometry.matrix or ()]
    total = torch.zeros((num_images, rows, columns, num_channels), device=device)
    flat = images_NHWC.reshape(num_images, height * width, num_channels)
    for part in range(k * k):
        v = torch.arange(rows, device=device, dtype=torch.float64)[:, None] + (part // k + 0.5) / k
        u = torch.arange(columns, device=device, dtype=torch.float64) + (part % k + 0.5) / k
        depth = m[6] * u + m[7] * v + m[8]
        x, y = (m[0] * u + m[1] * v + m[2]) / depth, (m[3] * u + m[4] * v + m[5]) / depth
        total += _at(flat, x, y, geometry, height, width)
    return (total / (k * k)).permute(0, 3, 1, 2)


def _at(
    flat: torch.Tensor, x: torch.Tensor, y: torch.Tensor, geometry: Geometry, height: int, width: int
) -> torch.Tensor:
    """Return the values at canvas coordinates x, y [N, S, T], as [N, S, T, C]."""
    taps_y, cover_y = _taps(geometry.y, y, height, geometry.nearest)
    taps_x, cover_x = _taps(geometry.x, x, width, geometry.nearest)
    shape = (*x.shape, flat.shape[2])
    pad = fill_C(geometry.fill, flat)
    value = torch.zeros(shape, device=flat.device)
    for row, weight_y, inside_y in taps_y:
        for across, weight_x, inside_x in taps_x:
            index = (row * width + across).view(len(flat), -1, 1)
            if len(flat) == 1:  # whole pixels at once: twice as fast
                tap = flat[0].index_select(0, index.view(-1)).view(shape).to(torch.float32)
            else:
                tap = torch.gather(flat, 1, index.expand(-1, -1, shape[3])).view(shape).to(torch.float32)
            if geometry.padded:
                tap = torch.where((inside_y & inside_x)[..., None], tap, pad)
            value += tap * (weight_y * weight_x)[..., None]
    cover = (cover_y * cover_x).to(torch.float32)[..., None]
    if geometry.nearest:
        outside = fill_C(geometry.warp_fill or (0.0,), flat)
        return torch.where(cover >= 0.5, value, outside)
    if geometry.warp_fill is None:
        return value * cover
    outside = fill_C(geometry.warp_fill, flat)
    return (value * cover - outside) * cover + outside


def _taps(axis: AxisMap, at: torch.Tensor, num_stored: int, nearest: bool) -> tuple[list[Any], torch.Tensor]:
    """Return ((stored pixel, weight, whether there is one) per tap, cover), each [N, S, T]."""
    start, step, low, high = (
        column(a, len(at), at.device)[:, None, None] for a in (axis.start, axis.step, axis.low, axis.high)
    )
    centre = start + at * step
    if nearest:
        pixel = centre.floor()
        inside = (pixel >= 0) & (pixel < num_stored)
        cover = ((at > 0) & (at < axis.size)).to(torch.float64)
        return [(pixel.nan_to_num(0).clamp(0, num_stored - 1).long(), torch.ones_like(at).float(), inside)], cover
    cover = torch.minimum(at + 0.5, axis.size - at + 0.5).clamp(0, 1)
    support = step.abs().clamp(min=1)
    first = (centre - support + 0.5).floor()
    taps = []
    for i in range(math.ceil(2 * float(support.max()))):
        pixel = first + i
        weight = (1 - (pixel + 0.5 - centre).abs() / support).clamp(min=0)
        weight = weight * ((pixel + 0.5 > low) & (pixel + 0.5 < high))
        inside = (pixel >= 0) & (pixel < num_stored)
        taps.append((pixel.nan_to_num(0).clamp(0, num_stored - 1).long(), weight, inside))
    total = sum(t[1] for t in taps).clamp(min=1e-12)  # type: ignore[union-attr]
    return [(pixel, (weight / total).float(), inside) for pixel, weight, inside in taps], cover


def copy_pixels(images_NHWC: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Take whole pixels by the two maps; the same pixels as `filtered`, without arithmetic.

    Returns:
        [N, S, T, C] of the images' dtype.
    """
    # On the CPU, whole rows of bytes move at ten times the speed of single indexed pixels.
    slices = images_NHWC.device.type == "cpu" and not geometry.fold
    return copy_by_slices(images_NHWC, geometry) if slices else copy_by_index(images_NHWC, geometry)


def copy_by_index(images_NHWC: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """See copy_pixels; one indexing for the whole batch, on any device and without waiting for it."""
    num_images, height, width, _ = images_NHWC.shape
    ys_NS, y_inside_NS = _positions(geometry.y, height, images_NHWC, geometry.fold)
    xs_NT, x_inside_NT = _positions(geometry.x, width, images_NHWC, geometry.fold)
    image_N = torch.arange(num_images, device=images_NHWC.device)[:, None, None]
    taken = images_NHWC[image_N, ys_NS[:, :, None], xs_NT[:, None, :]]
    if not geometry.padded:
        return taken
    inside_NST = y_inside_NS[:, :, None] & x_inside_NT[:, None, :]
    return torch.where(inside_NST[..., None], taken, fill_C(geometry.fill, images_NHWC).to(taken.dtype))


def copy_by_slices(images_NHWC: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """See copy_pixels; image by image, for the CPU."""
    num_images, height, width, num_channels = images_NHWC.shape
    rows, columns = geometry.out
    out_NSTC = torch.empty((num_images, rows, columns, num_channels), dtype=images_NHWC.dtype, device="cpu")
    each_y, each_x = _slices(geometry.y, height, num_images), _slices(geometry.x, width, num_images)
    padded = any(before + after for side in (each_y, each_x) for _, _, before, after, _ in side)
    if padded:
        out_NSTC.copy_(fill_C(geometry.fill, images_NHWC).to(out_NSTC.dtype).expand_as(out_NSTC))
    per_image = zip(out_NSTC.unbind(), images_NHWC.unbind(), each_y, each_x, strict=True)
    for out, image, (top, bottom, above, below, upside_down), (left, right, ahead, behind, mirrored) in per_image:
        box = image[top:bottom, left:right]
        if padded:
            out = out[above : rows - below, ahead : columns - behind]
        if mirrored or upside_down:
            box = box.flip([axis for axis, flipped in ((0, upside_down), (1, mirrored)) if flipped])
        out.copy_(box)
    return out_NSTC


def spans(axis: AxisMap, num_stored: int, num_images: int) -> tuple[Any, Any, Any, Any, Any]:
    """Return for each image: stored pixels first and end, output pixels of padding before and after, mirrored."""
    start, step, low, high = (
        np.broadcast_to(np.asarray(a, np.float64), num_images) for a in (axis.start, axis.step, axis.low, axis.high)
    )
    flipped = step < 0
    first = (start - np.where(flipped, axis.size, 0)).astype(np.int64)
    lowest = np.maximum(low, 0).astype(np.int64)
    highest = np.maximum(np.minimum(high, num_stored).astype(np.int64), lowest)
    below = np.clip(lowest - first, 0, axis.size)
    beyond = np.clip(first + axis.size - highest, 0, axis.size - below)
    before, after = np.where(flipped, beyond, below), np.where(flipped, below, beyond)
    return first + below, first + axis.size - beyond, before, after, flipped


def _slices(axis: AxisMap, num_stored: int, num_images: int) -> list[tuple[int, int, int, int, bool]]:
    """Return `spans`, image by image."""
    # Plain numbers: torch takes a microsecond longer over each numpy integer.
    return list(zip(*(c.tolist() for c in spans(axis, num_stored, num_images)), strict=True))


def _positions(axis: AxisMap, num_stored: int, images: torch.Tensor, fold: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stored pixel of each output pixel, and whether there is one; both [N, size]."""
    names = (axis.start, axis.step, axis.low, axis.high, axis.fold_low, axis.fold_high)
    start, step, low, high, fold_low, fold_high = (column(a, len(images), images.device)[:, None] for a in names)
    centre = start + (torch.arange(axis.size, device=images.device, dtype=torch.float64) + 0.5) * step
    if fold:
        centre = folded(centre, fold_low, fold_high, fold)
    inside = (centre > low) & (centre < high) & (centre > 0) & (centre < num_stored)
    return centre.floor().clamp(0, num_stored - 1).long(), inside


def folded(at: torch.Tensor, low: torch.Tensor, high: torch.Tensor, mode: str) -> torch.Tensor:
    """Return coordinates brought back between `low` and `high`: held there, or mirrored to and fro."""
    if mode == "edge":
        return torch.minimum(torch.maximum(at, low), high)
    span = (high - low).clamp(min=1e-9)
    way = torch.remainder(at - low, 2 * span)
    return low + torch.minimum(way, 2 * span - way)


def fill_C(fill: tuple[float, ...], images: torch.Tensor) -> torch.Tensor:
    """Return a fill as float32 [C] on the images' device; the images have their channels last."""
    return torch.tensor(fill, device="cpu").to(images.device, non_blocking=True).expand(images.shape[-1])
