"""What policies and flips draw, over twenty thousand samples of a fixed seed.

Operations, magnitudes, signs, depths and weights. What torchvision draws follows from its tables and its `forward`, so
shares are compared with theirs (chi-square).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2

from fastload.augment import policies
from fastload.augment.plan import Builder, Mixture, Pass, Plan
from tests.augment_help import ks, plan_of

NUM = 20_000
HEIGHT, WIDTH = 60, 80
LEAST = 1e-4  # of a p-value

# What one slot did to one image: operation, and magnitude with its sign. Of nothing: "", 0.
Did = tuple[str, float]


def p_value(counts: Counter[Hashable], shares: Mapping[Any, float]) -> float:
    """Return that of Pearson's chi-square, by Wilson and Hilferty's approximation; rare outcomes are one."""
    total = counts.total()
    assert not counts.keys() - {outcome for outcome, share in shares.items() if share > 0}, "what cannot be was drawn"
    expected = {outcome: total * share for outcome, share in shares.items() if total * share >= 5}
    cells = [(counts[outcome], amount) for outcome, amount in expected.items()]
    if (rest := total - sum(expected.values())) >= 5:
        cells.append((total - sum(count for count, _ in cells), rest))
    statistic, freedom = sum((count - amount) ** 2 / amount for count, amount in cells), len(cells) - 1
    spread = 2 / (9 * freedom)
    return 0.5 * math.erfc(((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(2 * spread))


class Slots:
    """Sees each slot that a policy adds: what it does to each image, and whether it does it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[list[Did]] = []
        self.gates: list[np.ndarray | None] = []

        def look(
            builder: Builder, names: object, picked: dict[str, np.ndarray], magnitude: np.ndarray, _: object
        ) -> None:
            self.gates.append(builder.gate)
            amounts = np.broadcast_to(np.asarray(magnitude, np.float64), NUM).round(9)
            said = np.full(NUM, "", dtype="U16")
            for name, here in picked.items():
                assert not (said[here] != "").any(), "two operations in one slot"
                said[here] = name
            self.did.append(list(zip(said.tolist(), amounts.tolist(), strict=True)))

        monkeypatch.setattr(policies, "add_slot", look)


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Slots:
    return Slots(monkeypatch)


def drawn(transforms: object) -> Plan:
    return plan_of(transforms, NUM, HEIGHT, WIDTH, seed=17, epoch=3)


def outcomes(name: str, entry: tuple[Any, bool], bins: int, levels: list[int]) -> dict[Did, float]:
    """Return what an operation may do, with torchvision's table and signs, and how often."""
    values, signed = policies.table({name: entry}, bins, HEIGHT, WIDTH)[name]
    found: dict[Did, float] = defaultdict(float)
    for level in levels:
        amount = 0.0 if values is None else values[level]
        for sign in (1, -1) if signed else (1, 1):
            found[name, round(sign * amount, 9)] += 1 / (2 * len(levels))
    return found


def space_shares(space: policies.Space, bins: int, levels: list[int]) -> dict[Did, float]:
    """Return the shares of a slot that takes any operation of `space`, at any of `levels`."""
    each = [outcomes(name, entry, bins, levels) for name, entry in space.items()]
    return {did: share / len(space) for one in each for did, share in one.items()}


@pytest.mark.parametrize(("num_ops", "magnitude"), [(3, 9), (1, 20)])
def test_rand_augment_takes_any_operation_in_each_slot(slots: Slots, num_ops: int, magnitude: int) -> None:
    drawn(v2.RandAugment(num_ops, magnitude))
    assert len(slots.did) == num_ops
    shares = space_shares(v2.RandAugment._AUGMENTATION_SPACE, 31, [magnitude])
    for did in slots.did:
        assert p_value(Counter(did), shares) > LEAST
    for one, other in pairwise(slots.did):  # each for itself
        both = Counter(zip((name for name, _ in one), (name for name, _ in other), strict=True))
        assert p_value(both, dict.fromkeys(product(v2.RandAugment._AUGMENTATION_SPACE, repeat=2), 1 / 14**2)) > LEAST


@pytest.mark.parametrize("policy", list(v2.AutoAugmentPolicy), ids=lambda p: p.value)
def test_auto_augment_takes_any_pair_and_each_operation_as_often_as_it_says(
    slots: Slots, policy: v2.AutoAugmentPolicy
) -> None:
    transform = v2.AutoAugment(policy)
    drawn(transform)
    shares: dict[tuple[Did, Did], float] = defaultdict(float)
    for pair in transform._policies:
        slot_shares = []
        for name, probability, level in pair:
            done = outcomes(name, transform._AUGMENTATION_SPACE[name], 10, [level or 0])
            slot_shares.append({("", 0.0): 1 - probability, **{d: probability * s for d, s in done.items()}})
        for first, second in product(*slot_shares):
            shares[first, second] += slot_shares[0][first] * slot_shares[1][second] / len(transform._policies)
    first, second = ([did if did[0] else ("", 0.0) for did in slot] for slot in slots.did)
    assert p_value(Counter(zip(first, second, strict=True)), shares) > LEAST


def test_aug_mix_chains_are_one_to_three_operations_of_low_severity(slots: Slots) -> None:
    drawn(v2.AugMix(severity=4))
    assert len(slots.did) == 9  # three chains of up to three
    depths = []
    for chain in range(3):
        first, second, third = slots.gates[3 * chain : 3 * chain + 3]
        assert first is None
        assert second is not None
        assert third is not None
        assert (second | ~third).all(), "a third operation is behind a second one"
        depths.append(1 + second.astype(int) + third)
    counts = Counter(zip(*(depth.tolist() for depth in depths), strict=True))
    assert p_value(counts, dict.fromkeys(product((1, 2, 3), repeat=3), 1 / 27)) > LEAST
    shares = space_shares(v2.AugMix._AUGMENTATION_SPACE, 10, [0, 1, 2, 3])
    for did in slots.did[::4]:  # one of each chain, one of each place
        assert p_value(Counter(did), shares) > LEAST


def test_aug_mix_chains_of_a_fixed_depth(slots: Slots) -> None:
    drawn(v2.AugMix(chain_depth=2, mixture_width=4, all_ops=False))
    assert slots.gates == [None] * 8
    shares = space_shares(v2.AugMix._PARTIAL_AUGMENTATION_SPACE, 10, [0, 1, 2])
    assert p_value(Counter(slots.did[7]), shares) > LEAST


@pytest.mark.parametrize("alpha", [0.4, 2.0])
@pytest.mark.usefixtures("slots")
def test_aug_mix_weights_are_dirichlets(alpha: float) -> None:
    node = drawn(v2.AugMix(alpha=alpha, mixture_width=2)).nodes[0]
    assert isinstance(node, Mixture)
    own, *chains = (np.asarray(w) for w in node.weights)
    assert np.allclose(own + sum(chains), 1)
    torch.manual_seed(0)
    m, w = (torch._sample_dirichlet(torch.full((NUM, 2), alpha)).double().numpy() for _ in range(2))
    assert ks(own, m[:, 0]) < 1
    for k in range(2):
        assert ks(chains[k], m[:, 1] * w[:, k]) < 1
    assert ks(chains[0] * chains[1], m[:, 1] ** 2 * w[:, 0] * w[:, 1]) < 1  # both at once


def test_flips_up_and_sideways_are_two_draws() -> None:
    node = drawn([v2.RandomVerticalFlip(0.3), v2.RandomHorizontalFlip(0.6)]).nodes[0]
    assert isinstance(node, Pass)
    up, mirrored = ((np.asarray(axis.step) < 0).tolist() for axis in (node.geometry.y, node.geometry.x))
    shares = {(u, m): (0.3 if u else 0.7) * (0.6 if m else 0.4) for u in (True, False) for m in (True, False)}
    assert p_value(Counter(zip(up, mirrored, strict=True)), shares) > LEAST
