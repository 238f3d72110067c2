"""Ranks that share one copy in RAM, and ranks that each hold a share: real processes, sizes that divide nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import launch


@pytest.fixture(scope="module")
def seen_by_ranks(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each of two ranks, and each of three, saw."""
    out = tmp_path_factory.mktemp("sharing")
    done = launch("tests.sharing_ranks", dataset, out)
    assert done.returncode == 0, done.stderr
    return {n: [json.loads((out / str(n) / f"{rank}.json").read_text()) for rank in range(n)] for n in (2, 3)}


@pytest.mark.processes
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_memory_and_swap_samples(seen_by_ranks: dict[int, list[dict[str, Any]]], world_size: int) -> None:
    ranks = seen_by_ranks[world_size]
    for found in ranks:
        assert found["host_pixels"]
        assert found["evaluation_pixels"]
        assert found["anew_pixels"]
        assert found["twin"]
        assert len(found["memory"]) == 1
        assert found["memory"] == ranks[0]["memory"]
        assert found["seen"] == [100 + r for r in range(world_size)]
        assert found["left"] == 0
        assert found["auto"] == "mapped"  # as rank 1 has to
    assert "free" in ranks[1]["refused"]
    assert "rank 1 cannot place" in ranks[0]["refused"]

    steps = 13 // (2 * world_size)
    for epoch in range(5):
        seen = [i for found in ranks for i in found["drop"][epoch]]
        assert len(seen) == len(set(seen)) == steps * 2 * world_size
        assert sorted(i for found in ranks for i in found["keep"][epoch]) == list(range(13))
    assert sorted(i for found in ranks for i in found["evaluation"]) == list(range(13))
    for found in ranks:
        kept = [set(epoch) for epoch in found["keep"]]
        assert len({frozenset(k) for k in kept}) > 2, "nothing was swapped"
        slow = [set(epoch) for epoch in found["slow"]]
        assert found["slow"][0] != found["slow"][1], "the share was not permuted"
        assert len(slow[0] | slow[1]) <= 13 // world_size + 2, "swapped before its time"
