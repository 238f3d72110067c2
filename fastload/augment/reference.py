"""What a plan means, in plain torch, on any device; fused.py and cpu.py must agree.

Shape letters: N batch, H W stored pixels, S T output height and width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastload.augment.arithmetic import Keys
from fastload.augment.philox import philox4x32
from fastload.augment.plan import Code, Mixing, Mixture, Noise, Pass, Plan, Step
from fastload.augment.pointwise import OPERATIONS, blur, normal
from fastload.augment.sampling import column, copy_pixels, fill_C, is_stored, resample
from fastload.augment.spec import Values
from fastload.errors import TransformError


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A plan with its numbers, and what keys the noise that is drawn for single pixels.

    Attributes:
        plan: what to do.
        ids: sample ids, int64 [N], on the host.
        keys: seed and epoch.
        view: which view of the images.
    """

    plan: Plan
    ids: torch.Tensor
    keys: Keys
    view: int = 0


def run(images_NHWC: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Return what the plan makes of the images, but for mixing.

    Args:
        images_NHWC: uint8 or float32, stored units (0..255), any device.
        drawn: the plan.

    Returns:
        float32 [N, C, S, T], stored units.
    """
    x = images_NHWC
    for node in drawn.plan.nodes:
        x = run_pass(x, node, drawn) if isinstance(node, Pass) else run_mixture(x, node, drawn)
    return x.permute(0, 3, 1, 2)


def run_pass(images_NHWC: torch.Tensor, node: Pass, drawn: Drawn) -> torch.Tensor:
    """Resample, and take the colour steps; float32 [N, S, T, C], stored units."""
    x_NCST = resample(images_NHWC, node.geometry)
    if node.steps:
        x_NCST = x_NCST.contiguous().mul_(1 / 255)
        for step in node.steps:
            x_NCST = take_step(x_NCST, step, drawn)
        x_NCST = x_NCST * 255
    if node.channels != x_NCST.shape[1]:
        x_NCST = x_NCST[:, :1].expand(-1, node.channels, -1, -1)
    return x_NCST.permute(0, 2, 3, 1)


def run_mixture(images_NHWC: torch.Tensor, node: Mixture, drawn: Drawn) -> torch.Tensor:
    """Sum the image and the chains, weighted; float32 [N, S, T, C], stored units."""
    image = images_NHWC.to(torch.float32)
    weights = [column(w, len(image), image.device).float()[:, None, None, None] for w in node.weights]
    total = image * weights[0]
    for weight, chain in zip(weights[1:], node.chains, strict=True):
        x = image
        for part in chain:
            x = run_pass(x, part, drawn)
        total = torch.addcmul(total, x, weight)
    return total


def take_step(x_NCST: torch.Tensor, step: Step, drawn: Drawn) -> torch.Tensor:
    """Take one colour step; 0..1 units."""
    num_images, device = len(x_NCST), x_NCST.device
    codes = np.broadcast_to(step.code, num_images)
    for kind in sorted(step.kinds):
        chosen = np.flatnonzero(codes == int(kind))
        if len(chosen) == 0:
            continue
        index = torch.from_numpy(chosen).to(device)
        everything = len(chosen) == num_images
        part = x_NCST if everything else x_NCST[index]
        if kind == Code.ERASE:
            changed = _erase(part, step, index, drawn)
        else:
            value = column(step.values[0], num_images, device)[index].float()[:, None, None, None]
            changed = blur(part, value, step.radius) if kind == Code.BLUR else OPERATIONS[kind](part, value)
        x_NCST = changed if everything else x_NCST.index_copy(0, index, changed.contiguous())
    return x_NCST


def _erase(x_NCST: torch.Tensor, step: Step, index: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    _, channels, height, width = x_NCST.shape
    count, device = len(drawn.ids), x_NCST.device
    top, left, bottom, right = (column(v, count, device)[index][:, None, None] for v in step.values)
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    if step.noise is None:
        fill = torch.tensor(step.fill, device=device).expand(channels)[:, None, None]
    else:
        fill = noise(step.noise, drawn, index.cpu(), (channels, height, width)).to(device)
    return torch.where(inside[:, None], fill, x_NCST)


def noise(spec: Noise, drawn: Drawn, index: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Return normal noise of [C, S, T] for the samples `index`, float32 [k, C, S, T] on the host.

    Pixel p of a sample has Philox block 2**16 + p of its transform, four normal numbers.
    """
    channels, height, width = shape
    ids = drawn.ids[index][:, None]
    block = torch.arange(height * width, device="cpu")[None] + (1 << 16)
    number = torch.full_like(block, spec.number + (drawn.view << 16))
    words = philox4x32((block, number, ids & 0xFFFFFFFF, ids >> 32), drawn.keys.words[:2])
    z = torch.stack(normal(words)[:channels], dim=1).view(-1, channels, height, width)
    scale, offset = (torch.tensor(v, device="cpu").expand(channels)[:, None, None] for v in (spec.scale, spec.offset))
    return z.float() * scale + offset


def finish(
    x_NCST: torch.Tensor, values: Values, dtype: torch.dtype, memory_format: torch.memory_format
) -> torch.Tensor:
    """Scale, cast and lay out; from stored units."""
    scale, offset = (
        torch.tensor(v, device="cpu").to(x_NCST.device, non_blocking=True).expand(x_NCST.shape[1])[:, None, None]
        for v in (values.scale, values.offset)
    )
    x_NCST = torch.addcmul(offset, x_NCST, scale)
    if dtype == torch.uint8:
        x_NCST = x_NCST.round_().clamp_(0, 255)
    return x_NCST.to(dtype).contiguous(memory_format=memory_format)


def copied(
    images_NHWC: torch.Tensor, plan: Plan, values: Values, dtype: torch.dtype, memory_format: torch.memory_format
) -> torch.Tensor | None:
    """Return the output where nothing is resampled or coloured: a crop is then a copy of bytes. Else None."""
    node = plan.nodes[0]
    if len(plan.nodes) > 1 or not isinstance(node, Pass) or node.steps or not node.geometry.copies:
        return None
    if images_NHWC.dtype != torch.uint8 or plan.channels != images_NHWC.shape[3]:
        return None
    if node.geometry.padded and not is_stored(node.geometry.fill):
        return None
    # The cast then touches S * T pixels, not H * W.
    stored_NSTC = copy_pixels(images_NHWC, node.geometry)
    if dtype == torch.uint8:
        return stored_NSTC.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    return scaled(stored_NSTC, values).to(dtype).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


def scaled(stored_NSTC: torch.Tensor, values: Values) -> torch.Tensor:
    """Return stored values * scale + offset, float32 [N, S, T, C]."""
    num_images, height, width, _ = stored_NSTC.shape
    scale, offset = fill_C(values.scale, stored_NSTC), fill_C(values.offset, stored_NSTC)
    # One long row per pixel row: broadcasting over a last axis of 3 runs at a quarter of the speed.
    rows = stored_NSTC.reshape(num_images * height, -1).to(torch.float32)
    torch.addcmul(offset.repeat(width), rows, scale.repeat(width), out=rows)
    return rows.view(stored_NSTC.shape)


def mix(x_NCST: torch.Tensor, mixing: Mixing) -> torch.Tensor:
    """MixUp or CutMix each image with the one before it (the first with the last)."""
    num_images, _, height, width = x_NCST.shape
    device, other = x_NCST.device, x_NCST.roll(1, 0)
    mixed = x_NCST
    if mixing.blends:
        dtype = x_NCST.dtype if x_NCST.is_floating_point() else torch.float32
        share = column(mixing.share, num_images, device).to(dtype)[:, None, None, None]
        mixed = torch.lerp(other.to(dtype), x_NCST.to(dtype), share)
        mixed = mixed if dtype == x_NCST.dtype else mixed.round_().to(x_NCST.dtype)
    if mixing.cuts:
        top, left, bottom, right = (column(v, num_images, device)[:, None, None] for v in mixing.box)
        y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        cut = column(mixing.cut, num_images, device).bool()
        mixed = torch.where(inside[:, None] & cut[:, None, None, None], other, mixed)
    return mixed.contiguous(
        memory_format=torch.channels_last if x_NCST.is_contiguous(memory_format=torch.channels_last)
        and not x_NCST.is_contiguous() else torch.contiguous_format
    )  # fmt: skip


def mix_labels(labels: torch.Tensor, mixing: Mixing) -> torch.Tensor:
    """Return soft labels, float32 [N, K].

    Raises:
        TransformError: labels are numbers, and the transform was not told num_classes, or of fewer classes; or they
            are rows of another number of classes.
    """
    if labels.ndim == 1:
        if mixing.classes is None:
            raise TransformError("MixUp and CutMix need num_classes to make rows of labels; pass num_classes=...")
        if labels.device.type == "cpu" and len(labels) and int(labels.max()) >= mixing.classes:
            raise TransformError(
                f"a label is {int(labels.max())}, and MixUp and CutMix have num_classes={mixing.classes}; pass more."
            )
        # Not one_hot: it looks at the values, and waits for the device. Label -1 (unlabelled) gives a row of zeros.
        labels = (labels[:, None] == torch.arange(mixing.classes, device=labels.device)).to(torch.float32)
    elif mixing.classes is not None and labels.shape[1] != mixing.classes:
        raise TransformError(
            f"labels have {labels.shape[1]} columns, and MixUp and CutMix num_classes={mixing.classes}; pass the same."
        )
    labels = labels.to(torch.float32)
    share = column(mixing.share, len(labels), labels.device).float()[:, None]
    return torch.lerp(labels.roll(1, 0), labels, share)
