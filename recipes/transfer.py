"""What recipes that begin with somebody's weights share."""

from __future__ import annotations

import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as pretrained weights expect


def head_of(network: torch.nn.Module) -> tuple[str, ...]:
    """Return how the names of the head's parameters begin: the layer made last, called fc, head.fc or classifier."""
    return (list(network.state_dict())[-1].rpartition(".")[0] + ".",)
