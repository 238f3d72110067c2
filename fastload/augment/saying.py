"""What `Augment.explain` says: passes, launches, bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fastload.augment.arithmetic import HostNumbers, Keys
from fastload.augment.plan import Code, Mixture, Pass, Plan
from fastload.augment.segments import segments
from fastload.augment.spec import PerSample, Spec, plan
from fastload.errors import TransformError


def explain(
    spec: Spec, dtype: torch.dtype, memory_format: torch.memory_format, views: int, shape: tuple[int, int, int, int]
) -> str:
    """Return the transforms with their numbers, and the passes over a batch of stored images of `shape` (NHWC)."""
    lines = ["transforms:"]
    for part in spec.parts:
        if isinstance(part, PerSample):
            name = type(part.transform).__name__
            lines.append(f"  {part.number} {name}: not known; run per sample, on {part.sees} images")
        else:
            lines.append(f"  {part[0]} {type(part[1]).__name__}{_options(part[1])}")
    count, height, width, channels = shape
    lines.append(f"passes over {count} images of {height}x{width}x{channels}:")
    size, launches = (height, width, channels), 0
    for segment in spec.segments():
        if isinstance(segment, PerSample):
            lines.append("  image by image, in Python; sizes behind it are not known")
            continue
        try:
            made = plan(segment, HostNumbers(np.zeros(1, np.int64), Keys(0, 0)), *size)
        except TransformError as e:
            lines.append(f"  not for images of this size: {e}")
            break
        lines += _passes(made)
        launches += _num_launches(made)
        size = (*made.size, made.channels)
    scale, offset = (", ".join(f"{v:.6g}" for v in vs) for vs in (spec.values.scale, spec.values.offset))
    lines.append(f"output: stored value * ({scale}) + ({offset}), {dtype}, {memory_format}")
    read, written = math.prod(shape), count * math.prod(size) * dtype.itemsize
    lines.append(
        f"on a GPU: {launches * views} launches, draws included; {(read + written * views) / 1e6:,.1f} MB read and "
        f"written at least{f', {views} views' if views > 1 else ''}"
    )
    return "\n".join(lines)


def _num_launches(made: Plan) -> int:
    """Return how many kernels a plan takes: its draws, its passes, and torch's for sums and mixing."""
    count = 1 + len(made.mixing)
    for node in made.nodes:
        passes = [node] if isinstance(node, Pass) else [p for chain in node.chains for p in chain]
        count += sum(segment.num_launches for part in passes for segment in segments(part))
        if isinstance(node, Mixture):
            count += 1 + len(node.chains)
    return count


def _options(op: object) -> str:
    shown = []
    for name, value in vars(op).items():
        if name in ("size", "padding", "p", "kernel_size", "degrees", "num_ops", "magnitude", "severity", "alpha"):
            shown.append(f"{name}={list(value) if isinstance(value, Sequence) else value}")
    return f" ({', '.join(shown)})" if shown else ""


def _passes(made: Plan) -> list[str]:
    lines = []
    for node in made.nodes:
        if isinstance(node, Mixture):
            inner = sum(len(chain) for chain in node.chains)
            lines.append(f"  a weighted sum of the image and {len(node.chains)} chains, {inner} passes")
            continue
        g = node.geometry
        how = "copy" if g.copies else "one resampling" if g.matrix is None else "one resampling through a warp"
        if g.nearest:
            how += ", nearest pixel"
        if g.supersample > 1:
            how += f", {g.supersample}x{g.supersample} places per pixel"
        steps = [_named(step.kinds) for step in node.steps]
        lines.append(f"  {how} -> {g.out[0]}x{g.out[1]}x{node.channels}" + "".join(f" | {s}" for s in steps))
    for mixing in made.mixing:
        lines.append(f"  {'CutMix' if mixing.cuts else 'MixUp'} with the image before, labels too")
    return lines


def _named(kinds: frozenset[Code]) -> str:
    return " or ".join(kind.name.lower() for kind in sorted(kinds))
