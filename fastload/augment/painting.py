"""Warps and colour steps of a batch on the CPU: what compiled_colour.py is told of it, and image by image in torch.

Both give the same bytes: a run may go from one to the other.

Shape letters: M stored images, N batch, H W stored pixels, S T output, C channels, K steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastload.augment.batched import DIRECT, spread_ranges
from fastload.augment.maps import IDENTITY, Geometry
from fastload.augment.plan import Code, Pass, transfer
from fastload.augment.pointwise import OPERATIONS, blur
from fastload.augment.sampling import fill_C, warped
from fastload.augment.spec import Values

# What the compiled function does with an image, and a code beyond plan.Code's: the warp of a pass behind the first.
LEFT_OUT, CROPPED, WARPED = range(3)
WARP = 14


class Painting:
    """The warps and colour steps of one batch.

    Args:
        passes: that `cpu.suits` admits.
        num_images: N.
        values: from stored values to what is wanted.

    Attributes:
        moved: which images the first pass's warp moves, [N].
        idle: whether there is nothing to do.
    """

    def __init__(self, passes: tuple[Pass, ...], num_images: int, values: Values) -> None:
        self._passes, self._num_images = passes, num_images
        self._moved = [_moved(node.geometry, num_images) for node in passes]
        # The warps of later passes are steps, too.
        self._steps = [(step, j) for j, node in enumerate(passes) for step in ((None,) if j else ()) + node.steps]
        self._codes = np.zeros((num_images, len(self._steps)), np.int64)
        self._numbers = np.zeros((num_images, len(self._steps), 4))
        for k, (step, j) in enumerate(self._steps):
            self._codes[:, k] = WARP * self._moved[j] if step is None else step.code
            for i, value in enumerate(step.values if step is not None else ()):
                self._numbers[:, k, i] = value
        self.moved: list[bool] = self._moved[0].tolist()
        self.idle = not self._moved[0].any() and not self._codes.any()
        channels = passes[0].channels
        both = (torch.tensor(v, device="cpu") for v in (values.scale, values.offset))
        self._scale, self._offset = (v.expand(channels) for v in both)

    def compiled(
        self, paint: Callable[..., None], images_MHWC: torch.Tensor, rows: torch.Tensor | None,
        crops_NSTC: torch.Tensor, out_NCST: torch.Tensor, *, planar: bool,
    ) -> list[int]:  # fmt: skip
        """Paint what the compiled function can; return which images are left for `by_torch`: the blurred."""
        ways = np.where(self._moved[0], WARPED, CROPPED)
        ways = np.where((self._codes == Code.BLUR).any(1), LEFT_OUT, ways).astype(np.int8)
        which = np.arange(self._num_images) if rows is None else rows.numpy()
        erased = np.zeros((len(self._steps), crops_NSTC.shape[3]), np.float32)
        for k, (step, _) in enumerate(self._steps):
            erased[k] = step.fill if step is not None else 0
        levels = torch.arange(256.0, device="cpu")[None].expand(len(self._scale), 256)
        table = torch.addcmul(self._offset[:, None], levels, self._scale[:, None])
        direct = out_NCST if out_NCST.dtype in DIRECT else torch.empty_like(
            out_NCST, dtype=torch.float32)  # fmt: skip
        flat = (direct if planar else direct.permute(0, 2, 3, 1)).view(-1).numpy()
        both = (flat, _NO_FLOATS) if direct.dtype == torch.uint8 else (_NO_BYTES, flat)
        before = (crops_NSTC.numpy(), images_MHWC.contiguous().numpy(), which, ways, *self._warps(), self._codes,
                  self._numbers.astype(np.float32), erased, np.array([j for _, j in self._steps], np.int64),
                  (255 * self._scale).numpy(), self._offset.contiguous().numpy(), table.numpy(), planar,
                  *both)  # fmt: skip
        spread_ranges(lambda first, stop: paint(*before, first, stop), self._num_images, 4 * direct.nbytes)
        if direct is not out_NCST:
            out_NCST.copy_(direct)
        left: list[int] = np.flatnonzero(ways == LEFT_OUT).tolist()
        return left

    def _warps(self) -> tuple[npt.NDArray[Any], ...]:
        """Return matrices and axes, flags, fill and outside of all passes; see compiled_colour._paint."""
        count, channels = len(self._passes), self._passes[0].channels
        numbers, flags = np.zeros((count, self._num_images, 19)), np.zeros((count, 4), np.int64)
        fills = np.zeros((2, count, channels), np.float32)
        for j, node in enumerate(self._passes):
            g = node.geometry
            axes = [(a.start, a.step, a.size, a.low, a.high) for a in (g.y, g.x)]
            for i, number in enumerate((*(g.matrix or IDENTITY), *axes[0], *axes[1])):
                numbers[j, :, i] = number
            flags[j] = g.nearest, g.padded, g.warp_fill is not None, g.supersample
            fills[0, j], fills[1, j] = g.fill, g.warp_fill or 0
        return numbers, flags, *fills

    def by_torch(
        self, out_CST: torch.Tensor, image_1HWC: torch.Tensor, crop_STC: Callable[[], torch.Tensor], i: int
    ) -> None:
        """Paint image `i`: uint8, with what resampled it if no warp does."""
        if self.moved[i]:
            x = self._through(image_1HWC, 0, i)
        else:
            crop = crop_STC()
            if not self._codes[i].any():
                self._copy(out_CST, crop)
                return
            x = crop.permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)
        x = x.mul(1 / 255)
        for code, numbers, (step, j) in zip(
            self._codes[i].tolist(), self._numbers[i].tolist(), self._steps, strict=True
        ):
            value = torch.full((1, 1, 1, 1), numbers[0], device="cpu")
            if step is None:
                x = self._through((x * 255).permute(0, 2, 3, 1), j, i).mul(1 / 255) if code else x
            elif code == Code.ERASE:
                top, left, bottom, right = (round(n) for n in numbers)
                x = x.contiguous()  # not several channels in one memory
                x[..., top:bottom, left:right] = fill_C(step.fill, image_1HWC)[:, None, None]
            elif code:
                x = blur(x, value, step.radius) if code == Code.BLUR else OPERATIONS[Code(code)](x, value)
        if out_CST.dtype == torch.uint8:
            out_CST.copy_(x[0].mul(255).round_().clamp_(0, 255))
        else:
            # Scaled as planes: one copy then brings the channels together.
            out_CST.copy_((x[0] * (255 * self._scale)[:, None, None]).add_(self._offset[:, None, None]))

    def _through(self, image_1HWC: torch.Tensor, j: int, i: int) -> torch.Tensor:
        """Return image `i` through the warp of pass `j`, float32 [1, C, S, T]."""
        g = self._passes[j].geometry
        return warped(image_1HWC, transfer(g, lambda a: float(np.broadcast_to(a, self._num_images)[i])))

    def _copy(self, out_CST: torch.Tensor, x_STC: torch.Tensor) -> None:
        if out_CST.dtype == torch.uint8:
            out_CST.copy_(x_STC.permute(2, 0, 1))
            return
        if out_CST.stride(0) == 1 and len(out_CST) > 1:
            # One long row per pixel row: broadcasting over a last axis of 3 runs at a quarter of the speed.
            width = out_CST.shape[2]
            rows, target = x_STC.to(torch.float32).reshape(len(x_STC), -1), out_CST.permute(1, 2, 0).flatten(1)
            scale, offset = self._scale.repeat(width), self._offset.repeat(width)
        else:
            rows, target = x_STC.permute(2, 0, 1).to(torch.float32), out_CST
            scale, offset = self._scale[:, None, None], self._offset[:, None, None]
        if out_CST.dtype == torch.float32:
            torch.addcmul(offset, rows, scale, out=target)
        else:
            target.copy_(torch.addcmul(offset, rows, scale))


_NO_BYTES, _NO_FLOATS = np.empty(0, np.uint8), np.empty(0, np.float32)


def _moved(g: Geometry, num_images: int) -> npt.NDArray[np.bool_]:
    """Return which images a warp moves, [N]."""
    found = np.zeros(num_images, bool)
    for there, same in zip(g.matrix or (), IDENTITY, strict=g.matrix is not None):
        found |= np.broadcast_to(there != same, num_images)
    return found
