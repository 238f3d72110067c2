"""Lookahead for any recipe: slow weights that follow the network's, and to which it goes back every few steps."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class Lookahead:
    """Slow weights that follow the network's; after every fifth step, and the last, the network goes on from them.

    Lookahead is Zhang's (arXiv:1907.08610). That the slow weights, batch statistics included, keep more and more of
    themselves, 0.95^5 times the cube of the share of training that is done, is Balsam's and Jordan's (airbench94.py).
    Inside `with`, it follows the steps of any optimizer: one network may train.

    Args:
        network: not wrapped, and not replaced while it trains.
        num_steps: of the optimizer, in all.
    """

    def __init__(self, network: nn.Module, num_steps: int) -> None:
        self._network, self._num_steps, self._done = network, num_steps, 0
        self._slow: dict[str, torch.Tensor] = {}

    def __enter__(self) -> None:
        self._handle = register_optimizer_step_post_hook(self._has_stepped)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    @torch.no_grad()
    def _has_stepped(self, *_: object) -> None:
        self._done += 1
        if self._done % 5 and self._done != self._num_steps:
            return
        kept = 0.95**5 * (self._done / self._num_steps) ** 3
        for name, fast in self._network.state_dict().items():
            if fast.is_floating_point():
                if name not in self._slow:
                    self._slow[name] = fast.clone()
                fast.copy_(self._slow[name].lerp_(fast, 1 - kept))
