"""The network of cifar10_speed.py: whitened patches, three blocks of two convolutions, one linear layer."""

from __future__ import annotations

import torch
from models import Affine
from torch import nn


class Whitening(nn.Module):
    """A convolution whose filters come from the data and do not learn; its bias does."""

    filters: torch.Tensor

    def __init__(self, filters: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("filters", filters)
        self.bias = nn.Parameter(torch.zeros(len(filters)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return nn.functional.conv2d(x, self.filters, self.bias)


class Shift(nn.Module):
    """x + 8 bias: what follows a norm without scale. SGD then moves the shift 64 times as fast as other weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        # In x's own type: a float32 bias would make all that follows under autocast float32, too.
        return x + (8 * self.bias).to(x.dtype).view(-1, 1, 1)


def make_network(width: int, classes: int, filters: torch.Tensor) -> nn.Sequential:
    """Return the network: [B, 3, 32, 32] -> logits; 31 pixels after whitening, then 15, 7, 3 and 1."""

    def conv(inputs: int, outputs: int, *between: nn.Module) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.dirac_(layer.weight.data[:inputs])  # begins by passing its input on, as a residual would
        norm = nn.BatchNorm2d(outputs, momentum=0.4, affine=False)
        return [layer, *between, norm, Shift(outputs), nn.GELU()]

    blocks: list[nn.Module] = []
    for inputs, outputs in ((24, width), (width, 4 * width), (4 * width, 4 * width)):
        blocks += [*conv(inputs, outputs, nn.MaxPool2d(2)), *conv(outputs, outputs)]
    last = nn.Linear(4 * width, classes, bias=False)
    small = Affine(torch.tensor(1 / 9), torch.tensor(0.0))  # logits begin small, so the learning rate may be high
    return nn.Sequential(Whitening(filters), nn.GELU(), *blocks, nn.MaxPool2d(3), nn.Flatten(), last, small)
