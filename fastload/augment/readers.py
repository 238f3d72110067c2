"""torchvision's transform objects (v1 and v2) -> operations: their parameters, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torchvision.transforms import v2

from fastload.augment import colour, geometry, own, policies
from fastload.augment.plan import Code, Op
from fastload.augment.spec import Parser, Spec, UnknownTransformError, Values, flatten, numbers_of
from fastload.errors import TransformError


def _stored_fill(fill: Any, spec: Spec) -> tuple[float, ...]:
    """Return the stored value that a transform at this place of the pipeline fills with."""
    if isinstance(fill, dict):
        raise TransformError("a fill per kind of input is not supported; pass one fill.")
    return spec.values.stored(tuple(fill) if isinstance(fill, Sequence) else (float(fill or 0),))


def _warp_fill(fill: Any, spec: Spec) -> tuple[float, ...] | None:
    return None if fill is None and spec.values == Values() else _stored_fill(fill, spec)


def _unit(value: Any, spec: Spec) -> tuple[float, ...]:
    return tuple(v / 255 for v in _stored_fill(value, spec))


def _pair(size: Any) -> tuple[int, int]:
    numbers = [int(n) for n in size] if isinstance(size, Sequence) else [int(size)]
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise TransformError(f"size {size!r} is not one or two numbers of at least 1.")
    return numbers[0], numbers[-1]


def _check_bilinear(transform: Any) -> None:
    interpolation = getattr(transform.interpolation, "value", transform.interpolation)
    if interpolation not in ("bilinear", 2):
        raise UnknownTransformError(f"asks for interpolation {interpolation}, which is not supported; use bilinear.")
    if getattr(transform, "antialias", True) is False:
        raise UnknownTransformError("asks for antialias=False, which is not supported; leave it at True.")


def _nearest(transform: Any) -> bool:
    interpolation = getattr(transform.interpolation, "value", transform.interpolation)
    if interpolation not in ("bilinear", "nearest", 0, 2):
        raise UnknownTransformError(
            f"asks for interpolation {interpolation}, which is not supported; use nearest or bilinear."
        )
    return interpolation in ("nearest", 0)


def _resize(t: Any, parser: Parser) -> Op:
    _check_bilinear(t)
    if t.size is None:
        if not t.max_size:
            raise TransformError("size=None needs a max_size; give one.")
        return geometry.Resize(size=None, max_size=t.max_size)
    size = [t.size] if isinstance(t.size, int) else list(t.size)
    if len(size) not in (1, 2) or min(size) < 1:
        raise TransformError(f"size {t.size!r} is not one or two numbers of at least 1.")
    return geometry.Resize(size=tuple(size), max_size=t.max_size)


def _sides(padding: Any, *, parsed: bool = False) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom); v2's RandomCrop keeps its padding `parsed`, in another order."""
    if isinstance(padding, int):
        return padding, padding, padding, padding
    p = [int(n) for n in padding]
    if parsed:
        return p[0], p[2], p[1], p[3]
    if len(p) <= 2:
        return p[0], p[-1], p[0], p[-1]
    return p[0], p[1], p[2], p[3]


def _fill_for(mode: str, fill: Any, spec: Spec) -> tuple[float, ...]:
    return _stored_fill(fill, spec) if mode == "constant" else (0.0,)


def _random_crop(t: Any, parser: Parser) -> Op:
    padding = _sides(t.padding or 0, parsed=bool(t.padding) and ".v2." in type(t).__module__)
    return geometry.RandomCrop(
        size=_pair(t.size), padding=padding, pad_if_needed=t.pad_if_needed, mode=t.padding_mode,
        fill=_fill_for(t.padding_mode, t.fill, parser.spec),
    )  # fmt: skip


def _pad(t: Any, parser: Parser) -> Op:
    fill = _fill_for(t.padding_mode, t.fill, parser.spec)
    return geometry.Pad(padding=_sides(t.padding), mode=t.padding_mode, fill=fill)


def _random_resized_crop(t: Any, parser: Parser) -> Op:
    _check_bilinear(t)
    return geometry.RandomResizedCrop(size=_pair(t.size), scale=tuple(t.scale), ratio=tuple(t.ratio))


def _center(center: Any) -> tuple[float, float] | None:
    return None if center is None else (float(center[0]), float(center[1]))


def _random_rotation(t: Any, parser: Parser) -> Op:
    if t.expand:
        raise UnknownTransformError("asks for expand=True, which gives every image its own size; use expand=False.")
    return geometry.RandomRotation(
        degrees=tuple(t.degrees), nearest=_nearest(t), center=_center(t.center), fill=_warp_fill(t.fill, parser.spec)
    )


def _random_affine(t: Any, parser: Parser) -> Op:
    return geometry.RandomAffine(
        degrees=tuple(t.degrees), translate=None if t.translate is None else tuple(t.translate),
        scale=None if t.scale is None else tuple(t.scale), shear=None if t.shear is None else tuple(t.shear),
        nearest=_nearest(t), center=_center(t.center), fill=_warp_fill(t.fill, parser.spec),
    )  # fmt: skip


def _random_perspective(t: Any, parser: Parser) -> Op:
    return geometry.RandomPerspective(
        distortion_scale=t.distortion_scale, p=t.p, nearest=_nearest(t), fill=_warp_fill(t.fill, parser.spec)
    )


def _colours(read: Callable[[Any, Parser], Op | None]) -> Callable[[Any, Parser], Op | None]:
    """Check that colours are 0..1 or 0..255 at this place of the pipeline."""

    def checked(t: Any, parser: Parser) -> Op | None:
        spec = parser.spec
        if spec.converted == "raw":
            raise TransformError("colours are not in 0..1 there; use ToDtype(..., scale=True) before it.")
        if spec.values not in (Values(), Values().then((1 / 255,), (0.0,))):
            raise TransformError("colours are changed behind Normalize; put it in front of it.")
        return read(t, parser)

    return checked


def _fixed(code: Code, value: Callable[[Any, Parser], float] = lambda t, parser: 0.0) -> Any:
    return _colours(lambda t, parser: colour.Fixed(code=code, p=float(t.p), value=value(t, parser)))


def _posterize(t: Any, parser: Parser) -> float:
    if not 0 <= int(t.bits) <= 8:
        raise TransformError(f"bits={t.bits}; use 0 to 8.")
    return float(1 << int(t.bits))


def _solarize(t: Any, parser: Parser) -> float:
    bound = 1.0 if parser.spec.converted else 255.0
    if t.threshold > bound:
        raise TransformError(f"threshold={t.threshold} is above {bound:g}, the largest value at its place; lower it.")
    return float(t.threshold) / bound


def _jitter(t: Any, parser: Parser) -> Op:
    def limits(value: Any) -> tuple[float, float] | None:
        return None if value is None else (float(value[0]), float(value[1]))

    return colour.ColorJitter(
        brightness=limits(t.brightness), contrast=limits(t.contrast), saturation=limits(t.saturation),
        hue=limits(t.hue),
    )  # fmt: skip


def _blur(t: Any, parser: Parser) -> Op:
    sigma = t.sigma if isinstance(t.sigma, Sequence) else (t.sigma, t.sigma)
    return colour.GaussianBlur(
        kernel_size=(int(t.kernel_size[0]), int(t.kernel_size[1])), sigma=(float(sigma[0]), float(sigma[1]))
    )


def _erasing(t: Any, parser: Parser) -> Op:
    spec, value, noise = parser.spec, t.value, None
    if value is None or value == "random":
        # Normal noise in the units of this place, brought back to 0..1.
        inverse = [1 / (255 * s) for s in spec.values.scale] if spec.converted else [1.0]
        offset = [-o / (255 * s) for s, o in zip(spec.values.scale, spec.values.offset, strict=True)]
        noise, value = (tuple(inverse), tuple(offset) if spec.converted else (0.0,)), 0.0
        fill: tuple[float, ...] = (0.0,)
    elif value == "mean":
        if parser.mean is None:
            raise TransformError('value="mean" is the mean of Normalize, and there is none; give the value.')
        fill = parser.mean
    else:
        fill = _unit(value, spec)
    return colour.RandomErasing(p=float(t.p), scale=tuple(t.scale), ratio=tuple(t.ratio), fill=fill, noise=noise)


def _cutout(t: own.Cutout, parser: Parser) -> Op:
    return colour.Cutout(size=_pair(t.size), p=t.p, fill=_unit(t.value, parser.spec))


def _mix(cut: bool) -> Callable[[Any, Parser], Op]:
    def read(t: Any, parser: Parser) -> Op:
        if not t.alpha > 0:
            raise TransformError(f"alpha={t.alpha}; use a number above 0.")
        return colour.Mix(
            cut=cut, alpha=float(t.alpha), classes=t.num_classes, per_sample=getattr(t, "per_sample", False)
        )

    return read


def _look(t: Any, parser: Parser) -> policies.Look:
    return policies.Look(nearest=_nearest(t), fill=_warp_fill(t.fill, parser.spec))


def _auto_augment(t: Any, parser: Parser) -> Op:
    # v1 and v2 name their policies alike and share the tables; v2 keeps its space where it can be read.
    policy = v2.AutoAugmentPolicy(t.policy.value)
    pairs = v2.AutoAugment(policy)._policies
    return policies.AutoAugment(space=v2.AutoAugment._AUGMENTATION_SPACE, pairs=pairs, look=_look(t, parser))


def _rand_augment(t: Any, parser: Parser) -> Op:
    if t.num_ops < 0 or not 0 <= t.magnitude < t.num_magnitude_bins:
        raise TransformError(
            f"num_ops={t.num_ops}, magnitude={t.magnitude} of {t.num_magnitude_bins} bins; use 0 or more operations, "
            f"and a magnitude of 0 to {t.num_magnitude_bins - 1}."
        )
    return policies.RandAugment(
        space=v2.RandAugment._AUGMENTATION_SPACE, num_ops=t.num_ops, magnitude=t.magnitude,
        bins=t.num_magnitude_bins, look=_look(t, parser),
    )  # fmt: skip


def _trivial_augment(t: Any, parser: Parser) -> Op:
    return policies.TrivialAugmentWide(
        space=v2.TrivialAugmentWide._AUGMENTATION_SPACE, bins=t.num_magnitude_bins, look=_look(t, parser)
    )


def _aug_mix(t: Any, parser: Parser) -> Op:
    space = v2.AugMix._AUGMENTATION_SPACE if t.all_ops else v2.AugMix._PARTIAL_AUGMENTATION_SPACE
    return policies.AugMix(
        space=space, severity=t.severity, width=t.mixture_width, depth=t.chain_depth, alpha=float(t.alpha),
        look=_look(t, parser),
    )  # fmt: skip


def _random_apply(t: Any, parser: Parser) -> Op:
    return colour.RandomApply(ops=parser.branch(t.transforms), p=float(t.p))


def _branches(t: Any, parser: Parser) -> Any:
    return tuple(parser.branch(list(flatten(inner))) for inner in t.transforms)


def _random_choice(t: Any, parser: Parser) -> Op:
    p = t.p if t.p is not None else [1.0] * len(t.transforms)
    return colour.RandomChoice(branches=_branches(t, parser), p=tuple(float(x) / sum(p) for x in p))


def _to_float(t: Any, parser: Parser) -> None:
    spec = parser.spec
    if not spec.converted:
        parser.spec = replace(spec, values=spec.values.then((1 / 255,), (0.0,)), converted="scaled")


def _to_dtype(t: Any, parser: Parser) -> None:
    dtype, spec = t.dtype, parser.spec
    if isinstance(dtype, dict):
        raise TransformError("a dtype per kind of input is not supported; pass one dtype.")
    if not dtype.is_floating_point:
        if dtype == torch.uint8 and not spec.converted:
            return
        raise TransformError(f"{dtype} is not supported; use a floating point dtype.")
    if type(t).__name__ == "ToDtype" and not t.scale:
        parser.spec = replace(spec, converted=spec.converted or "raw")
    else:
        _to_float(t, parser)


def _normalize(t: Any, parser: Parser) -> None:
    spec = parser.spec
    if not spec.converted:
        raise TransformError("there is no ToTensor or ToDtype before it; put one in front of it.")
    mean, std = numbers_of(t.mean), numbers_of(t.std)
    channels = max(len(mean), len(std))
    mean, std = (n * channels if len(n) == 1 else n for n in (mean, std))
    if len(mean) != len(std):
        raise TransformError(f"mean {mean} and std {std} are of different lengths; give one number for each channel.")
    if min(std, default=0) <= 0:
        raise TransformError(f"std {std} has a value that is not above 0.")
    offset = [-m / s for m, s in zip(mean, std, strict=True)]
    parser.spec = replace(spec, values=spec.values.then([1 / s for s in std], offset))


def _keep(t: Any, parser: Parser) -> None:
    return None


# Class name, the same in v1 and v2 -> how its options become an operation, or change the parser's Spec.
KNOWN: dict[str, Callable[[Any, Parser], Op | None]] = {
    "Resize": _resize,
    "CenterCrop": lambda t, p: geometry.CenterCrop(size=_pair(t.size), fill=_stored_fill(0, p.spec)),
    "RandomCrop": _random_crop,
    "RandomResizedCrop": _random_resized_crop,
    "Pad": _pad,
    "RandomHorizontalFlip": lambda t, p: geometry.Flip(p=float(t.p)),
    "RandomVerticalFlip": lambda t, p: geometry.Flip(p=float(t.p), vertical=True),
    "AlternatingFlip": lambda t, p: geometry.Flip(alternating=True),
    "RandomRotation": _random_rotation,
    "RandomAffine": _random_affine,
    "RandomPerspective": _random_perspective,
    "ColorJitter": _colours(_jitter),
    "RandomGrayscale": _fixed(Code.GREY),
    "Grayscale": _colours(lambda t, p: colour.Grayscale(channels=int(t.num_output_channels))),
    "RandomInvert": _fixed(Code.INVERT),
    "RandomPosterize": _fixed(Code.POSTERIZE, _posterize),
    "RandomSolarize": _fixed(Code.SOLARIZE, _solarize),
    "RandomAutocontrast": _fixed(Code.AUTOCONTRAST),
    "RandomEqualize": _fixed(Code.EQUALIZE),
    "RandomAdjustSharpness": _fixed(Code.SHARPNESS, lambda t, p: float(t.sharpness_factor)),
    "GaussianBlur": _colours(_blur),
    "RandomErasing": _erasing,
    "Cutout": _cutout,
    "AutoAugment": _colours(_auto_augment),
    "RandAugment": _colours(_rand_augment),
    "TrivialAugmentWide": _colours(_trivial_augment),
    "AugMix": _colours(_aug_mix),
    "MixUp": _mix(False),
    "CutMix": _mix(True),
    "RandomApply": _random_apply,
    "RandomChoice": _random_choice,
    "RandomOrder": lambda t, p: colour.RandomOrder(branches=_branches(t, p)),
    "ToTensor": _to_float,
    "ToImage": _keep,
    "PILToTensor": _keep,
    "ToDtype": _to_dtype,
    "ConvertImageDtype": _to_dtype,
    "Normalize": _normalize,
}
