"""From measured shares to a word and a sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace

INPUT_BOUND_SHARE = 0.20
PARTLY_SHARE = 0.05
INTERFERENCE_EFFICIENCY = 0.9
COPY_BOUND_SHARE = 0.20
IDLE_GPU_SHARE = 0.7  # a GPU that is busy for less of the time, and does not wait for data, waits for the host
MIN_STEPS = 20
FEW_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A word people can act on, why in one sentence, and how sure that is: `high`, `medium` or `low`."""

    word: str
    why: str
    confidence: str = "high"

    def __str__(self) -> str:
        return f"{self.word}: {self.why}"


def judge(
    wait_share: float | None,
    num_steps: int,
    device_type: str,
    efficiency_share: float | None = None,
    *,
    interval: tuple[float, float] | None = None,
    start_share: float | None = None,
    busy_share: float | None = None,
    copy_share: float | None = None,
    own_share: float | None = None,
    zeros_share: float | None = None,
    pinned: bool | None = None,
) -> Verdict:
    """Judge a loop by the share of time its device waited for data.

    Args:
        wait_share: data wait over wall time, None where it was not measured.
        num_steps: steps that were measured; below 20 no verdict holds.
        device_type: `cuda`, `mps` or `cpu`.
        efficiency_share: what `efficiency` says, where loader and step were also measured alone.
        interval: of the wait share, at 95%.
        start_share: data wait of the first batches of epochs, over the wall time of whole epochs.
        busy_share: time with a kernel on the GPU, over a window of steps.
        copy_share: time in which the GPU did nothing but receive batches, likewise.
        own_share: time of the loader's own work on the device over wall time, None where it does not tell.
        zeros_share: of the driver's samples, in which nothing ran on the GPU; asked where `busy_share` is not known.
        pinned: whether batches come in pinned memory, None where that is not known.
    """
    if wait_share is None or num_steps < MIN_STEPS:
        why = f"{num_steps} steps were measured and {MIN_STEPS} are needed; run longer."
        return Verdict(word="INCONCLUSIVE", why=why, confidence="low")
    if interval is not None and interval[0] < PARTLY_SHARE and interval[1] >= INPUT_BOUND_SHARE:
        why = (
            f"the share of time waited for data lies between {interval[0]:.0%} and {interval[1]:.0%}, too far apart to "
            f"tell; run more than {num_steps} steps, on a machine that nobody else uses."
        )
        return Verdict(word="INCONCLUSIVE", why=why, confidence="low")
    verdict = _by_wait(wait_share, start_share, device_type)
    is_partly = verdict is not None and verdict.word == "PARTLY INPUT-BOUND"
    if verdict is None or (is_partly and waits_more_for_the_host(wait_share, busy_share, copy_share)):
        verdict = _by_rest(wait_share, device_type, efficiency_share, busy_share, copy_share, own_share, pinned)
    if verdict.word == "NOT INPUT-BOUND" and busy_share is None and (zeros_share or 0.0) > 1 - IDLE_GPU_SHARE:
        why = (
            f"{verdict.why} Yet the driver saw the GPU at 0 for {zeros_share:.0%} of the time: it may wait for the "
            "host; a window of traced steps would tell (fastload.Profile(loader, replay=True))."
        )
        return replace(verdict, why=why, confidence="low")
    return replace(verdict, confidence=_confidence(verdict.word, wait_share, num_steps, interval))


def waits_more_for_the_host(wait_share: float, busy_share: float | None, copy_share: float | None) -> bool:
    """Tell whether copies or late launches keep a GPU idle for longer than missing data does; False if not known."""
    if copy_share is not None and copy_share >= COPY_BOUND_SHARE:
        return True
    return busy_share is not None and busy_share < IDLE_GPU_SHARE and 1 - busy_share - wait_share > wait_share


def _by_wait(wait_share: float, start_share: float | None, device_type: str) -> Verdict | None:
    share = _waited(wait_share, device_type)
    if wait_share >= INPUT_BOUND_SHARE:
        return Verdict(word="INPUT-BOUND", why=f"{share}; faster feeding is the first thing to mend.")
    if start_share is not None and start_share >= max(PARTLY_SHARE, wait_share):
        word = "INPUT-BOUND" if start_share >= INPUT_BOUND_SHARE else "PARTLY INPUT-BOUND"
        why = f"{share} within epochs, and {start_share:.0%} of it for their first batches."
        return Verdict(word=word, why=why)
    if wait_share >= PARTLY_SHARE:
        return Verdict(word="PARTLY INPUT-BOUND", why=f"{share}; faster feeding gains at most that much.")
    return None


def _by_rest(
    wait_share: float,
    device_type: str,
    efficiency_share: float | None,
    busy_share: float | None,
    copy_share: float | None,
    own_share: float | None,
    pinned: bool | None,
) -> Verdict:
    share = _waited(wait_share, device_type)
    if copy_share is not None and copy_share >= COPY_BOUND_SHARE:
        rest = "; pinned memory copies faster." if pinned is False else ", which holds up the step."
        why = f"{share}, but spent {copy_share:.0%} of it on nothing but receiving batches{rest}"
        return Verdict(word="COPY-BOUND", why=why)
    if busy_share is not None and busy_share < IDLE_GPU_SHARE:
        why = f"{share}, yet it was busy for {busy_share:.0%} of it only: it waits for the host to launch its kernels."
        return Verdict(word="LAUNCH-BOUND", why=why)
    if efficiency_share is not None and efficiency_share < INTERFERENCE_EFFICIENCY:
        return Verdict(
            word="INTERFERENCE",
            why=f"{share}, but the run reaches {efficiency_share:.0%} of what loader and step reach alone: the loader "
            "takes cores or memory from the step; a loader that needs less of them gains up to the rest.",
        )
    why = f"{share}; faster feeding would gain next to nothing."
    if own_share is not None and own_share >= PARTLY_SHARE:
        why = f"{share}, and {own_share:.0%} of it went to the loader's own copies and augmentation there."
    return Verdict(word="NOT INPUT-BOUND", why=why)


def _waited(wait_share: float, device_type: str) -> str:
    device = "GPU" if device_type in ("cuda", "mps") else "CPU that trains"
    return f"the {device} waited {wait_share:.0%} of the time for data"


def _confidence(word: str, wait_share: float, num_steps: int, interval: tuple[float, float] | None) -> str:
    """How far the interval stays within the band that the verdict comes from."""
    if interval is not None:
        bounds = (PARTLY_SHARE, INPUT_BOUND_SHARE)
        crossed = sum(interval[0] < bound <= interval[1] for bound in bounds)
        if crossed == 0:
            return "high" if num_steps >= FEW_STEPS else "medium"
        return "medium" if crossed == 1 and num_steps >= FEW_STEPS else "low"
    near = min(abs(wait_share - PARTLY_SHARE), abs(wait_share - INPUT_BOUND_SHARE)) < 0.02
    return "medium" if near or num_steps < FEW_STEPS or word == "INTERFERENCE" else "high"


def headspace(x_real: float | None, x_replay: float | None) -> float | None:
    """Return 1 - X_real / X_replay: the share of the ceiling that the run leaves unused."""
    return 1 - x_real / x_replay if x_real and x_replay else None


def efficiency(
    x_real: float | None, x_load: float | None, x_replay: float | None, own_seconds: float = 0.0
) -> float | None:
    """Return X_real / min(X_load, X_replay): below 1, loader and step get in each other's way.

    Args:
        x_real, x_load, x_replay: images/s of the run, of the loader alone and of the step alone.
        own_seconds: per image, of the loader's own work on the device. Replayed batches are augmented already, and the
            device does one thing after the other: the ceiling is that of both together.
    """
    if not x_real or not x_load or not x_replay:
        return None
    return x_real / min(x_load, 1 / (1 / x_replay + own_seconds))
