"""Some samples of a dataset: what a loader gives of them is what plain indexing gives, on any number of ranks."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Subset

from fastload import Augment, Loader, open_dataset
from fastload.chosen import choose_samples
from fastload.errors import ConfigError

PLAIN = Augment(dtype=torch.uint8)


def seen(loader: Loader) -> list[list[int]]:
    """Take a pass; return the ids of each step, after a look at pixels and labels."""
    steps = []
    for images, labels in loader:
        for image, label, i in zip(images, labels, loader.batch_ids.tolist(), strict=True):
            expected, number = loader.dataset[i]
            assert torch.equal(image.permute(1, 2, 0), torch.as_tensor(expected))
            assert int(label) == number
        steps.append(loader.batch_ids[: loader.num_valid].tolist())
    return steps


@settings(max_examples=20, deadline=None)
@given(
    indices=st.lists(st.integers(0, 12), min_size=9, max_size=30),
    world_size=st.integers(1, 3),
    batch_size=st.integers(1, 2),
    placement=st.sampled_from(["mapped", "gpu_sharded"]),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_they_are_those_of_plain_indexing(
    dataset: Path, indices: list[int], world_size: int, batch_size: int, placement: Any, shuffle: bool, drop_last: bool
) -> None:
    opened = open_dataset(dataset)
    ranks = [
        Loader(opened, batch_size, indices=indices, augment=PLAIN, device="cpu", placement=placement, shuffle=shuffle,
               drop_last=drop_last, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]  # fmt: skip
    for _ in range(2):
        steps = list(zip(*(seen(loader) for loader in ranks), strict=True))
        assert len(steps) == len(ranks[0])
        got = [i for step in steps for share in step for i in share]
        kept = len(indices) // (batch_size * world_size) * batch_size * world_size if drop_last else len(indices)
        if shuffle:
            assert len(got) == kept
            assert Counter(got) <= Counter(indices)
        else:
            assert got == indices[:kept]


def test_it_takes_what_people_have(dataset: Path) -> None:
    opened, ids = open_dataset(dataset), [7, 0, 3, 3, 12]
    short = torch.tensor(ids, dtype=torch.int16)
    for named in (ids, tuple(ids), np.array(ids, np.uint8), torch.tensor(ids), short):
        assert seen(Loader(opened, 2, indices=named, augment=PLAIN, shuffle=False)) == [[7, 0], [3, 3], [12]]
    mine = np.array(ids)
    loader = Loader(opened, 5, indices=mine, augment=PLAIN)
    mine[:] = 1
    orders = [seen(loader) for _ in range(4)]
    assert all(sorted(order) == sorted(ids) for (order,) in orders)
    assert len({tuple(order) for (order,) in orders}) > 1
    assert seen(Loader(opened, 2, indices=range(2, 5), augment=PLAIN, shuffle=False)) == [[2, 3], [4]]


def test_those_without_a_label_come_in_a_fixed_order_only(dataset: Path) -> None:
    opened = open_dataset(dataset)
    opened.labels = opened.labels.clone()
    opened.labels[[2, 5]] = -1
    ids = [5, 1, 2, 1, 0]
    assert seen(Loader(opened, 5, indices=ids, augment=PLAIN, shuffle=False)) == [ids]
    (order,) = seen(Loader(opened, 3, indices=ids, augment=PLAIN))
    assert sorted(order) == [0, 1, 1]
    with pytest.raises(ConfigError, match="none of the 13 samples of train has a label"):
        Loader(opened, 1, indices=[2, 5])


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([], r"indices is empty"),
        ([0, 13], r"go from 0 to 13, and there are 13 samples"),
        ([-1, 2], r"go from -1 to 2"),
        (np.array([2**63], np.uint64), r"go from 9,223,372,036,854,775,808"),
        ([1.0, 2.0], r"float64 \[2\].*whole numbers"),
        (np.ones(13, bool), r"bool \[13\].*numpy\.flatnonzero"),
        ([[1, 2]], r"int64 \[1, 2\]"),
        ([[1], [2, 3]], r"object"),
        ({1, 2}, r"object"),
        (3, r"int64 \[\]"),
        ("train", r"<U5"),
    ],
)
def test_what_names_no_samples_is_said(dataset: Path, indices: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Loader(open_dataset(dataset), 2, indices=indices)


def test_a_subset_of_a_dataset_brings_its_own(dataset: Path) -> None:
    opened, ids = open_dataset(dataset), [8, 2, 2, 11, 0]
    loader = Loader(Subset(opened, ids), 2, augment=PLAIN, placement="mapped", shuffle=False)
    assert loader.dataset is opened
    assert seen(loader) == [[8, 2], [2, 11], [0]]
    inner = Subset(Subset(opened, ids), [4, 3, 1])
    assert seen(Loader(inner, 2, augment=PLAIN, placement="mapped", shuffle=False)) == [[0, 11], [2]]
    assert seen(Loader(inner, 2, indices=[1, 1], augment=PLAIN, placement="mapped", shuffle=False)) == [[11, 11]]

    class Own(Subset[Any]):
        """May do something with each sample."""

    assert choose_samples(Own(opened, ids), None, shuffle=False).ids is None
    with pytest.raises(ConfigError, match="go from 5"):
        Loader(Subset(opened, ids), 1, indices=[5])


def test_of_any_map_style_dataset(dataset: Path) -> None:
    opened = open_dataset(dataset)
    plain = [(image.numpy(), label) for image, label in opened]  # type: ignore[misc]
    loader = Loader(plain, 2, indices=[4, 9, 4], augment=PLAIN, shuffle=False, workers=0)
    assert [loader.batch_ids.tolist() for _ in loader] == [[4, 9], [4]]


@pytest.mark.parametrize("placement", ["host", "gpu_sharded"])
def test_resuming_goes_on_and_notices_another_list(dataset: Path, placement: Any) -> None:
    opened, ids = open_dataset(dataset), [9, 1, 1, 4, 0, 7, 12]

    def loader(indices: Any) -> Loader:
        return Loader(opened, 2, indices=indices, augment=PLAIN, device="cpu", placement=placement, seed=2)

    whole, stopped, resumed = loader(ids), loader(ids), loader(np.array(ids))
    expected = seen(whole) + seen(whole)
    for _ in stopped:
        break
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed.load_state_dict(state)
    assert seen(resumed) + seen(resumed) == expected[1:]

    everything = loader(None)
    assert "indices" not in everything.state_dict(), "states of before have none"
    for other in (loader(sorted(ids)), everything):
        other.set_epoch(1)  # between epochs, too
        for taker, giver in ((other, resumed), (resumed, other)):
            with pytest.raises(ConfigError, match="loader state has indices"):
                taker.load_state_dict(giver.state_dict())
