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
from fastload.augment.plan import STATISTICS, STENCILS, Code, Mixing, Mixture, Numbered, Pass, Plan, Step, transfer
from fastload.augment.spec import Values, plan
from fastload.augment.tracing import Trace, compile_draws

_FOLDS = {"": 0, "edge": 1, "reflect": 2, "symmetric": 2}
_ROUND = (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the last kernel writes: a tensor's dtype and layout, and scale and offset from stored units."""

    dtype: torch.dtype
    memory_format: torch.memory_format
    values: Values


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What one launch of `kernels.apply` does of a pass: it starts with a geometry or a stencil."""

    geometry: Geometry | None
    stencil: Step | None
    steps: tuple[Step, ...]

    @property
    def statistics(self) -> frozenset[Code]:
        """Return which statistics its steps need."""
        return frozenset().union(*(s.kinds for s in self.steps)) & STATISTICS


def segments(node: Pass) -> list[Segment]:
    """Cut a pass where a stencil reads neighbours, and where an image may need a second statistic."""
    found: list[Segment] = []
    geometry: Geometry | None = node.geometry
    stencil: Step | None = None
    steps: list[Step] = []
    group = 0

    def cut() -> None:
        nonlocal geometry, stencil, steps, group
        found.append(Segment(geometry=geometry, stencil=stencil, steps=tuple(steps)))
        geometry, stencil, steps, group = None, None, [], 0

    for step in node.steps:
        if step.kinds & STATISTICS:
            if group and group != step.group:
                cut()
            group = step.group
        if step.kinds - STENCILS:
            steps.append(step)
        if step.kinds & STENCILS:
            cut()
            stencil = step
    cut()
    return found


class Fused:
    """One segment of known transforms for images of one size: compiled once, run for every batch.

    Args:
        ops: numbered transforms.
        height, width, channels: of the images.
    """

    def __init__(self, ops: Sequence[Numbered], height: int, width: int, channels: int) -> None:
        trace = Trace()
        traced = plan(ops, trace, height, width, channels)
        self.draw_kernel = compile_draws(trace, traced)
        rows = iter(range(1 << 30))
        # The plan with row numbers in place of the numbers themselves.
        self.plan: Plan = transfer(traced, lambda _: next(rows))
        self.num_rows = next(rows)

    def draws(self, ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Return the draws of samples `ids` (int64 [N], on the device), float32 [rows, N]."""
        count = len(ids)
        out = torch.empty((self.num_rows, count), dtype=torch.float32, device=ids.device)
        block = min(128, triton.next_power_of_2(count))
        self.draw_kernel[(triton.cdiv(count, block),)](ids, keys, out, count, BLOCK=block)
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
        for node in self.plan.nodes:
            last = output if node is self.plan.nodes[-1] else None
            if isinstance(node, Mixture):
                x = _mixture(x if rows is None else x.index_select(0, rows), node, batch)
            else:
                x = _pass(x, rows, node, batch, last)
            rows = None
        return x


@dataclass(frozen=True, kw_only=True)
class _Batch:
    ids: torch.Tensor
    keys: torch.Tensor
    draws: torch.Tensor


def _mixture(x: torch.Tensor, node: Mixture, batch: _Batch) -> torch.Tensor:
    image = x.to(torch.float32)
    weights = [batch.draws[row][:, None, None, None] for row in node.weights]
    total = image * weights[0]
    for weight, chain in zip(weights[1:], node.chains, strict=True):
        made = image
        for part in chain:
            made = _pass(made, None, part, batch, None)
        total = torch.addcmul(total, made, weight)
    return total


def _pass(x: torch.Tensor, rows: torch.Tensor | None, node: Pass, batch: _Batch, output: Output | None) -> torch.Tensor:
    count, device = len(batch.ids), x.device
    (height, width), channels = node.geometry.out, x.shape[3]
    shape = (count, node.channels, height, width)
    if output is None:
        out = torch.empty((count, height, width, node.channels), dtype=torch.float32, device=device)
        written: tuple[Any, ...] = (node.channels, True, (255.0,) * 3, (0.0,) * 3, False)
    else:
        out = torch.empty(shape, dtype=output.dtype, device=device, memory_format=output.memory_format)
        scale = tuple(255.0 * s for s in _three(output.values.scale))
        last = output.memory_format == torch.channels_last
        written = (node.channels, last, scale, _three(output.values.offset), output.dtype == torch.uint8)
    block = min(512, triton.next_power_of_2(height * width))
    parts = triton.cdiv(height * width, block)
    cut = segments(node)
    nothing = batch.draws  # for pointers that a launch does not use
    spare = nothing
    done_early = False
    for number, segment in enumerate(cut):
        following = cut[number + 1] if number + 1 < len(cut) else None
        stencil, blurred = _stencil(segment.stencil), nothing
        sizes = {"S": height, "T": width, "C": channels, "PARTS": parts, "BLOCK": block}
        grid = (count * parts,)
        if segment.stencil is not None and Code.BLUR in segment.stencil.kinds:
            blurred = torch.empty_like(spare)
            kernels.blur_down[grid](spare, blurred, batch.draws, count, STENCIL=stencil, **sizes)
        steps = tuple(_step(s) for s in segment.steps)
        geometry = (0,) if segment.geometry is None else _geometry(segment.geometry, x, gathered=rows is not None)
        if segment.geometry is None and segment.stencil is None:
            stencil = (0, 0, 0, 0)  # goes on where the segment before stopped, with another statistic
        inputs = (x, rows if rows is not None else batch.ids, spare, blurred, batch.draws, batch.ids, batch.keys)
        partial, table = nothing, nothing
        if segment.statistics:
            partial, table = _measure(segment, inputs, geometry, stencil, steps, sizes)
        # A stencil that comes last is for few images: the others are written here and now.
        early = following is not None and following.stencil is not None and not following.steps and following is cut[-1]
        aside = nothing if following is None else torch.empty((count, height, width, channels), device=device)
        kernels.apply[grid](
            *inputs, partial, table, out, aside, count, G=geometry, STENCIL=stencil, STEPS=steps, OUTPUT=written,
            LATER=following.stencil.code if early and following is not None and following.stencil is not None else -1,
            ASIDE=following is not None, ONLY=done_early, **sizes,
        )  # fmt: skip
        spare, done_early = aside, early
    return out


def _measure(
    segment: Segment, inputs: tuple[torch.Tensor, ...], geometry: Any, stencil: Any, steps: Any, sizes: dict[str, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the statistics of a segment: one reduction, and two small kernels more where a histogram is wanted."""
    draws = inputs[4]
    count, channels, parts = draws.shape[1], sizes["C"], sizes["PARTS"]
    partial = torch.empty((count, parts, 8), device=draws.device)
    counts = Code.EQUALIZE in segment.statistics
    shape = (count, channels, 256)
    histogram = torch.zeros(shape, dtype=torch.int32, device=draws.device) if counts else partial
    kernels.measure[(count * parts,)](
        *inputs, partial, histogram, count, G=geometry, STENCIL=stencil, STEPS=steps, COUNTS=counts, **sizes
    )
    if not counts:
        return partial, partial
    table = torch.empty(shape, device=draws.device)
    codes = tuple(s.code for s in segment.steps if Code.EQUALIZE in s.kinds)
    kernels.equalizing_table[(count * channels,)](histogram, table, draws, count, CODES=codes, C=channels)
    return partial, table


def _three(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(n) for n in (numbers if len(numbers) == 3 else [numbers[0]] * 3))


def _geometry(g: Geometry, x: torch.Tensor, *, gathered: bool) -> tuple[Any, ...]:
    """Return what `kernels` wants to know of a geometry; see the places named there."""
    axes = [(a.start, a.step, a.low, a.high, a.fold_low, a.fold_high) for a in (g.y, g.x)]
    cover = 0 if g.matrix is None else 1 if g.warp_fill is None else 2
    outside = _three(g.warp_fill or (0.0,))
    # Whole pixels need no weights: a copy takes the nearest one.
    nearest = g.nearest or g.copies
    described = (
        *x.shape[1:], *axes, g.matrix or (), _FOLDS[g.fold], g.padded, _three(g.fill), cover, outside, nearest,
        g.supersample, (g.y.size, g.x.size), tuple(math.ceil(2 * max(1.0, a.most)) for a in (g.y, g.x)),
    )  # fmt: skip
    return (*described, "gathered") if gathered else described


def _step(step: Step) -> tuple[Any, ...]:
    values = step.values or (step.code,)
    kinds = sum(1 << int(k) for k in step.kinds - STENCILS)
    noise, fill = step.noise, _three(step.fill)
    if noise is None:
        return (step.code, values, kinds, fill, -1, _ROUND, _ROUND)
    return (step.code, values, kinds, fill, noise.number, _three(noise.scale), _three(noise.offset))


def _stencil(step: Step | None) -> tuple[Any, ...]:
    return () if step is None else (step.code, step.values[0], *step.radius)


class DeviceKeys:
    """Key words on a device, as `kernels` reads them: made once per epoch and view, not once per batch."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[Keys, int, torch.device], torch.Tensor] = OrderedDict()

    def get(self, keys: Keys, view: int, device: torch.device) -> torch.Tensor:
        """Return int64 [6]: the words of `keys`, and the view where the transform number leaves room for it."""
        name = (keys, view, device)
        if name not in self._made:
            self._made[name] = torch.tensor([*keys.words, view << 16]).to(device, non_blocking=True)
            if len(self._made) > 16:
                self._made.popitem(last=False)
        return self._made[name]
