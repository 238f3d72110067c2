"""The small networks of the recipes: those that neither timm nor torchvision has.

Each takes a batch as the Loader gives it, float32 [B, C, S, S] or [B, D], and returns one row of logits each.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torchvision.models
from torch import nn

Activation = Callable[[], nn.Module]


class Affine(nn.Module):
    """Times `scale`, plus `shift`; both are kept with the weights, and neither learns."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return x * self.scale + self.shift


def mlp(*widths: int, activation: Activation = nn.ReLU, dropout: float = 0.0) -> nn.Sequential:
    """Return linear layers of these widths, inputs and outputs included: (784, 128, 10) has one hidden layer."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), activation(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def cnn_16_32_64(channels: int, classes: int) -> nn.Sequential:
    """Return three 5x5 convolutions for 28 pixels, the first two halving the side: 28, 14, 7."""

    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU()]

    return nn.Sequential(
        *conv(channels, 16), nn.MaxPool2d(2), *conv(16, 32), nn.MaxPool2d(2), *conv(32, 64),
        nn.Flatten(), nn.Linear(64 * 7 * 7, classes),
    )  # fmt: skip


def cnn_10_20(channels: int, classes: int) -> nn.Sequential:
    """Return two 5x5 convolutions without padding for 28 pixels, 12 and 4 after pooling, and one layer on 320."""
    return nn.Sequential(
        nn.Conv2d(channels, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(320, classes),
    )  # fmt: skip


def lenet(channels: int, classes: int) -> nn.Sequential:
    """Return LeNet-5 (LeCun et al., 1998) for 28 pixels, with ReLU and max pooling."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, classes),
    )  # fmt: skip


def nin(channels: int, classes: int) -> nn.Sequential:
    """Return Network in Network (Lin et al., 2014) in its form for 32 pixels: no linear layer, a mean per class."""

    def block(inputs: int, side: int, *widths: int) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Conv2d(inputs, widths[0], side, padding=side // 2), nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 1), nn.ReLU()]
        return layers

    return nn.Sequential(
        *block(channels, 5, 192, 160, 96), nn.MaxPool2d(3, 2, padding=1), nn.Dropout(0.5),
        *block(96, 5, 192, 192, 192), nn.AvgPool2d(3, 2, padding=1), nn.Dropout(0.5),
        *block(192, 3, 192, 192), nn.Conv2d(192, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def alexnet(channels: int, classes: int) -> nn.Module:
    """Return torchvision's AlexNet; it wants 63 pixels or more."""
    return _with_channels(torchvision.models.alexnet(num_classes=classes), channels)


def vgg11(channels: int, classes: int) -> nn.Module:
    """Return torchvision's VGG11; it wants 32 pixels or more."""
    return _with_channels(torchvision.models.vgg11(num_classes=classes), channels)


def googlenet(channels: int, classes: int) -> nn.Module:
    """Return torchvision's GoogLeNet without its two helping heads."""
    network = torchvision.models.googlenet(num_classes=classes, aux_logits=False, init_weights=False)
    return _with_channels(network, channels)


def resnet18(channels: int, classes: int) -> nn.Module:
    """Return torchvision's ResNet-18."""
    return _with_channels(torchvision.models.resnet18(num_classes=classes), channels)


def _with_channels(network: nn.Module, channels: int) -> nn.Module:
    """Give a network of torchvision, which is for three channels, a first convolution for `channels`."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != channels:
                # Of the same shape otherwise, and drawn anew by its own rule.
                layer.in_channels = channels
                layer.weight = nn.Parameter(layer.weight[:, :1].detach().repeat(1, channels, 1, 1))
                layer.reset_parameters()
            return network
    raise AssertionError(f"{type(network).__name__} has no convolution")
