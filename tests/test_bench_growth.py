"""`bench memory` and `bench growth`, on a few images: what they find, and what they print of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import growth, memory, peers
from fastload.errors import ConfigError

pytestmark = pytest.mark.usefixtures("nothing_compiles")
MIB = 1 << 20


class InThisProcess:
    """A loader made from the same recipe as a child's, whose process grows by a MiB in each epoch."""

    once_bytes = 5 * MIB
    private_bytes = 100 * MIB

    def __init__(self, recipe: dict[str, Any]) -> None:
        assert recipe["settled"]
        options = {k: v for k, v in recipe.items() if k not in ("maker", "settled")}
        self.loader = getattr(peers, recipe["maker"])(**{**options, "dataset": Path(recipe["dataset"])})
        self.placement, self.epochs = recipe["placement"], 0

    def epoch(self) -> dict[str, float]:
        count = sum(len(images) for images, _ in self.loader)
        self.epochs += 1
        grown = self.epochs if self.placement == "host" else 2
        return {"images": count, "seconds": 0.1, "private_bytes": self.private_bytes + grown * MIB}


def test_memory_is_told_in_batches_and_growth(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: dict[str, InThisProcess] = {}

    @contextmanager
    def children(recipes: dict[str, dict[str, Any]]) -> Iterator[dict[str, InThisProcess]]:
        made.update({name: InThisProcess(recipe) for name, recipe in recipes.items()})
        yield made

    monkeypatch.setattr(memory, "children", children)
    result = memory.measure(folder, store=20, size=16, batch_size=4, epochs=10)
    assert {name: child.loader.placement.kind for name, child in made.items()} == {"host": "host", "mapped": "mapped"}
    assert {child.epochs for child in made.values()} == {10}
    assert (result["data"]["images"], result["data"]["name"]) == (13, "insects")
    stored, batch = 13 * 20 * 20 * 3, 4 * 3 * (20 * 20 + 4 * 16 * 16)
    host, mapped = result["placements"]["host"], result["placements"]["mapped"]
    # The most of ten epochs, of which the dataset's own bytes are expected in RAM; epochs 6 to 10 against 4 to 8.
    assert (host["added_mib"], host["growth_mib"], host["once_mib"]) == (10.0, 2.0, 5.0)
    assert host["batches"] == pytest.approx((10 * MIB - stored) / batch, abs=0.01)
    assert (mapped["added_mib"], mapped["growth_mib"]) == (2.0, 0.0)
    assert mapped["batches"] == pytest.approx(2 * MIB / batch, abs=0.01)
    memory.say(result)
    assert "13 images" in capsys.readouterr().out
    for wrong in ({"epochs": 9}, {"size": 21}, {"size": 0}):
        with pytest.raises(ConfigError, match=r"at least 10 epochs, .* and crops of 1 to store pixels"):
            memory.measure(folder, **{"store": 20, "size": 16, "batch_size": 4, "epochs": 10, **wrong})


def test_growth_is_measured_for_each_size_and_placement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "SECONDS", 0.05)
    result = growth.measure((1,), batch_size=50, rounds=1)
    (row,) = result["sizes"]
    assert (row["images"], result["data"]["images"]) == (1000, [1000])
    assert row["open_seconds"] > 0
    for placement in ("host", "mapped"):
        assert row["images_per_second"][placement] == row["all_rounds"][placement][0] > 0
    growth.say(result)
    assert "1,000" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="batch_size=1001"):
        growth.measure((1,), batch_size=1001, rounds=1)
