"""Augmentation of whole batches on the device, every image with its own draw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastload.augment import reference
from fastload.augment.geometry import RandomCrop, Resize
from fastload.augment.spec import Values, parse
from fastload.errors import TransformError


class Augment:
    """A torchvision pipeline for whole batches of uint8 images, every image with its own draw.

    Takes what torchvision's v1 or v2 `Compose` holds of Resize, CenterCrop, RandomCrop,
    RandomResizedCrop, RandomHorizontalFlip, ToTensor, ToImage, PILToTensor, ToDtype,
    ConvertImageDtype and Normalize, with torchvision's parameters and meaning on float32.
    All geometry of the pipeline resamples once. An image's draw depends on (seed, epoch, sample id,
    number of the transform) and on nothing else.

    Args:
        transforms: a Compose, a Sequential, a list, one transform, or None for none.
        size: side of the result in pixels where the pipeline gives another one: one more Resize, in
            the same resampling.
        dtype: torch.float32, float16, bfloat16 or uint8. Floats are in 0..1, unless the pipeline
            says otherwise; uint8 keeps stored values and goes with no Normalize.
        memory_format: torch.channels_last or torch.contiguous_format.

    Raises:
        TransformError: a transform or one of its options is not known; names it and its position.
    """

    def __init__(
        self,
        transforms: Any = None,
        *,
        size: int | None = None,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        spec = parse(transforms)
        if size is not None:
            if size < 1:
                raise TransformError(f"size={size}: a side has at least 1 pixel.")
            # Behind all others, so that its number does not shift theirs; it draws nothing.
            spec = replace(spec, geometry=(*spec.geometry, (len(spec.geometry), Resize(size=(size, size)))))
        if dtype == torch.uint8:
            if spec.converted not in ("", "scaled") or spec.values not in (
                Values(),
                Values().then((1 / 255,), (0.0,)),
            ):
                raise TransformError("dtype=torch.uint8 keeps stored values, but the pipeline changes them; leave "
                                     "Normalize out, or use a floating point dtype.")  # fmt: skip
            spec = replace(spec, values=Values(), converted="raw")
        elif not dtype.is_floating_point:
            raise TransformError(f"dtype={dtype} is not supported; use float32, float16, bfloat16 or uint8.")
        if not spec.converted:
            spec = replace(spec, values=spec.values.then((1 / 255,), (0.0,)), converted="scaled")
        self._spec = spec
        self.dtype = dtype
        self.memory_format = memory_format

    def __call__(
        self, images: torch.Tensor, *, ids: torch.Tensor | None = None, epoch: int = 0, seed: int = 0
    ) -> torch.Tensor:
        """Augment one batch.

        Args:
            images: uint8 [N, H, W, C], any device, contiguous or not.
            ids: int64 [N] on the CPU: which sample each image is; 0 .. N - 1 where not given.
            epoch, seed: the other two keys of the draws.

        Returns:
            [N, C, S, T] of `dtype` in `memory_format` on the images' device.

        Raises:
            TransformError: not such a batch, or the transforms do not fit images of that size.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise TransformError(
                f"Augment takes uint8 images [N, H, W, C], not {images.dtype} {list(images.shape)}; "
                "for [N, C, H, W], pass images.permute(0, 2, 3, 1)."
            )
        num_images, height, width, num_channels = images.shape
        num_values = len(self._spec.values.scale)
        if num_values not in (1, num_channels):
            raise TransformError(
                f"Normalize has {num_values} channels, the images have {num_channels} ({list(images.shape)}, NHWC)."
            )
        sample_ids = np.arange(num_images) if ids is None else ids.numpy()
        if sample_ids.shape != (num_images,):
            raise TransformError(f"ids has shape {list(sample_ids.shape)}, the batch has {num_images} images.")
        draws = self._spec.draw(sample_ids, seed=seed, epoch=epoch, height=height, width=width)
        return reference.apply(images, draws, self._spec.values, dtype=self.dtype, memory_format=self.memory_format)

    def explain(self) -> str:
        """Return the stages of this pipeline, one per line."""
        lines = [f"geometry, one resampling: {len(self._spec.geometry)} transforms"]
        for number, op in self._spec.geometry:
            kind = "random" if op.num_words else "fixed"
            padding = f" with padding {op.padding}" if isinstance(op, RandomCrop) and any(op.padding) else ""
            size = getattr(op, "size", None)
            lines.append(f"  {number} {type(op).__name__}{f' to {list(size)}' if size else ''}{padding}, {kind}")
        scale, offset = (
            ", ".join(f"{v:.6g}" for v in vs) for vs in (self._spec.values.scale, self._spec.values.offset)
        )
        lines.append(f"output: stored value * ({scale}) + ({offset}), {self.dtype}, {self.memory_format}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Augment(\n{self.explain()}\n)"


__all__ = ["Augment"]
