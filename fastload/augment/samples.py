"""Transforms that fastload does not know, run image by image."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image

from fastload.augment.arithmetic import HostNumbers, Keys
from fastload.augment.spec import PerSample
from fastload.devices import generators_kept
from fastload.errors import TransformError


def run_each(images_NHWC: torch.Tensor, unknown: PerSample, ids: torch.Tensor, keys: Keys, view: int) -> torch.Tensor:
    """Return what the transform makes of each image, in stored units, [N, S, T, C].

    The global generators of torch, NumPy and Python are seeded from the draw of each sample, and put back afterwards,
    so that a transform that draws from one gives a sample the same augmentation in any batch.

    Raises:
        TransformError: it gives no image, or images of several sizes.
    """
    words = HostNumbers(ids.cpu().numpy(), keys, view).words(unknown.number, 2)
    seeds = (np.asarray(words[0]) << 31 | np.asarray(words[1]) >> 1).tolist()
    made = []
    with generators_kept(images_NHWC.device):
        for image, seed in zip(images_NHWC, seeds, strict=True):
            _seed(seed, images_NHWC.device)
            made.append(_stored(unknown.transform(_shown(image, unknown.sees)), unknown))
    shapes = {tuple(m.shape) for m in made}
    if len(shapes) > 1:
        raise TransformError(f"{_name(unknown)} gives images of several sizes ({sorted(shapes)}); add a Resize to it.")
    return torch.stack(made).to(images_NHWC.device)


def _seed(seed: int, device: torch.device) -> None:
    # Not torch.manual_seed, which seeds the generators of all GPUs, those of the model among them.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)  # of the current device, which is this one
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


def _shown(image_HWC: torch.Tensor, sees: str) -> Any:
    image_CHW = image_HWC.permute(2, 0, 1)
    if sees == "float32":
        return Image(image_CHW.to(torch.float32) / 255)
    if image_CHW.dtype != torch.uint8:
        image_CHW = image_CHW.round().clamp(0, 255).to(torch.uint8)
    return F.to_pil_image(image_CHW) if sees == "PIL" else Image(image_CHW)


def _stored(made: Any, unknown: PerSample) -> torch.Tensor:
    if not isinstance(made, torch.Tensor):
        try:
            made = F.pil_to_tensor(made)
        except TypeError:
            raise TransformError(f"{_name(unknown)} gives a {type(made).__name__}, not an image.") from None
    image_CHW: torch.Tensor = made.as_subclass(torch.Tensor)
    return (image_CHW.float() * 255 if image_CHW.is_floating_point() else image_CHW).permute(1, 2, 0)


def _name(unknown: PerSample) -> str:
    return f"transform {unknown.number} ({type(unknown.transform).__name__})"
