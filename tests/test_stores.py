"""Stores by themselves: rows gathered from any memory, memory that is taken again, and reading ahead."""

import errno
import mmap
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastload.recycling import MAX_FREE, Blocks
from fastload.stores import Wanted, shared, tensors
from fastload.stores.copying import Copies
from fastload.stores.joining import join
from fastload.stores.mapped import MappedStore
from fastload.stores.readahead import cached_share, read_ahead, row_ranges, will_need
from fastload.stores.tensors import TensorStore, fill, take

PAGE = os.sysconf("SC_PAGE_SIZE")


def steps(ids: list[list[int]]) -> Iterator[Wanted]:
    return (Wanted(ids=torch.tensor(i), num_valid=len(i)) for i in ids)


@pytest.mark.parametrize("piece_rows", [3, 1000])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_store_gathers_the_same_rows(
    dtype: torch.dtype, piece_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "PIECE_BYTES", piece_rows * 3 * 2 * dtype.itemsize)
    whole = torch.randint(0, 200, (11, 3, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    shards = list(torch.split(whole, [4, 1, 6]))
    wanted = [[10, 0, 4, 4], [1], [5, 6, 7]]
    samples = torch.empty_like(whole)
    copied: list[int] = []
    fill(samples, shards, first=3, advance=copied.append)
    assert len(copied) == (4 if piece_rows == 3 else 3)  # of rows 3, 4 and 5 .. 10
    fill(samples, shards, stop=3)
    for store in (TensorStore(samples), MappedStore(shards)):
        served = list(store.serve(steps(wanted)))
        assert [s.wanted.ids.tolist() for s in served] == wanted
        for s, ids in zip(served, wanted, strict=True):
            assert torch.equal(s.samples, whole[ids])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere batches are gathered shard by shard")
@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(3,), (5, 7, 3), (32, 32, 3), (4096,), (1,)]),
    counts=st.lists(st.integers(0, 40), min_size=2, max_size=5).filter(any),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=st.integers(0, 99),
)
def test_shards_in_one_range_of_addresses_are_their_rows(
    shape: tuple[int, ...], counts: list[int], dtype: torch.dtype, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, generator = tmp_path_factory.mktemp("shards"), torch.Generator().manual_seed(seed)
    shards = [torch.randint(0, 256, (n, *shape), generator=generator).to(dtype) for n in counts]
    places = []
    for number, shard in enumerate(shards):
        file, offset = folder / str(number), PAGE * (number % 3)
        file.write_bytes(b"x" * offset + shard.numpy().tobytes())
        places.append((file, offset))
    joined = join(shards, places)
    assert joined is not None
    for shard, start in zip(shards, joined[1], strict=True):
        assert torch.equal(joined[0][start : start + len(shard)], shard)
    whole = torch.cat(shards)
    ids = torch.randint(0, len(whole), (9,), generator=generator)
    (gathered,) = MappedStore(shards, places).serve(steps([ids.tolist()]))
    (in_place,) = MappedStore(shards, places, in_place=True).serve(steps([ids.tolist()]))
    assert gathered.rows is None
    assert in_place.rows is not None
    assert torch.equal(gathered.samples, whole[ids])
    assert torch.equal(in_place.samples[in_place.rows], whole[ids])


def test_files_that_cannot_be_joined_are_gathered_one_by_one(tmp_path: Path) -> None:
    shards = [torch.full((2, PAGE), n, dtype=torch.uint8) for n in range(2)]
    for number, shard in enumerate(shards):
        (tmp_path / f"{number}").write_bytes(shard.numpy().tobytes())
        (tmp_path / f"{number}.behind").write_bytes(b"x" + shard.numpy().tobytes())
    whole = [(tmp_path / f"{n}", 0) for n in range(2)]
    # Not at a page's beginning; shorter than the rows, of which a read would kill; not there.
    bad = [[(tmp_path / f"{n}.behind", 1) for n in range(2)], [whole[0], (tmp_path / "1", PAGE)],
           [whole[0], (tmp_path / "2", 0)]]  # fmt: skip
    for places in bad:
        assert join(shards, places) is None
        (served,) = MappedStore(shards, places, in_place=True).serve(steps([[3, 0]]))
        assert served.samples[:, 0].tolist() == [1, 0]


def test_the_addresses_of_joined_shards_are_given_back(tmp_path: Path) -> None:
    shards = [torch.zeros(2, PAGE, dtype=torch.uint8)] * 2
    (tmp_path / "rows").write_bytes(bytes(2 * PAGE))

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    joined = join(shards, [(tmp_path / "rows", 0)] * 2)
    assert joined is not None
    view = joined[0][1:]
    del joined
    assert mapped() == 2
    del view
    assert mapped() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no memory without a name")
def test_memory_is_shared_where_large_pages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLargePages(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", NoLargePages)
    monkeypatch.setattr(shared, "gather_numbers", lambda numbers, _: [numbers])  # the only rank
    shards = [torch.arange(6).view(3, 2), torch.arange(4).view(2, 2)]
    assert torch.equal(shared.host_tensor(shards, torch.device("cpu"), together=True), torch.cat(shards))


def test_one_thread_and_many_gather_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, ids = torch.randn(50, 7), torch.tensor([49, 0, 3, 3])
    one = take(samples, ids, torch.empty(4, 7))
    monkeypatch.setattr("fastload.recycling.ONE_THREAD_BYTES", 0)
    assert torch.equal(one, take(samples, ids, torch.empty(4, 7)))
    assert torch.equal(one, samples[ids])


def test_a_block_comes_back_when_its_last_view_is_gone() -> None:
    blocks = Blocks()
    first = blocks.empty((5, 3), torch.float32)
    address, view = first.data_ptr(), first[2:].view(-1)
    del first
    second = blocks.empty((5, 3), torch.float32)
    assert second.data_ptr() != address
    del view
    assert blocks.empty((15,), torch.float32).data_ptr() == address  # of one size, whatever the shape
    assert blocks.empty((0, 3), torch.uint8).shape == (0, 3)
    many = [blocks.empty((60,), torch.uint8) for _ in range(MAX_FREE + 3)]
    del many, second
    assert len(blocks._free[60]) == MAX_FREE


def test_reading_ahead_changes_no_order_and_asks_in_file_order(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [torch.zeros(6, PAGE, dtype=torch.uint8), torch.zeros(5, PAGE, dtype=torch.uint8)]
    first_rows = np.array([0, 6, 11])
    asked: list[list[list[int]]] = []
    monkeypatch.setattr("fastload.stores.readahead.cached_share", lambda pages: 0.0)
    monkeypatch.setattr("fastload.stores.readahead.will_need", lambda ranges: asked.append(ranges.tolist()))
    wanted = np.random.default_rng(0).permutation(11)[:10].reshape(5, 2).tolist()
    assert [w.ids.tolist() for w in read_ahead(steps(wanted), shards, first_rows)] == wanted
    for ranges in asked:
        for shard in shards:
            inside = [r for r in ranges if shard.data_ptr() - PAGE <= r[0] < shard.data_ptr() + shard.nbytes]
            assert inside == sorted(inside)
    monkeypatch.setattr("fastload.stores.readahead.cached_share", lambda pages: 1.0)
    asked.clear()
    list(read_ahead(steps(wanted), shards, first_rows))
    assert not asked


def test_of_files_of_somebody_else_everything_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows"
    file.write_bytes(bytes(4 * PAGE))
    rows = torch.from_file(str(file), size=4 * PAGE, dtype=torch.uint8).view(4, PAGE)
    asked: list[npt.NDArray[np.int64]] = []
    monkeypatch.setattr("fastload.stores.readahead.cached_share", lambda pages: 1.0)  # as Linux says of them
    monkeypatch.setattr("fastload.stores.readahead.will_need", asked.append)
    list(MappedStore([rows], [(file, 0)]).serve(steps([[2, 0]])))
    assert not asked
    monkeypatch.setattr(os, "access", lambda *_: False)
    list(MappedStore([rows], [(file, 0)]).serve(steps([[2, 0]])))
    assert not asked, "what is our own may be looked at, written or not"
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    list(MappedStore([rows], [(file, 0)]).serve(steps([[2, 0]])))
    assert [len(ranges) for ranges in asked] == [2]


def test_rows_side_by_side_are_one_range() -> None:
    shard = torch.zeros(100, PAGE // 2, dtype=torch.uint8)
    ranges = row_ranges(np.array([3, 4, 4, 5, 60]), np.array([shard.data_ptr()]), np.array([0, 100]), PAGE // 2)
    assert len(ranges) == 2
    for address, num_bytes in ranges:
        assert address % PAGE == num_bytes % PAGE == 0
    assert ranges[0][0] <= shard[3].data_ptr()
    assert sum(ranges[0]) >= shard[6].data_ptr()


@given(
    ids=st.lists(st.integers(0, 29), min_size=1).map(sorted),
    row_bytes=st.integers(1, 3 * PAGE),
    starts=st.permutations([7 * PAGE + 64, 900 * PAGE, 5000 * PAGE + 8]),
)
def test_ranges_are_the_pages_of_the_rows_and_no_others(ids: list[int], row_bytes: int, starts: list[int]) -> None:
    first_rows = [0, 10, 12, 30]
    pages = set()
    for i in ids:
        shard = max(k for k in range(3) if first_rows[k] <= i)
        begin = starts[shard] + (i - first_rows[shard]) * row_bytes
        pages |= set(range(begin // PAGE, (begin + row_bytes - 1) // PAGE + 1))
    ranges = row_ranges(np.array(ids), np.array(starts), np.array(first_rows), row_bytes).tolist()
    given_back = [low // PAGE + k for low, num_bytes in ranges for k in range(num_bytes // PAGE)]
    assert sorted(given_back) == sorted(pages), "each page once"


def test_what_is_asked_for_comes_into_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes(os.urandom(64 * PAGE))
    descriptor = os.open(file, os.O_RDWR)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    rows = torch.from_file(str(file), shared=True, size=64 * PAGE, dtype=torch.uint8).view(64, PAGE)
    ranges = row_ranges(np.array([40]), np.array([rows.data_ptr()]), np.array([0, 64]), PAGE)
    if cached_share(ranges[0].tolist()) == 1:
        pytest.skip("this file system keeps everything in RAM")
    will_need(ranges)
    for _ in range(500):
        if cached_share(ranges[0].tolist()) == 1:
            return
        time.sleep(0.01)
    pytest.fail("the rows were not read")


class Event:
    def __init__(self, number: int, waited: list[int]) -> None:
        self.number, self.waited = number, waited

    def synchronize(self) -> None:
        self.waited.append(self.number)


class Stream:
    """CUDA's, as far as somebody waits for what was recorded on it."""

    def __init__(self, waited: list[int]) -> None:
        self.recorded, self.waited = 0, waited

    def record_event(self) -> Event:
        self.recorded += 1
        return Event(self.recorded - 1, self.waited)


def test_no_more_than_three_batches_are_on_a_gpu_however_far_the_host_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    copying, using = Stream([]), Stream(waited)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copying)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: using)
    copies, batch = Copies(torch.device("cpu")), torch.arange(4)
    copies.begin(batch, batch)
    for step in range(7):
        made = copies.begin(batch, batch)  # that of step + 1
        assert torch.equal(made.samples, batch)
        # Those of step - 1, of step and of step + 1 may be there.
        assert waited == list(range(step - 1)), "the batches before were read"
        copies.end()
