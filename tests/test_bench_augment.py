"""How `bench augment` reads a GPU's clock: on a GPU that is played here, and on a real one."""

import pytest
import torch

from bench import augment
from bench.figures import _augment

HERTZ = 2e9


class PlayedGpu:
    """A host that launches and a GPU that follows, in seconds of a clock of their own; also in place of events."""

    now = free_at = 0.0

    def launch(self, seconds: float, *, host: float = 0.0) -> None:
        """Take the host's time, then the GPU's, once it is free."""
        PlayedGpu.now += host
        PlayedGpu.free_at = max(self.now, self.free_at) + seconds

    def record(self) -> None:
        self.time = max(self.now, self.free_at)

    def elapsed_time(self, later: "PlayedGpu") -> float:
        return 1000 * (later.time - self.time)

    def synchronize(self) -> None:
        PlayedGpu.now = max(self.now, self.free_at)


@pytest.mark.parametrize(("host", "on_gpu"), [(50e-6, 3e-6), (5e-6, 70e-6), (4e-3, 1e-3)])
def test_the_time_of_a_gpu_is_not_that_of_launching(
    host: float, on_gpu: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = PlayedGpu()
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: PlayedGpu())
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: gpu.launch(cycles / HERTZ))
    monkeypatch.setattr(augment.time, "perf_counter", lambda: gpu.now)

    def run() -> None:
        for _ in range(12):
            gpu.launch(on_gpu, host=host)

    assert augment._time(run, torch.device("cuda", 0)) == (pytest.approx(12 * on_gpu), pytest.approx(12 * host))


def test_tracing_warns_of_nothing_and_what_was_not_traced_is_not_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, host_alone = torch.profiler.profile, [torch.profiler.ProfilerActivity.CPU]
    # As without CUPTI: nothing of a GPU is seen. What torch would warn of once, it has not warned of yet.
    monkeypatch.setattr(torch.profiler, "profile", lambda activities, **more: traced(activities=host_alone, **more))
    monkeypatch.setattr(torch.profiler.profiler, "_WARNINGS_SHOWN", set())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert augment._launches(lambda: torch.ones(3)) is None


@pytest.mark.gpu
def test_a_real_gpu_is_timed_and_traced() -> None:
    ones = torch.ones(8, device="cuda")

    def run() -> None:
        for _ in range(100):
            ones.add_(1)

    for _ in range(3):
        seconds, host = augment._time(run, torch.device("cuda", 0))
    assert 0 < seconds < host, "kernels of a few elements end sooner than the host launches them"
    assert augment._launches(run) == 100


def test_a_table_has_two_digits_of_what_a_gpu_takes() -> None:
    def row(ms: float) -> dict[str, float]:
        return {"ms": ms, "fastload_is_times_faster": 2.0}

    result = {"settings": {"batch_size": 512}, "results": {
        "crop": {"fastload": row(0.1834), "torchvision": row(9.96)}, "policies": {"fastload": row(9.949)},
        "jitter": {"fastload": row(1.0), "torchvision": row(1124.801)},
    }}  # fmt: skip
    assert _augment(result).splitlines()[2:] == [
        "| crop | 0.18 | 10 (2.0x) |", "| policies | 9.9 |  |", "| jitter | 1.0 | 1,125 (2.0x) |"
    ]  # fmt: skip
