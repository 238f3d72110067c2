"""From measured shares to a word and a sentence."""

from __future__ import annotations

from dataclasses import dataclass

INPUT_BOUND_SHARE = 0.20
PARTLY_SHARE = 0.05
INTERFERENCE_EFFICIENCY = 0.9
MIN_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A word people can act on, and why in one sentence."""

    word: str
    why: str

    def __str__(self) -> str:
        return f"{self.word}: {self.why}"


def judge(wait_share: float | None, num_steps: int, device_type: str, efficiency_share: float | None = None) -> Verdict:
    """Judge a loop by the share of time its device waited for data.

    Args:
        wait_share: data wait over wall time, None where it was not measured.
        num_steps: steps that were measured; below 20 no verdict holds.
        device_type: `cuda`, `mps` or `cpu`.
        efficiency_share: what `efficiency` says, where loader and step were also measured alone.
    """
    if wait_share is None or num_steps < MIN_STEPS:
        return Verdict(
            word="INCONCLUSIVE",
            why=f"{num_steps} steps were measured and {MIN_STEPS} are needed; run longer.",
        )
    device = "GPU" if device_type in ("cuda", "mps") else "CPU that trains"
    share = f"the {device} waited {wait_share:.0%} of the time for data"
    if wait_share >= INPUT_BOUND_SHARE:
        return Verdict(word="INPUT-BOUND", why=f"{share}; faster feeding is the first thing to mend.")
    if wait_share >= PARTLY_SHARE:
        return Verdict(word="PARTLY INPUT-BOUND", why=f"{share}; faster feeding gains at most that much.")
    if efficiency_share is not None and efficiency_share < INTERFERENCE_EFFICIENCY:
        return Verdict(
            word="INTERFERENCE",
            why=f"{share}, but the run reaches {efficiency_share:.0%} of what loader and step reach alone: the loader "
            "takes cores or memory from the step; a loader that needs less of them gains up to the rest.",
        )
    return Verdict(word="NOT INPUT-BOUND", why=f"{share}; faster feeding would gain next to nothing.")


def headspace(x_real: float | None, x_replay: float | None) -> float | None:
    """Return 1 - X_real / X_replay: the share of the ceiling that the run leaves unused."""
    return 1 - x_real / x_replay if x_real and x_replay else None


def efficiency(x_real: float | None, x_load: float | None, x_replay: float | None) -> float | None:
    """Return X_real / min(X_load, X_replay): below 1, loader and step get in each other's way."""
    return x_real / min(x_load, x_replay) if x_real and x_load and x_replay else None
