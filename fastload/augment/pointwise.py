"""What every colour step means, in plain torch: torchvision's float kernels, with a number of its own per image.

Shape letters: N batch, C channels (1 or 3), H W pixels. Values are 0..1. Source of each formula:
torchvision/transforms/v2/functional/_color.py and _misc.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.functional import conv2d, pad

from fastload.augment.plan import Code

GREY_WEIGHTS = (0.2989, 0.587, 0.114)
GREY_SCALE = 1 << 20  # to which part of 1 a mean grey is exact
# Values so far apart are one: resampling an even area leaves its level by a rounding, a hundredth of that.
SAME = 1e-4


def grey(x_NCHW: torch.Tensor) -> torch.Tensor:
    """Return the grey image, [N, 1, H, W]; they do not quite sum to 1, as torchvision's do not."""
    if x_NCHW.shape[1] == 1:
        return x_NCHW
    r, g, b = x_NCHW.unbind(1)
    return r.mul(GREY_WEIGHTS[0]).add_(g.mul(GREY_WEIGHTS[1])).add_(b.mul(GREY_WEIGHTS[2])).unsqueeze(1)


def mean_grey(x: torch.Tensor) -> torch.Tensor:
    """Return the mean of each grey image, [N, 1, 1, 1]; in whole numbers, so that the order of adding is nothing."""
    total = (grey(x) * GREY_SCALE).to(torch.int64).sum((1, 2, 3), keepdim=True)
    return (total.to(torch.float64) * (1 / (GREY_SCALE * x.shape[2] * x.shape[3]))).to(x.dtype)


def brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply."""
    return (x * factor).clamp_(0, 1)


def _blend(x: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (x * factor).add_(other * (1 - factor)).clamp_(0, 1)


def contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the image's own mean grey."""
    return _blend(x, mean_grey(x), factor)


def saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the grey image; a grey image stays as it is."""
    return x if x.shape[1] == 1 else _blend(x, grey(x), factor)


def hue(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the hue by a share of the circle; a grey image stays as it is.

    Through HSV: the least and the largest channel stay, and each channel is read off a trapezoid over the hue h
    (0..6): low + span * clamp(|h - 3| - 1), clamp(2 - |h - 2|) and clamp(2 - |h - 4|) for R, G, B.
    """
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)
    high, low = torch.maximum(r, g), torch.minimum(r, g)
    torch.maximum(high, b, out=high)
    torch.minimum(low, b, out=low)
    span = high - low
    over = span.clamp(min=1e-12).reciprocal_()
    # The largest channel decides which third of the circle; red wins ties, then green. Conditions as 0 or 1:
    # torch.where takes ten times as long as any of this on a CPU.
    not_red, not_green = ((high - c).mul_(1e30).clamp_(max=1) for c in (r, g))
    green_third, blue_third = (b - r).mul_(over).add_(2), (r - g).mul_(over).add_(4)
    h = torch.lerp((g - b).mul_(over), torch.lerp(green_third, blue_third, not_green), not_red)
    h += 6 * turn[:, 0]
    h -= torch.floor(h * (1 / 6)).mul_(6)
    out = torch.empty_like(x)
    for channel, (middle, sign, offset) in enumerate(((3, 1, -1), (2, -1, 2), (4, -1, 2))):
        share = (h - middle).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.add(share.mul_(span), low, out=out[:, channel])
    return out.clamp_(0, 1)


def to_grey(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Give all channels the grey value."""
    return grey(x).expand_as(x)


def invert(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Take from 1."""
    return 1 - x


def posterize(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Round down to one of so many levels."""
    return torch.minimum((x * levels).floor_().clamp_(min=0), levels - 1) * (1 / levels)


def solarize(x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Invert what reaches the threshold, or is the same as it."""
    return torch.where(x >= threshold - SAME, 1 - x, x)


def autocontrast(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0..1; a channel of one value stays as it is."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high - low < SAME
    return ((x - torch.where(flat, 0.0, low)) / torch.where(flat, 1.0, high - low)).clamp_(0, 1)


def equalize(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Flatten each channel's histogram of 256 levels, as Pillow does."""
    levels = to_levels(x).flatten(2)
    histogram = torch.zeros((*levels.shape[:2], 256), dtype=torch.int64, device=x.device)
    histogram.scatter_add_(2, levels, torch.ones_like(levels))
    return torch.gather(equalizing_table(histogram), 2, levels).view(x.shape)


def to_levels(x: torch.Tensor) -> torch.Tensor:
    """Return 0..1 as 0..255, int64; torchvision's to_dtype(uint8, scale=True)."""
    return (x * (256 - 1e-3)).to(torch.int64).clamp_(0, 255)


def equalizing_table(histogram: torch.Tensor) -> torch.Tensor:
    """Return what each of 256 levels becomes, 0..1, for histograms int64 [..., 256]."""
    cumulative = histogram.cumsum(-1)
    total = cumulative[..., -1:]
    last = histogram.gather(-1, cumulative.argmax(-1, keepdim=True))
    step = (total - last) // 255
    table = (cumulative - histogram + step // 2) // step.clamp(min=1)
    same = torch.arange(256, device=histogram.device).expand_as(table)
    return torch.where(step > 0, table.clamp(0, 255), same) / 255


def sharpness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend the inner pixels with their 3x3 means, the middle weighing 5 of 13."""
    if min(x.shape[2:]) <= 2:
        return x
    shifted = (x[..., i : x.shape[2] - 2 + i, j : x.shape[3] - 2 + j] for i in range(3) for j in range(3) if i * j != 1)
    around = next(shifted) + next(shifted)
    for neighbour in shifted:
        around += neighbour
    out = x.clone()
    inner = out[..., 1:-1, 1:-1]
    blurred = around.mul_(1 / 13).add_(inner * (5 / 13))
    inner.add_(blurred.sub_(inner).mul_(1 - factor))
    return out.clamp_(0, 1)


def blur(x: torch.Tensor, sigma: torch.Tensor, radius: tuple[int, int]) -> torch.Tensor:
    """Blur by a Gaussian of 2 * radius + 1 pixels, mirrored at the edges."""
    count, channels, height, width = x.shape
    x = pad(x, (radius[1], radius[1], radius[0], radius[0]), mode="reflect")
    # Each image has its own kernel: images become channels of one grouped convolution.
    for axis, r in ((2, radius[0]), (3, radius[1])):
        at = torch.arange(-r, r + 1, device=x.device)
        kernel = torch.softmax(-(at.square() / (2 * sigma.view(-1, 1).square())), dim=1)
        shape = (count * channels, 1, -1, 1) if axis == 2 else (count * channels, 1, 1, -1)
        kernel = kernel.repeat_interleave(channels, 0).view(shape)
        x = conv2d(x.reshape(1, count * channels, *x.shape[2:]), kernel, groups=count * channels)
        x = x.view(count, channels, *x.shape[2:])
    return x.view(count, channels, height, width)


OPERATIONS: dict[Code, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    Code.BRIGHTNESS: brightness,
    Code.CONTRAST: contrast,
    Code.SATURATION: saturation,
    Code.HUE: hue,
    Code.GREY: to_grey,
    Code.INVERT: invert,
    Code.POSTERIZE: posterize,
    Code.SOLARIZE: solarize,
    Code.AUTOCONTRAST: autocontrast,
    Code.EQUALIZE: equalize,
    Code.SHARPNESS: sharpness,
}


def normal(words: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Return four standard normal numbers out of four random words each (Box and Muller, 1958)."""
    u = [w.to(torch.float64) * 2.0**-32 for w in words]
    found = []
    for a, b in ((u[0], u[1]), (u[2], u[3])):
        radius, angle = torch.sqrt(-2 * torch.log1p(-a)), 2 * math.pi * b
        found += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return found
