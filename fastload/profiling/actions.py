"""What to do next: from verdict and cause to commands that can be pasted. Pure; strings of the user's are quoted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from fastload.errors import printable
from fastload.profiling.report import Action, Loop, ResidentGain
from fastload.profiling.verdict import INPUT_BOUND_SHARE, PARTLY_SHARE

MEASURED, UPPER_BOUND = "measured", "upper bound"
WORTH = 1.05


def stored_side(size: int) -> int:
    """Return the side to store images with that are trained on with `size`: an eighth is left for crops to move in."""
    return round(size * 8 / 7)


def resident_bytes(num_images: int, store: int) -> int:
    """Return the memory of so many images of `store` x `store` pixels in three channels."""
    return num_images * store * store * 3


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What the advice is made of.

    Attributes:
        loop: what it is about.
        gain: what converting would give, where that is known.
        source: the folder of images, where it is known.
        library: torchvision's class that reads `source` as its root; None of a folder that is read as it is.
        converted: whether the loop is fed by a converted dataset already.
        store: side to convert to, in pixels, where it is known.
        num_cores: that this process may use.
        num_workers: of the DataLoader, None of others.
        assume_gpu_rate: images/s of a GPU that is not here.
    """

    loop: Loop
    gain: ResidentGain | None = None
    source: str | None = None
    library: str | None = None
    converted: bool = False
    store: int | None = None
    num_cores: int = 1
    num_workers: int | None = None
    assume_gpu_rate: float | None = None


def advise(advice: Advice) -> tuple[Action, ...]:
    """Return what to do, the most useful first; the last ones are what-ifs."""
    word = advice.loop.verdict.word
    actions: list[Action] = []
    if word == "INCONCLUSIVE":
        actions.append(Action(text=f"Measure again: {advice.loop.verdict.why}"))
    elif word in ("INPUT-BOUND", "PARTLY INPUT-BOUND"):
        actions += _feed_faster(advice)
    elif word == "INTERFERENCE":
        actions += [_convert(advice)] if not advice.converted else []
        actions.append(Action(text="Give the loader fewer workers, or the step more cores."))
    elif word == "COPY-BOUND":
        actions.append(_pin(advice))
    elif word == "LAUNCH-BOUND":
        actions += _launch(advice)
    else:
        actions.append(_nothing(advice))
    if advice.assume_gpu_rate is not None:
        actions.append(_on_a_gpu(advice, advice.assume_gpu_rate))
    return tuple(actions)


def _feed_faster(advice: Advice) -> Iterator[Action]:
    cause = None if advice.loop.cause is None else advice.loop.cause.word
    share = advice.loop.wait.share or 0.0
    if cause == "epoch-starts" and advice.num_workers:
        yield Action(
            text="Keep the workers between epochs.", gain=_without(_edge_share(advice)), basis=UPPER_BOUND,
            command=f"DataLoader(..., num_workers={advice.num_workers}, persistent_workers=True)",
        )  # fmt: skip
    if not advice.converted:
        yield _convert(advice)
    more = max(1, advice.num_cores - 1)
    if cause == "one-worker" and more > (advice.num_workers or 0):
        yield Action(
            text="Let more processes load.", gain=_without(share), basis=UPPER_BOUND,
            command=f"DataLoader(..., num_workers={more}, persistent_workers=True)",
        )  # fmt: skip
    if cause == "starved-cores":
        yield Action(text=f"Ask for more than {advice.num_cores} cores per GPU, or leave the loader fewer workers.")
    if advice.converted:
        yield Action(text="Do less per image, or make the step's own batches larger: samples lie in memory already.",
                     gain=_without(share), basis=UPPER_BOUND)  # fmt: skip


def _convert(advice: Advice) -> Action:
    gain, share = advice.gain, advice.loop.wait.share or 0.0
    speedup, basis = (gain.speedup, gain.basis) if gain is not None else (_without(share), UPPER_BOUND)
    source = "FOLDER" if advice.source is None else shlex.quote(printable(advice.source))
    if advice.library is not None:
        source = f"torchvision:{advice.library} --root {source}"
    size = f" --size {advice.store}" if advice.store else ""
    text = "Convert the images once, and load them with fastload.Loader."
    if speedup is not None and speedup < WORTH:
        text = f"Converting the images would gain next to nothing ({speedup:.2f} times the images/s)."
    return Action(text=text, command=f"fastload convert {source}{size}", gain=speedup, basis=basis)


def _pin(advice: Advice) -> Action:
    busy = advice.loop.gpu.busy_share
    return Action(
        text="Copy from pinned memory, without waiting: pin_memory=True, and images.to(device, non_blocking=True).",
        command="DataLoader(..., pin_memory=True)", gain=1 / busy if busy else None,
        basis=UPPER_BOUND if busy else None,
    )  # fmt: skip


def _launch(advice: Advice) -> Iterator[Action]:
    busy = advice.loop.gpu.busy_share
    gain, basis = (1 / busy, UPPER_BOUND) if busy else (None, None)
    yield Action(
        text="Take .item(), .cpu() and prints of tensors out of the step: add up on the device, look every 50 steps.",
        gain=gain, basis=basis,
    )  # fmt: skip
    yield Action(text="Fuse the launches.", command="model.compile(mode='reduce-overhead')", gain=gain, basis=basis)


def _nothing(advice: Advice) -> Action:
    """Say that the input is not the problem, and by how little a conversion would help."""
    command = "torch.set_float32_matmul_precision('high')" if advice.loop.gpu.memory_bytes else None
    step = "Look at the step: mixed precision, a larger batch, compile."
    if advice.converted:
        return Action(text=f"The input is not the problem. {step}", command=command)
    gain, share = advice.gain, advice.loop.wait.share or 0.0
    speedup, basis = (gain.speedup, gain.basis) if gain is not None else (_without(share), UPPER_BOUND)
    rest = f"converting would gain {max(0.0, (speedup or 1.0) - 1):.0%} of the images/s"
    most = "at most, " if basis == UPPER_BOUND else ""
    text = f"The input is not the problem; {most}{rest}. {step}"
    return Action(text=text, command=command, gain=speedup, basis=basis)


def _on_a_gpu(advice: Advice, rate: float) -> Action:
    load = advice.loop.throughput.x_load
    if load is None:
        return Action(text="What a GPU would wait was not measured: it needs the loader's own images/s (X_load).")
    share = max(0.0, 1 - load.value / rate)
    word = "NOT INPUT-BOUND"
    if share >= PARTLY_SHARE:
        word = "INPUT-BOUND" if share >= INPUT_BOUND_SHARE else "PARTLY INPUT-BOUND"
    text = (
        f"A GPU that trains {rate:,.0f} images/s would wait {share:.0%} of the time for {advice.loop.name} with "
        f"{load.value:,.0f} images/s: {word}."
    )
    return Action(text=text, gain=max(1.0, rate / load.value), basis=UPPER_BOUND)


def _edge_share(advice: Advice) -> float:
    start, wall = advice.loop.wait.start_seconds, (advice.loop.step_seconds.mean or 0.0) * advice.loop.steps.count
    return 0.0 if not start or not wall else start / (start + wall)


def _without(share: float) -> float | None:
    """Return times the images/s where nothing waits any more: all the rest of the time stays."""
    return 1 / (1 - share) if share < 1 else None
