"""What every stage means, in plain torch, on any device.

Shape letters: N batch, H W stored pixels, S T output height and width, C channels.
"""

from __future__ import annotations

import numpy as np
import torch

from fastload.augment.geometry import AxisMap
from fastload.augment.spec import Draws, Values


def apply(
    images_NHWC: torch.Tensor,
    draws: Draws,
    values: Values,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> torch.Tensor:
    """Crop, resize, mirror and normalize one batch.

    Args:
        images_NHWC: uint8, any device.
        draws: one map per image and axis.
        values: scale and offset from stored 0..255.
        dtype: of the result; uint8 rounds and clamps.
        memory_format: of the result, torch.channels_last or torch.contiguous_format.

    Returns:
        [N, C, S, T] on the images' device.
    """
    # Where nothing is resampled, the crop is a copy of bytes: the cast then touches S * T pixels, not H * W.
    if draws.copies and all(f == int(f) and 0 <= f <= 255 for f in draws.fill):
        stored = copy_pixels(images_NHWC, draws)
        if dtype == torch.uint8:
            return _formatted(stored.permute(0, 3, 1, 2), memory_format)
        return _formatted(_scaled(stored, values).to(dtype).permute(0, 3, 1, 2), memory_format)
    out_NCST = resample(images_NHWC, draws)
    num_channels = images_NHWC.shape[3]
    scale, offset = _per_channel(values, num_channels, images_NHWC.device)
    out_NCST = torch.addcmul(offset[:, None, None], out_NCST, scale[:, None, None])
    if dtype == torch.uint8:
        out_NCST = out_NCST.round_().clamp_(0, 255)
    return _formatted(out_NCST.to(dtype), memory_format)


def resample(images_NHWC: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Resample each image once by its two maps: bilinear, antialiased where it shrinks.

    Two products with dense triangle-filter matrices: torchvision's `resize(antialias=True)` in float32,
    for a box of its own per image.

    Returns:
        float32 [N, C, S, T], stored units.
    """
    _, height, width, num_channels = images_NHWC.shape
    rows_NSH = filter_weights(draws.y, height, images_NHWC.device)
    columns_NTW = filter_weights(draws.x, width, images_NHWC.device)
    # [N, H, C, W] in between: both products are then plain batched ones, and nothing is copied twice.
    images_NHCW = images_NHWC.to(torch.float32).transpose(2, 3)
    narrow = torch.bmm(images_NHCW.reshape(-1, height * num_channels, width), columns_NTW.transpose(1, 2))
    out = torch.bmm(rows_NSH, narrow.view(len(narrow), height, num_channels * draws.x.size))
    out_NCST = out.view(len(out), draws.y.size, num_channels, draws.x.size).transpose(1, 2)
    if any(draws.fill):
        # What the weights of stored pixels lack to 1 is padding.
        missing_NST = 1 - rows_NSH.sum(2)[:, :, None] * columns_NTW.sum(2)[:, None, :]
        fill_C = torch.tensor(draws.fill, device=images_NHWC.device).expand(num_channels)
        out_NCST += missing_NST[:, None] * fill_C[:, None, None]
    return out_NCST


def filter_weights(axis: AxisMap, num_stored: int, device: torch.device) -> torch.Tensor:
    """Return the share of each stored pixel in each output pixel of one axis.

    The triangle filter of torch.nn.functional.interpolate(mode="bilinear", antialias=True,
    align_corners=False): as wide as an output pixel, never narrower than a stored one, cut off at
    the readable window and normalized there. Padding within the window takes its share, and an
    output pixel whose centre lies outside it is padding alone, so rows sum to at most 1.

    Returns:
        float32 [N, size, num_stored].
    """
    # Fractions of a pixel matter, thousands of pixels are possible: float64 until the weights are made.
    start, step, low, high = (
        torch.from_numpy(np.ascontiguousarray(a)).to(device)[:, None, None]
        for a in (axis.start, axis.step, axis.low, axis.high)
    )
    beyond = int(max(0.0, -np.floor(axis.low.min(initial=0)), np.ceil(axis.high.max(initial=0)) - num_stored))
    pixel = torch.arange(-beyond, num_stored + beyond, device=device) + 0.5
    output = torch.arange(axis.size, device=device, dtype=torch.float64)[:, None]
    centre = start + (output + 0.5) * step
    weights = (1 - (pixel - centre).abs() / step.abs().clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel > low) & (pixel < high))
    total = weights.sum(2, keepdim=True)
    readable = (centre > low) & (centre < high) & (total > 0)
    weights = torch.where(readable, weights / total.clamp(min=1e-12), 0.0)
    return weights[:, :, beyond : beyond + num_stored].to(torch.float32)


def copy_pixels(images_NHWC: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Take whole pixels by the two maps; the same pixels as `resample`, without arithmetic.

    Returns:
        uint8 [N, S, T, C].
    """
    # On the CPU, whole rows of bytes move at ten times the speed of single indexed pixels.
    return copy_by_slices(images_NHWC, draws) if images_NHWC.device.type == "cpu" else copy_by_index(images_NHWC, draws)


def copy_by_index(images_NHWC: torch.Tensor, draws: Draws) -> torch.Tensor:
    """See copy_pixels; one indexing for the whole batch, on any device and without waiting for it."""
    num_images, height, width, num_channels = images_NHWC.shape
    device = images_NHWC.device
    ys_NS, y_inside_NS = _positions(draws.y, height, device)
    xs_NT, x_inside_NT = _positions(draws.x, width, device)
    image_N = torch.arange(num_images, device=device)[:, None, None]
    taken = images_NHWC[image_N, ys_NS[:, :, None], xs_NT[:, None, :]]
    inside_NST = y_inside_NS[:, :, None] & x_inside_NT[:, None, :]
    return torch.where(inside_NST[..., None], taken, _fill(draws, num_channels, device))


def copy_by_slices(images_NHWC: torch.Tensor, draws: Draws) -> torch.Tensor:
    """See copy_pixels; image by image, for the CPU."""
    num_images, height, width, num_channels = images_NHWC.shape
    out_NSTC = torch.empty((num_images, draws.y.size, draws.x.size, num_channels), dtype=torch.uint8)
    rows, columns = _slices(draws.y, height), _slices(draws.x, width)
    padded = any(before + after for side in (rows, columns) for _, _, before, after, _ in side)
    if padded:
        out_NSTC.copy_(_fill(draws, num_channels, images_NHWC.device).expand_as(out_NSTC))
    per_image = zip(out_NSTC.unbind(), images_NHWC.unbind(), rows, columns, strict=True)
    for out, image, (top, bottom, above, below, upside_down), (left, right, ahead, behind, mirrored) in per_image:
        box = image[top:bottom, left:right]
        if padded:
            out = out[above : draws.y.size - below, ahead : draws.x.size - behind]
        if mirrored or upside_down:
            box = box.flip([axis for axis, flipped in ((0, upside_down), (1, mirrored)) if flipped])
        out.copy_(box)
    return out_NSTC


def _slices(axis: AxisMap, num_stored: int) -> list[tuple[int, int, int, int, bool]]:
    """Return for each image: stored pixels first and end, output pixels of padding before and after, mirrored."""
    flipped = axis.step < 0
    low = _first_pixel(axis) - np.where(flipped, axis.size - 1, 0)
    below = np.clip(-low, 0, axis.size)
    beyond = np.clip(low + axis.size - num_stored, 0, axis.size - below)
    before, after = np.where(flipped, beyond, below), np.where(flipped, below, beyond)
    # Plain numbers: torch takes a microsecond longer over each numpy integer.
    columns = (low + below, low + axis.size - beyond, before, after, flipped)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _first_pixel(axis: AxisMap) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the stored pixel of the first output pixel; a mirrored map starts at that pixel's far edge."""
    return np.where(axis.step > 0, axis.start, axis.start - 1).astype(np.int64)


def _fill(draws: Draws, num_channels: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(draws.fill).to(device, torch.uint8, non_blocking=True).expand(num_channels)


def _positions(axis: AxisMap, num_stored: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stored pixel of each output pixel, and whether there is one; both [N, size]."""
    start = torch.from_numpy(_first_pixel(axis)).to(device, non_blocking=True)[:, None]
    step = torch.from_numpy(axis.step.astype(np.int64)).to(device, non_blocking=True)[:, None]
    position = start + torch.arange(axis.size, device=device) * step
    return position.clamp(0, num_stored - 1), (position >= 0) & (position < num_stored)


def _scaled(stored_NSTC: torch.Tensor, values: Values) -> torch.Tensor:
    num_images, height, width, num_channels = stored_NSTC.shape
    scale, offset = _per_channel(values, num_channels, stored_NSTC.device)
    # One long row per pixel row: broadcasting over a last axis of 3 runs at a quarter of the speed.
    rows = stored_NSTC.reshape(num_images * height, width * num_channels).to(torch.float32)
    torch.addcmul(offset.repeat(width), rows, scale.repeat(width), out=rows)
    return rows.view(stored_NSTC.shape)


def _per_channel(values: Values, num_channels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    scale, offset = torch.tensor(values.scale), torch.tensor(values.offset)
    return (
        scale.expand(num_channels).to(device, non_blocking=True),
        offset.expand(num_channels).to(device, non_blocking=True),
    )


def _formatted(out_NCST: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    return out_NCST.contiguous(memory_format=memory_format)
