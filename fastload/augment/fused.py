"""Plans on a GPU: one kernel for the draws, then one or a few for each pass. `reference.py` says what they mean.

Nothing here waits for the device. Shape letters: N batch, H W stored pixels, S T output, C channels (1 or 3).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton

from fastload.augment import kernels
from fastload.augment.arithmetic import Keys
from fastload.augment.maps import Geometry
from fastload.augment.plan import STENCILS, Mixing, Mixture, Numbered, Pass, Plan, Step, rows_of, transfer
from fastload.augment.segments import segments
from fastload.augment.spec import Values, plan
from fastload.augment.tracing import Trace, compile_draws

# Numbers that a statistic of an image comes in: each block of 512 pixels reads all of them, so that one for each block
# would be read as often as the square of the pixels. Up to 256 x 256 pixels they are so many.
MOST_SUMS = 128
_FOLDS = {"": 0, "edge": 1, "reflect": 2, "symmetric": 2}


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the last kernel writes: a tensor's dtype and layout, and scale and offset from stored units."""

    dtype: torch.dtype
    memory_format: torch.memory_format
    values: Values


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """A pass whose row numbers count from `first`: passes that differ in nothing else then share their kernels."""

    first: int
    node: Pass


class Fused:
    """One run of known transforms for images of one size: traced once, run for every batch.

    Args:
        ops: numbered transforms.
        height, width, channels: of the images.
    """

    def __init__(self, ops: Sequence[Numbered], height: int, width: int, channels: int) -> None:
        trace = Trace()
        traced = plan(ops, trace, height, width, channels)
        self.draw_kernel = compile_draws(trace, traced)
        self.num_rows = len(rows_of(traced))
        rows = iter(range(self.num_rows))
        # The plan with row numbers in place of the numbers themselves.
        self.plan: Plan = transfer(traced, lambda _: next(rows))
        self._nodes = [_placed(n) if isinstance(n, Pass) else (n, [[_placed(p) for p in c] for c in n.chains])
                       for n in self.plan.nodes]  # fmt: skip
        self._ready: dict[Any, list[_Launch]] = {}

    def draws(self, ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Return the draws of samples `ids` (int64 [N], on the device), float32 [rows, N]."""
        count = len(ids)
        out = torch.empty((self.num_rows, count), dtype=torch.float32, device=ids.device)
        if self.num_rows:
            # The same for every batch, however short: another one would be compiled, for seconds.
            self.draw_kernel[(triton.cdiv(count, 128),)](ids, keys, out, count, BLOCK=128)
        return out

    def mixing(self, draws: torch.Tensor) -> tuple[Mixing, ...]:
        """Return the mixing with its numbers, on the device."""
        made: tuple[Mixing, ...] = transfer(self.plan.mixing, lambda row: draws[row])
        return made

    def run(
        self, images: torch.Tensor, rows: torch.Tensor | None, ids: torch.Tensor, keys: torch.Tensor,
        draws: torch.Tensor, output: Output | None,
    ) -> torch.Tensor:  # fmt: skip
        """Return [N, C, S, T] as `output` says, or float32 [N, S, T, C] in stored units where it is None.

        Args:
            images: uint8 or float32 [M, H, W, C], contiguous.
            rows: int64 [N], which of the images; None for all.
            ids, keys, draws: see `draws`.
            output: what to write.
        """
        x, batch = images, _Batch(ids=ids, keys=keys, draws=draws)
        for number, node in enumerate(self._nodes):
            last = output if number + 1 == len(self._nodes) else None
            if isinstance(node, _Placed):
                x = self._pass(x, rows, node, batch, last)
            else:
                x = self._mixture(x if rows is None else x.index_select(0, rows), node, batch)
            rows = None
        return x

    def _mixture(self, x: torch.Tensor, node: tuple[Mixture, list[list[_Placed]]], batch: _Batch) -> torch.Tensor:
        image, (mixture, chains) = x.to(torch.float32), node
        weights = [batch.draws[row][:, None, None, None] for row in mixture.weights]
        total = image * weights[0]
        for weight, chain in zip(weights[1:], chains, strict=True):
            made = image
            for part in chain:
                made = self._pass(made, None, part, batch, None)
            total = torch.addcmul(total, made, weight)
        return total

    def _pass(
        self, x: torch.Tensor, rows: torch.Tensor | None, placed: _Placed, batch: _Batch, output: Output | None
    ) -> torch.Tensor:
        node, count, device = placed.node, len(batch.ids), x.device
        height, width = node.geometry.out
        if output is None:
            out = torch.empty((count, height, width, node.channels), dtype=torch.float32, device=device)
        else:
            shape = (count, node.channels, height, width)
            out = torch.empty(shape, dtype=output.dtype, device=device, memory_format=output.memory_format)
        name = (placed.first, x.shape[1:], rows is None, output)
        if name not in self._ready:
            self._ready[name] = _launches(node, tuple(x.shape[1:]), gathered=rows is not None, output=output)
        draws = batch.draws[placed.first :]
        spare = batch.draws  # for pointers that a launch does not use: aligned, as the others of their name are
        for launch in self._ready[name]:
            spare = launch.run(x, rows, draws, batch, spare, out)
        return out


@dataclass(frozen=True, kw_only=True)
class _Batch:
    ids: torch.Tensor
    keys: torch.Tensor
    draws: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """The kernels of one segment, with all that is known before a batch comes."""

    sizes: dict[str, int]
    segment: dict[str, Any]
    options: dict[str, Any]
    blurs: bool
    measures: bool
    codes: tuple[int, ...]

    def run(
        self, x: torch.Tensor, rows: torch.Tensor | None, draws: torch.Tensor, batch: _Batch, spare: torch.Tensor,
        out: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Launch them; return what the next segment reads."""
        count, sizes = len(batch.ids), self.sizes
        grid = (count * sizes["PARTS"],)
        blurred = spare
        if self.blurs:
            blurred = torch.empty_like(spare)
            kernels.blur_down[grid](spare, blurred, draws, count, STENCIL=self.segment["STENCIL"], **sizes)
        inputs = (x, batch.ids if rows is None else rows, spare, blurred, draws, batch.ids, batch.keys)
        partial, table = self._measure(inputs, count) if self.measures else (batch.draws, batch.draws)
        aside = out
        if self.options["ASIDE"]:
            shape = (count, sizes["S"], sizes["T"], sizes["C"])
            aside = torch.empty(shape, dtype=torch.float32, device=out.device)
        kernels.apply[grid](*inputs, partial, table, out, aside, count, **self.segment, **self.options, **sizes)
        return aside

    def _measure(self, inputs: tuple[torch.Tensor, ...], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the statistics: one reduction, and where a histogram is wanted two small kernels more."""
        draws, sizes, counts = inputs[4], self.sizes, bool(self.codes)
        channels, sums = sizes["C"], self.segment["SUMS"]
        partial = torch.empty((count, sums, 8), dtype=torch.float32, device=draws.device)
        shape = (count, channels, 256)
        histogram = torch.zeros(shape, dtype=torch.int32, device=draws.device) if counts else partial
        kernels.measure[(count * sums,)](*inputs, partial, histogram, count, COUNTS=counts, **self.segment, **sizes)
        if not counts:
            return partial, partial
        table = torch.empty(shape, dtype=torch.float32, device=draws.device)
        kernels.equalizing_table[(count * channels,)](histogram, table, draws, count, CODES=self.codes, C=channels)
        return partial, table


def _launches(node: Pass, shape: tuple[int, ...], *, gathered: bool, output: Output | None) -> list[_Launch]:
    """Return the launches of a pass over images of `shape` (H, W, C)."""
    height, width = node.geometry.out
    block = min(512, triton.next_power_of_2(height * width))
    parts = triton.cdiv(height * width, block)
    sizes = {"S": height, "T": width, "C": shape[2], "PARTS": parts, "BLOCK": block}
    if output is None:
        written: tuple[Any, ...] = (node.channels, True, (255.0,) * 3, (0.0,) * 3, False)
    else:
        scale, last = _three(output.values.scale), output.memory_format == torch.channels_last
        written = (node.channels, last, tuple(255.0 * s for s in scale), _three(output.values.offset),
                   output.dtype == torch.uint8)  # fmt: skip
    made: list[_Launch] = []
    cut = segments(node)
    done_early = False
    for segment, following in zip(cut, [*cut[1:], None], strict=True):
        stencil = segment.stencil
        stencils = () if stencil is None else (stencil.code, stencil.values[0], *stencil.radius)
        if segment.geometry is None and stencil is None:
            # Goes on where the segment before stopped, with another statistic: a stencil that nobody has.
            stencils = (-1, -1, 0, 0)
        # A stencil that comes last is for few images: the others are written here and now.
        early = following is not None and following.stencil is not None and not following.steps and following is cut[-1]
        later = following.stencil.code if early and following is not None and following.stencil is not None else -1
        made.append(_Launch(
            sizes=sizes,
            segment={
                "G": (0,) if segment.geometry is None else _geometry(segment.geometry, shape, gathered=gathered),
                "STENCIL": stencils, "STEPS": tuple(_step(s) for s in segment.steps),
                "SUMS": triton.cdiv(parts, triton.cdiv(parts, MOST_SUMS)),
            },
            options={"OUTPUT": written, "LATER": later, "ASIDE": following is not None, "ONLY": done_early},
            blurs=segment.blurs, measures=segment.measures, codes=tuple(s.code for s in segment.equalizing),
        ))  # fmt: skip
        done_early = early
    return made


def _placed(node: Pass) -> _Placed:
    first = min(rows_of(node))
    return _Placed(first=first, node=transfer(node, lambda row: row - first))


def _three(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(n) for n in (numbers if len(numbers) == 3 else [numbers[0]] * 3))


def _geometry(g: Geometry, shape: tuple[int, ...], *, gathered: bool) -> tuple[Any, ...]:
    """Return what `kernels` wants to know of a geometry; see the places named there."""
    axes = [(a.start, a.step, a.low, a.high, a.fold_low, a.fold_high) for a in (g.y, g.x)]
    cover = 0 if g.matrix is None else 1 if g.warp_fill is None else 2
    outside = _three(g.warp_fill or (0.0,))
    # Whole pixels need no weights: a copy takes the nearest one.
    nearest = g.nearest or g.copies
    described = (
        *shape, *axes, g.matrix or (), _FOLDS[g.fold], g.padded, _three(g.fill), cover, outside, nearest,
        g.supersample, (g.y.size, g.x.size), tuple(math.ceil(2 * max(1.0, a.most)) for a in (g.y, g.x)),
    )  # fmt: skip
    return (*described, "gathered") if gathered else described


def _step(step: Step) -> tuple[Any, ...]:
    values = (*step.values, *[step.code] * 4)[:4]
    kinds = sum(1 << int(k) for k in step.kinds - STENCILS)
    noise, ones = step.noise, (1.0, 1.0, 1.0)
    number, scale, offset = (-1, ones, ones) if noise is None else (noise.number, noise.scale, noise.offset)
    return (step.code, *values, kinds, number, *_three(step.fill), *_three(scale), *_three(offset))


class DeviceKeys:
    """Key words on a device, as `kernels` reads them: made once per epoch and view, not once per batch."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[Keys, int, torch.device], torch.Tensor] = OrderedDict()

    def get(self, keys: Keys, view: int, device: torch.device) -> torch.Tensor:
        """Return int64 [6]: the words of `keys`, and the view where the transform number leaves room for it."""
        name = (keys, view, device)
        if name not in self._made:
            self._made[name] = torch.tensor([*keys.words, view << 16], device="cpu").to(device, non_blocking=True)
            if len(self._made) > 16:
                self._made.popitem(last=False)
        return self._made[name]
