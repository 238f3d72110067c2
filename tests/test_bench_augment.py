"""How `bench augment` reads a GPU's clock: on a GPU that is played here, and on a real one."""

import pytest
import torch

from bench import augment


def test_tracing_warns_of_nothing_and_what_was_not_traced_is_not_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, host_alone = torch.profiler.profile, [torch.profiler.ProfilerActivity.CPU]
    # As without CUPTI: nothing of a GPU is seen. What torch would warn of once, it has not warned of yet.
    monkeypatch.setattr(torch.profiler, "profile", lambda activities, **more: traced(activities=host_alone, **more))
    monkeypatch.setattr(torch.profiler.profiler, "_WARNINGS_SHOWN", set())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert augment._launches(lambda: torch.ones(3)) is None
