"""ResNet on photographs of flowers, or on any image dataset that `fastload convert` wrote.

fastload convert flowers5 --size 128 --split valid=0.1
accelerate launch recipes/resnet_flowers.py flowers5.fastload --size 112

"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import timm
import torch
import torchvision.transforms.v2 as T
import typer

import fastload
from fastload.checkpoint import load_matching
from fastload.cli import run
from fastload.errors import DatasetError

NO_DATASET = (
    "{dataset}: no such dataset; make one of your own images with `fastload convert FOLDER {dataset}`, "
    "or of the demo's with `python recipes/demo_images.py photographs` and `fastload convert photographs {dataset}`."
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as pretrained weights expect


def main(
    dataset: Annotated[Path, typer.Argument(help="What `fastload convert` wrote.")] = Path("flowers5.fastload"),
    model: Annotated[str, typer.Option(help="A timm model that takes this size, e.g. resnet34.")] = "resnet18",
    size: Annotated[int, typer.Option(help="Side of the training crops, in pixels.")] = 128,
    weights: Annotated[Path | None, typer.Option(help="Start from these (.safetensors or .pth).")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 24,
    batch_size: Annotated[int, typer.Option(help="Images per process and step.")] = 64,
    lr: Annotated[float, typer.Option(help="Highest learning rate of the cosine schedule.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.05,
    label_smoothing: Annotated[float, typer.Option(help="Of the cross entropy.")] = 0.1,
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"] | None, typer.Option(help="no, bf16 or fp16; else what the launcher says.")
    ] = None,
    placement: Annotated[
        Literal["gpu", "host", "mapped", "auto"], typer.Option(help="gpu, host, mapped or auto: the fastest that fits.")
    ] = "auto",
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without a better one.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="End each epoch after so many steps.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and draws.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; else the best one.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of checkpoints and scalars.")] = Path("runs/resnet_flowers"),
) -> None:
    """Train a classifier from scratch or from local weights."""
    trainer = fastload.Trainer(fastload.TrainConfig(
        epochs=epochs, lr=lr, weight_decay=weight_decay, label_smoothing=label_smoothing, clip_grad_norm=1.0,
        warmup_epochs=min(2.0, epochs / 10), mixed_precision=mixed_precision, patience=patience, max_steps=max_steps,
        seed=seed, device=device, output=output,
    ))  # fmt: skip
    if not dataset.exists():
        raise DatasetError(NO_DATASET.format(dataset=dataset))
    train, valid = fastload.open_dataset(dataset, "train"), fastload.open_dataset(dataset, "valid")
    augment, plain = transforms(stored=train.sample_shape[0], size=size)
    train_loader = fastload.Loader(train, batch_size, augment=augment, placement=placement, seed=seed, progress=True)
    valid_loader = fastload.Loader(valid, batch_size, augment=plain, placement=placement, shuffle=False)

    network = timm.create_model(model, num_classes=len(train.classes))
    origin = "none: from scratch"
    if weights is not None:
        matched = load_matching(network, weights)
        origin = f"{weights.name}, {len(matched.skipped)} tensors left as they were ({', '.join(matched.skipped[:4])})"
    if trainer.is_main:
        print(f"{model}, weights {origin}; {train_loader.placement.kind}: {train_loader.placement.reason}")

    info = {
        "model": model,
        "size": size,
        "mean": MEAN,
        "std": STD,
        "weights": origin,
        "batch_size": batch_size,
    }
    trainer.fit(network, train_loader, valid_loader, info=info)


def transforms(stored: int, size: int) -> tuple[fastload.Augment, fastload.Augment]:
    """Return (for training, for validation): from images of `stored` pixels to `size`."""
    # A crop needs room to move: an eighth more than `size`. Images stored at just that size are only
    # copied; larger ones shrink to it, and at `size` itself padding makes the room.
    room = size * 8 // 7
    fit = [] if size <= stored <= room else [T.Resize((room, room) if stored > room else (size, size))]
    crop = T.RandomCrop(size, padding=size // 8 if stored <= size else None)
    end = [T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(MEAN, STD)]
    return (
        fastload.Augment(T.Compose([*fit, crop, T.RandomHorizontalFlip(), *end])),
        fastload.Augment(T.Compose([*fit, T.CenterCrop(size), *end])),
    )


if __name__ == "__main__":
    run(main)
