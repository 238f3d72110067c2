"""The network of cifar10_speed.py: whitened patches, three blocks of two convolutions, one linear layer."""

from __future__ import annotations

import torch
from models import Affine
from torch import nn

import fastload
from fastload.formats import Dataset


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


class Layers(nn.Sequential):
    """A Sequential that `compile()` takes as a whole: of torch's own, Dynamo skips the frame and takes only parts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        for layer in self:
            x = layer(x)
        return x


def make_network(width: int, classes: int, filters: torch.Tensor) -> Layers:
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
    return Layers(Whitening(filters), nn.GELU(), *blocks, nn.MaxPool2d(3), nn.Flatten(), last, small)


class Views(nn.Module):
    """In evaluation the mean over an image, half of it, and the image moved by a pixel to both sides, a quarter each.

    The moved views are those of Keller Jordan's airbench94.py. All go through `layers` as one batch, so that compiled
    ones see one shape.

    Args:
        layers: images [B, C, S, S] -> logits [B, K].
        moved: whether to look at them at all.
    """

    def __init__(self, layers: nn.Module, *, moved: bool) -> None:
        super().__init__()
        self.layers, self.moved = layers, moved

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        if self.training or not self.moved:
            return self.layers(x)  # type: ignore[no-any-return]
        wide = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
        still, one, other = self.layers(torch.cat([x, wide[..., :-2, :-2], wide[..., 2:, 2:]])).chunk(3)
        return still / 2 + (one + other) / 4  # type: ignore[no-any-return]


def whitening(train: Dataset, plain: fastload.Augment, count: int = 5000) -> torch.Tensor:
    """Return filters [24, 3, 2, 2] that make 2x2 patches uncorrelated and of one size, and their opposites."""
    # Conversion has put `train` in a random order, so the first rows are a fair sample.
    images = torch.stack([train[i][0] for i in range(min(count, len(train)))])
    patches = plain(images).unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
    return torch.cat([filters, -filters])
