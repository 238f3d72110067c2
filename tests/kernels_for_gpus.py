"""Compiles the kernels of pipelines for a GPU that need not be there, and prints what each needs, as JSON.

    python tests/kernels_for_gpus.py 90 jitter everything

Triton's compiler and ptxas, which its wheel carries, ask for no GPU; only launching does.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2 as T
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import fastload
from fastload.augment.arithmetic import Keys
from fastload.augment.fused import DeviceKeys, Fused, Output

CROP = [T.RandomResizedCrop(224), T.RandomHorizontalFlip()]
PIPELINES = {
    "crop": CROP,
    "jitter": [*CROP, T.ColorJitter(0.4, 0.4, 0.4, 0.1)],
    "padded": [T.RandomCrop(224, padding=28, padding_mode="reflect"), T.RandomHorizontalFlip()],
    "trivial": [*CROP, T.TrivialAugmentWide()],
    "rand": [*CROP, T.RandAugment()],
    "auto": [*CROP, T.AutoAugment()],
    "augmix": [T.CenterCrop(224), T.AugMix()],
    "warp": [T.Resize(240), T.RandomRotation(45, interpolation=T.InterpolationMode.BILINEAR), T.CenterCrop(224)],
    "perspective": [T.RandomPerspective(p=1.0), T.RandomResizedCrop(224)],
    "two": [T.RandomInvert(), T.RandomCrop(224)],
    "each": [T.RandomCrop(224), T.RandomEqualize(), T.RandomInvert(), T.GaussianBlur(3)],
    "everything": [
        T.RandomResizedCrop(224), T.RandomRotation(30), T.ColorJitter(0.4, 0.4, 0.4, 0.1), T.RandomEqualize(),
        T.RandomPosterize(4), T.RandomSolarize(128), T.RandomAutocontrast(), T.RandomAdjustSharpness(2),
        T.GaussianBlur(9), T.RandomErasing(value="random"),
    ],
}  # fmt: skip


class NoGpu:
    """A driver that names a GPU and has none."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        return 0


def compiled(pipeline: list[Any], dtype: torch.dtype, sizes: tuple[int, ...] = (8,)) -> Iterator[tuple[str, Any]]:
    """Yield (name, kernel) of each launch of batches of so many images, 256 x 256."""
    end = [T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))]
    augment = fastload.Augment(T.Compose([*pipeline, *end]), dtype=dtype)
    launched: list[tuple[str, Any]] = []
    run = JITFunction.run

    def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        launched.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = only_compile
    try:
        fused, words = Fused(augment._segments[0], 256, 256, 3), DeviceKeys().get(Keys(0, 0), 0, torch.device("cpu"))
        output = Output(dtype=dtype, memory_format=augment.memory_format, values=augment._spec.values)
        for num_images in sizes:
            # The shorter batches are slices that begin anywhere.
            first = num_images % 2
            shape = (num_images, 256, 256, 3)
            images = torch.zeros(first + math.prod(shape), dtype=torch.uint8)[first:].view(shape)
            ids = torch.arange(first + num_images)[first:]
            fused.run(images, ids, ids, words, fused.draws(ids, words), output)
    finally:
        JITFunction.run = run
    yield from launched


def needs(kernel: Any) -> dict[str, int]:
    """Return what a launch takes of an SM: registers, and bytes of stack and local memory (spilled registers)."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    words = next(line for line in told.stdout.splitlines() if "REG:" in line).split()
    return {k.lower(): int(v) for k, _, v in (w.partition(":") for w in words) if k in ("REG", "STACK", "LOCAL")}


if __name__ == "__main__":
    driver.set_active(NoGpu(int(sys.argv[1])))
    for chosen in sys.argv[2:] or PIPELINES:
        # The last, shorter batches of an epoch, one of a single image, take the kernels of the others.
        for launch, made in set(compiled(PIPELINES[chosen], torch.bfloat16, sizes=(8, 3, 1))):
            print(json.dumps({"pipeline": chosen, "kernel": launch, **needs(made)}), flush=True)
