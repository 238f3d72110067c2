"""Augmentation of whole batches on the device, every image with its own draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, overload

import numpy as np
import torch

from fastload.augment import cpu, reference
from fastload.augment.arithmetic import HostNumbers, Keys
from fastload.augment.batched import Windows, gathered
from fastload.augment.colour import mixes
from fastload.augment.compiling import ready
from fastload.augment.geometry import AXIS_MOVES, Resize
from fastload.augment.own import AlternatingFlip, CutMix, Cutout, MixUp, RandomErasing
from fastload.augment.plan import Mixing, Numbered
from fastload.augment.reference import Drawn
from fastload.augment.samples import run_each
from fastload.augment.saying import explain
from fastload.augment.spec import PerSample, Spec, Values, parse, plan
from fastload.errors import TransformError
from fastload.toolchain import can_launch


def can_fuse(images: torch.Tensor) -> bool:
    """Whether the Triton kernels take these images: grey or RGB, on a CUDA GPU, where Triton has what it needs."""
    return images.is_cuda and images.shape[3] in (1, 3) and can_launch()


class Augment:
    """A torchvision pipeline for whole batches of uint8 images, every image with its own draw.

    Takes torchvision's v1 or v2 `Compose`, with torchvision's parameters and its meaning on float32. Geometry
    resamples once where the order of the transforms allows it. An image's draw depends on (seed, epoch,
    sample id, number of the transform, view) and on nothing else; only MixUp and CutMix also depend on the
    batch: they mix each image with the one before it.

    Args:
        transforms: a Compose, a Sequential, a list, one transform, or None for none. Beside torchvision's it
            may hold AlternatingFlip, Cutout, RandomErasing, MixUp and CutMix of this module.
        size: side of the result in pixels where the pipeline gives another one: one more Resize, in
            the same resampling where nothing stands between.
        dtype: torch.float32, float16, bfloat16 or uint8. Floats are in 0..1, unless the pipeline
            says otherwise; uint8 keeps stored values and goes with no Normalize.
        memory_format: torch.channels_last or torch.contiguous_format.
        views: how many views of each image, each with draws of its own; more than one come as a tuple.
        on_unknown: `error`, or `per_sample`: run transforms that fastload does not know image by image.

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
        views: int = 1,
        on_unknown: str = "error",
    ) -> None:
        spec = parse(transforms, on_unknown=on_unknown)
        if size is not None:
            if size < 1:
                raise TransformError(f"size={size}: a side has at least 1 pixel.")
            # Behind all others but those that mix images; numbered last, so as not to shift theirs: it draws nothing.
            parts = list(spec.parts)
            end = next((i for i, p in enumerate(parts) if not isinstance(p, PerSample) and mixes(p[1])), len(parts))
            parts.insert(end, (len(parts), Resize(size=(size, size))))
            spec = replace(spec, parts=tuple(parts))
        if dtype == torch.uint8:
            scaled = Values().then((1 / 255,), (0.0,))
            if spec.converted not in ("", "scaled") or spec.values not in (Values(), scaled):
                raise TransformError("dtype=torch.uint8 keeps stored values, but the pipeline changes them; leave "
                                     "Normalize out, or use a floating point dtype.")  # fmt: skip
            spec = replace(spec, values=Values(), converted="raw")
        elif not dtype.is_floating_point:
            raise TransformError(f"dtype={dtype} is not supported; use float32, float16, bfloat16 or uint8.")
        if not spec.converted:
            spec = replace(spec, values=spec.values.then((1 / 255,), (0.0,)), converted="scaled")
        if views < 1:
            raise TransformError(f"views={views}: an image has at least 1 view.")
        self._spec = spec
        self._segments = list(spec.segments())
        self.dtype = dtype
        self.memory_format = memory_format
        self.views = views
        self._fused: dict[tuple[int, ...], Any] = {}  # compiled kernels by the shape of stored images
        self._keys: Any = None

    @overload
    def __call__(
        self, images: torch.Tensor, labels: None = None, *, ids: torch.Tensor | None = None,
        rows: torch.Tensor | None = None, epoch: int = 0, seed: int = 0,
    ) -> Any: ...  # fmt: skip

    @overload
    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, *, ids: torch.Tensor | None = None,
        rows: torch.Tensor | None = None, epoch: int = 0, seed: int = 0,
    ) -> tuple[Any, torch.Tensor]: ...  # fmt: skip

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor | None = None, *, ids: torch.Tensor | None = None,
        rows: torch.Tensor | None = None, epoch: int = 0, seed: int = 0,
    ) -> Any:  # fmt: skip
        """Augment one batch.

        Args:
            images: uint8 [N, H, W, C], any device, contiguous or not.
            labels: int64 [N], or rows [N, K]; MixUp and CutMix make soft labels of them, float32 [N, K].
            ids: int64 [N] on the CPU: which sample each image is; 0 .. N - 1 where not given.
            rows: int64 [N] on the images' device: which of `images` to take, where that is more than the batch.
            epoch, seed: the other two keys of the draws.

        Returns:
            [N, C, S, T] of `dtype` in `memory_format` on the images' device, or a tuple of as many as `views`;
            with `labels`: (these, labels).

        Raises:
            TransformError: not such a batch, or the transforms do not fit images of that size.
        """
        return self._all(images, labels, ids, rows, Keys(seed, epoch), exact=False)

    def reference(
        self, images: torch.Tensor, labels: torch.Tensor | None = None, *, ids: torch.Tensor | None = None,
        epoch: int = 0, seed: int = 0,
    ) -> Any:  # fmt: skip
        """Do the same by the slow twin, which says what everything means; any device."""
        return self._all(images, labels, ids, None, Keys(seed, epoch), exact=True)

    def ahead(
        self, like: torch.Tensor, ids: Sequence[torch.Tensor], *, epoch: int = 0, seed: int = 0
    ) -> list[Windows] | None:
        """Draw for several batches at once: the thirty small steps of it take as long for one.

        Args:
            like: uint8 [M, H, W, C] on the device, of any length.
            ids: of each batch, int64 [N] on the CPU.
            epoch, seed: as of a call.

        Returns:
            For each batch what `made` takes; None where a call has more to do than crop, resize and mirror, and
            where that is not on the CPU by compiled functions, or these are not there yet.
        """
        segment = self._segments[0]
        if len(self._segments) > 1 or isinstance(segment, PerSample) or self.views > 1 or ready() is None:
            return None
        if not all(isinstance(op, AXIS_MOVES) for _, op in segment):
            return None
        together = torch.cat(list(ids))
        drawn = self._drawn(segment, like, together, Keys(seed, epoch), 0)
        self._check_channels(drawn.plan.channels)
        found = cpu.ahead(like, drawn.plan, len(together), self.dtype, self.memory_format)
        if found is None:
            return None
        ends = np.cumsum([0, *(len(n) for n in ids)]).tolist()
        return [found.part(first, stop) for first, stop in pairwise(ends)]

    def made(self, images: torch.Tensor, rows: torch.Tensor | None, windows: Windows) -> torch.Tensor:
        """Return what a call gives for a batch whose draws were made `ahead`.

        Args:
            images, rows: as of a call.
            windows: of the batch.
        """
        self._check(images, None, rows)
        images, rows = _in_order(images, rows)
        return cpu.made(images, rows, windows, self._spec.values, self.dtype, self.memory_format)

    def _all(
        self, images: torch.Tensor, labels: torch.Tensor | None, ids: torch.Tensor | None, rows: torch.Tensor | None,
        keys: Keys, *, exact: bool,
    ) -> Any:  # fmt: skip
        # Whole numbers of any size do; arithmetic is of 64 bits.
        ids, rows = (None if numbers is None else numbers.to(torch.int64) for numbers in (ids, rows))
        sample_ids = self._check(images, ids, rows)
        is_fused = not exact and can_fuse(images) and all(not isinstance(s, PerSample) for s in self._segments)
        if rows is not None and not is_fused and (exact or images.device.type != "cpu" or len(self._segments) > 1):
            images, rows = images.index_select(0, rows), None
        images, rows = _in_order(images, rows)
        made: list[torch.Tensor] = []
        # Triton launches on the current device; -1 leaves it as it is.
        with torch.cuda.device(images.device.index if images.is_cuda else -1):
            for view in range(self.views):
                if is_fused:
                    out, mixings = self._run_fused(images, rows, sample_ids, keys, view)
                else:
                    out, mixings = self._run(images, rows, sample_ids, keys, view, exact=exact)
                if mixings and self.views > 1:
                    raise TransformError(
                        "MixUp and CutMix make one label per image, and several views make several; use one view."
                    )
                for mixing in mixings:
                    out = reference.mix(out, mixing)
                    labels = None if labels is None else reference.mix_labels(labels, mixing)
                made.append(out)
        result = made[0] if self.views == 1 else tuple(made)
        return result if labels is None else (result, labels)

    def _run(
        self, images: torch.Tensor, rows: torch.Tensor | None, ids: torch.Tensor, keys: Keys, view: int, *, exact: bool
    ) -> tuple[torch.Tensor, tuple[Mixing, ...]]:
        x, host_ids = images, ids.cpu()
        last = self._segments[-1]
        for segment in self._segments[:-1]:
            if isinstance(segment, PerSample):
                x = run_each(x, segment, host_ids, keys, view)
            else:
                drawn = self._drawn(segment, x, host_ids, keys, view)
                if drawn.plan.mixing:
                    raise TransformError("MixUp and CutMix come last; put the transforms behind them in front of them.")
                x = reference.run(x, drawn).permute(0, 2, 3, 1)
        drawn = self._drawn(last, x, host_ids, keys, view)  # type: ignore[arg-type]
        self._check_channels(drawn.plan.channels)
        options = (self._spec.values, self.dtype, self.memory_format)
        if not exact and cpu.suits(x, drawn.plan, self.dtype) and cpu.whole_windows(drawn.plan, len(ids)):
            return cpu.run(x, rows, drawn.plan, *options), drawn.plan.mixing
        x = gathered(x, rows)
        out = reference.copied(x, drawn.plan, *options)
        if out is None:
            out = reference.finish(reference.run(x, drawn), *options)
        return out, drawn.plan.mixing

    def _drawn(self, segment: list[Numbered], x: torch.Tensor, ids: torch.Tensor, keys: Keys, view: int) -> Drawn:
        made = plan(segment, HostNumbers(ids.numpy(), keys, view), *x.shape[1:])
        return Drawn(plan=made, ids=ids, keys=keys, view=view)

    def _run_fused(
        self, images: torch.Tensor, rows: torch.Tensor | None, ids: torch.Tensor, keys: Keys, view: int
    ) -> tuple[torch.Tensor, tuple[Mixing, ...]]:
        from fastload.augment.fused import DeviceKeys, Fused, Output

        shape = tuple(images.shape[1:])
        if shape not in self._fused:
            self._fused[shape] = Fused(self._segments[0], *shape)  # type: ignore[arg-type]
        fused = self._fused[shape]
        self._check_channels(fused.plan.channels)
        if self._keys is None:
            self._keys = DeviceKeys()
        ids = ids.to(images.device, non_blocking=True)
        words = self._keys.get(keys, view, images.device)
        draws = fused.draws(ids, words)
        output = Output(dtype=self.dtype, memory_format=self.memory_format, values=self._spec.values)
        out = fused.run(images.contiguous(), rows, ids, words, draws, output)
        return out, fused.mixing(draws) if fused.plan.mixing else ()

    def _check(self, images: torch.Tensor, ids: torch.Tensor | None, rows: torch.Tensor | None) -> torch.Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise TransformError(
                f"Augment takes uint8 images [N, H, W, C], not {images.dtype} {list(images.shape)}; "
                "for [N, C, H, W], pass images.permute(0, 2, 3, 1)."
            )
        num_images = len(images) if rows is None else len(rows)
        if rows is not None and rows.device != images.device:
            raise TransformError(f"rows are on {rows.device}, the images on {images.device}; "
                                 "pass rows.to(images.device).")  # fmt: skip
        # Not on a GPU, where looking would wait for it.
        if rows is not None and num_images and rows.device.type == "cpu":
            low, high = (int(n) for n in rows.aminmax())
            if low < 0 or high >= len(images):
                raise TransformError(f"rows go from {low} to {high}, and there are {len(images)} images.")
        sample_ids = torch.arange(num_images, device="cpu") if ids is None else ids
        if sample_ids.shape != (num_images,):
            raise TransformError(f"ids has shape {list(sample_ids.shape)}, the batch has {num_images} images.")
        return sample_ids

    def _check_channels(self, num_channels: int) -> None:
        num_values = len(self._spec.values.scale)
        if num_values not in (1, num_channels):
            raise TransformError(
                f"Normalize has {num_values} channels, the images have {num_channels} (NHWC); give one value for each."
            )

    def explain(self, height: int = 256, width: int = 256, channels: int = 3, batch_size: int = 64) -> str:
        """Return stages, launches and bytes for a batch of stored images of this size, one line each."""
        return explain(self._spec, self.dtype, self.memory_format, self.views, (batch_size, height, width, channels))

    def __repr__(self) -> str:
        return f"Augment(\n{self.explain()}\n)"


def _in_order(images: torch.Tensor, rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Take the rows out of images that are not contiguous: else all of them would be copied, for a batch."""
    if rows is None or images.is_contiguous():
        return images, rows
    return images.index_select(0, rows), None


__all__ = ["AlternatingFlip", "Augment", "CutMix", "Cutout", "MixUp", "RandomErasing", "Spec"]
