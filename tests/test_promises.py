"""Orders, shares, draws and bytes that are promised: the same on every machine and by every later version.

The values were written down once. One that changes means that datasets and runs of before are not those of now: a
change of a version number and a line in the changelog, see CONTRIBUTING.md.
"""

import hashlib
from pathlib import Path

import numpy as np
from torchvision.transforms import v2

from fastload import Loader, convert, open_dataset
from fastload.augment.philox import draw_words
from fastload.augment.plan import Pass
from fastload.cut import parse_cut
from fastload.records import Record, Source, stable_rank
from fastload.resharding import Holdings
from fastload.shares import Shares
from tests.augment_help import plan_of


def made(root: Path) -> Source:
    """Six images of 4x4 pixels that no decoder and no resizer has touched."""
    pixels = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
    records = tuple(Record(path=f"{n}", label=n % 2, split="train") for n in range(6))
    return Source(
        root=root, layout="made", classes=("even", "odd"), records=records, name="made",
        reader=lambda record: pixels[int(record.path)],
    )  # fmt: skip


def test_the_order_of_paths() -> None:
    names = ["ant/0.jpg", "ant/1.jpg", "bee/0.jpg", "wasp/ä.jpg", "wasp/\udcff.jpg"]
    assert [sorted(range(5), key=lambda n: stable_rank(seed, names[n])) for seed in (0, 7)] == [
        [3, 0, 2, 1, 4],
        [2, 1, 0, 3, 4],
    ]
    assert stable_rank(0, names[0]).hex() == "430c210a318943c83690142800c969de"


def test_the_words_of_a_key() -> None:
    words = draw_words(np.array([0, 5, 2**40]), seed=3 + 2**35, epoch=4, transform=2, count=5)
    assert words.tolist() == [
        [2936035014, 4035786521, 3254039118],
        [505358499, 3895067007, 3424838149],
        [2619577244, 3847676718, 2318684119],
        [2786607661, 2551626236, 1631352737],
        [3372010231, 1288011478, 3117045386],
    ]


def test_the_draws_of_transforms_by_their_numbers() -> None:
    node = plan_of([v2.RandomHorizontalFlip(), v2.RandomCrop(8)], 6, 20, 30, seed=1, epoch=2).nodes[0]
    assert isinstance(node, Pass)
    assert (node.geometry.y.start.tolist(), node.geometry.x.start.tolist()) == (
        [12.0, 7.0, 2.0, 12.0, 12.0, 3.0],
        [13.0, 26.0, 22.0, 25.0, 12.0, 16.0],
    )
    assert (np.asarray(node.geometry.x.step) < 0).tolist() == [False, True, False, True, False, False]
    boxes = parse_cut(v2.RandomResizedCrop(8)).boxes(np.array([[30, 40]] * 3), np.arange(3), seed=1, epoch=2)
    assert boxes.tolist() == [[3, 4, 23, 22], [1, 6, 20, 26], [0, 24, 19, 15]]


def test_the_order_of_epochs(tmp_path: Path) -> None:
    loader = Loader(open_dataset(convert(made(tmp_path), tmp_path / "out", size=4)), 3, device="cpu")
    assert [loader.batch_ids.tolist() for _ in range(2) for _ in loader] == [[0, 1, 3], [2, 4, 5], [5, 3, 2], [4, 0, 1]]


def test_what_ranks_hold_and_swap() -> None:
    holdings = Holdings(Shares(num_samples=13, batch_size=2, world_size=2, drop_last=True), seed=7)
    assert [holdings.order(epoch, rank).tolist() for epoch, rank in ((0, 0), (1, 0), (0, 1))] == [
        [4, 1, 6, 5, 0, 3, 2],
        [6, 5, 1, 0, 2, 4, 3],
        [3, 2, 4, 0, 1, 5],
    ]
    assert [held.tolist() for held in holdings.held(2)] == [[0, 6, 4, 10, 7, 9, 11], [2, 3, 1, 8, 5, 12]]


def test_the_bytes_of_a_shard(tmp_path: Path) -> None:
    out = convert(made(tmp_path), tmp_path / "out", size=4)
    assert open_dataset(out).labels.tolist() == [0, 0, 0, 1, 1, 1]
    found = hashlib.sha256((out / "train-00000.safetensors").read_bytes()).hexdigest()
    assert found == "eb2bb4e891590b527e00b33ae565a9786c0613b857104446dfd04bd0da29acd5"
