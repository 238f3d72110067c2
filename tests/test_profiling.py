import time
from collections.abc import Iterator

import pytest
import torch

from bench.truth import busy
from fastload import profile
from fastload.profiling import WaitMeter
from fastload.profiling.samples import time_samples
from fastload.profiling.verdict import efficiency, headspace, judge


def loader(num_batches: int, seconds: float) -> Iterator[torch.Tensor]:
    for _ in range(num_batches):
        time.sleep(seconds)
        yield torch.zeros(7, 3)


class Clock:
    """A clock that only moves when told: the meter's arithmetic, without this machine's noise."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("wait", "work"), [(1.0, 3.0), (3.0, 1.0), (0.0, 2.0)])
def test_wait_and_wall_are_what_the_clock_says(monkeypatch: pytest.MonkeyPatch, wait: float, work: float) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def slow() -> Iterator[list[torch.Tensor]]:
        for _ in range(10):
            clock.now += wait
            yield [torch.zeros(7, 3), torch.zeros(7)]

    meter = WaitMeter(torch.device("cpu"), num_warmup=2)
    for _ in range(2):
        for _ in meter.watch(slow()):
            clock.now += work
    timing = meter.result()
    # Two warm-up steps, of which one is the first of its epoch, and the first of the second epoch.
    assert timing.num_steps == 17
    assert timing.wall_seconds == pytest.approx(17 * (wait + work))
    assert timing.wait_share == pytest.approx(wait / (wait + work))
    assert timing.num_images == 17 * 7


def test_a_loop_that_is_left_early_closes_its_loader() -> None:
    closed = []

    def tracked() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            closed.append(True)

    meter = WaitMeter(torch.device("cpu"))
    for _ in meter.watch(tracked()):
        break
    assert closed == [True]
    assert meter.result().images_per_second is None


class Hooked:
    """A loader with the hook; what it does before and after calling it."""

    on_device_work = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(3):
            assert self.on_device_work is not None
            self.on_device_work()
            yield torch.zeros(2)


def test_the_hook_is_set_while_watched_and_removed_after() -> None:
    hooked = Hooked()
    assert len(list(WaitMeter(torch.device("cpu")).watch(hooked))) == 3
    assert hooked.on_device_work is None


@pytest.mark.gpu
def test_on_a_gpu_a_waiting_host_counts_and_a_busy_gpu_does_not() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    for seconds, low, high in ((0.0, 0.0, 0.1), (0.1, 0.5, 1.0)):
        meter = WaitMeter(device, num_warmup=2)
        for _ in meter.watch(loader(25, seconds)):
            for _ in range(10):
                matrix @ matrix
        share = meter.result().wait_share
        assert share is not None
        assert low <= share <= high


def test_profile_prints_one_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in profile(loader(30, 0.002), device="cpu"):
        busy(0.002)
    said = capsys.readouterr().err
    assert "INPUT-BOUND" in said
    assert "images/s" in said


def test_profile_of_too_little_is_inconclusive(capsys: pytest.CaptureFixture[str]) -> None:
    list(profile(loader(3, 0), device="cpu"))
    assert "INCONCLUSIVE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "steps", "word"),
    [
        (0.2, 20, "INPUT-BOUND"),
        (0.199, 20, "PARTLY INPUT-BOUND"),
        (0.05, 20, "PARTLY INPUT-BOUND"),
        (0.049, 20, "NOT INPUT-BOUND"),
        (0.9, 19, "INCONCLUSIVE"),
        (None, 100, "INCONCLUSIVE"),
    ],
)
def test_verdicts(share: float | None, steps: int, word: str) -> None:
    assert judge(share, steps, "cuda").word == word


def test_a_loader_that_takes_the_cores_of_the_step_is_named() -> None:
    assert judge(0.01, 20, "cpu", 0.89).word == "INTERFERENCE"
    assert judge(0.01, 20, "cpu", 0.9).word == "NOT INPUT-BOUND"
    assert judge(0.5, 20, "cpu", 0.5).word == "INPUT-BOUND", "waiting is seen directly, and comes first"


def test_headspace_and_efficiency() -> None:
    assert headspace(75, 100) == pytest.approx(0.25)
    assert efficiency(75, 300, 100) == pytest.approx(0.75)
    assert efficiency(75, 80, 100) == pytest.approx(0.9375)
    # 10 ms of augmentation and 10 ms of the step, on one device: 50 images/s at most.
    assert efficiency(50, 100, 100, own_seconds=0.01) == pytest.approx(1)
    assert efficiency(30, 40, 100, own_seconds=0.01) == pytest.approx(0.75)
    assert headspace(None, 100) is None
    assert efficiency(75, None, 100) is None


def test_datasets_that_cannot_be_asked_or_copied_are_left_as_they_were() -> None:
    class Passed(torch.utils.data.IterableDataset[int]):
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    class Uncopied(list[int]):
        def __init__(self) -> None:
            super().__init__(range(3))
            self.transform = self.given = lambda value: value

        def __copy__(self) -> None:
            raise RuntimeError("one of me is enough")

    class Endless(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            raise NotImplementedError

    dataset = Uncopied()
    assert time_samples(dataset) is not None
    assert dataset.transform is dataset.given
    assert time_samples(Passed()) is None
    assert time_samples(Endless()) is None
