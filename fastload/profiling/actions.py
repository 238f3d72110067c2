"""What to do next: from verdict and cause to commands that can be pasted. Pure; strings of the user's are quoted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastload.errors import printable
from fastload.profiling.report import Action, Loop, ResidentGain
from fastload.profiling.verdict import INPUT_BOUND_SHARE, PARTLY_SHARE

MEASURED, UPPER_BOUND = "measured", "upper bound"
WORTH = 1.05
TRAIN = ("train", "training")


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
        converted: whether its samples lie in memory, decoded: converting would give no more.
        are_images: whether its batches are images; nothing else is converted.
        store: side to convert to, in pixels, where it is known.
        num_cores: that this process may use, shared with no other rank.
        num_workers: of the DataLoader, None of others.
        persistent_workers: whether these outlive an epoch already, None where that is not known.
        pinned: whether batches come in pinned memory already, likewise.
        assume_gpu_rate: images/s of a GPU that is not here.
    """

    loop: Loop
    gain: ResidentGain | None = None
    source: str | None = None
    library: str | None = None
    converted: bool = False
    are_images: bool = True
    store: int | None = None
    num_cores: int = 1
    num_workers: int | None = None
    persistent_workers: bool | None = None
    pinned: bool | None = None
    assume_gpu_rate: float | None = None

    @property
    def is_convertible(self) -> bool:
        """Whether there is anything left to convert."""
        return self.are_images and not self.converted


def folder_to_convert(root: str | None, library: str | None) -> str | None:
    """Return the folder a dataset reads, or the one that it is the training split of: to be converted with the others.

    Args:
        root: the dataset's own folder, where it is known.
        library: torchvision's class that reads it, whose splits are not folders.
    """
    is_split = root and not library and Path(root).name.lower() in TRAIN
    return str(Path(root).parent) if root and is_split else root


def advise(advice: Advice) -> tuple[Action, ...]:
    """Return what to do, the most useful first; the last ones are what-ifs."""
    word, waited = advice.loop.verdict.word, advice.loop.wait.share or 0.0
    actions: list[Action] = []
    if word == "INCONCLUSIVE":
        actions.append(Action(text=f"Measure again: {advice.loop.verdict.why}"))
    elif word in ("INPUT-BOUND", "PARTLY INPUT-BOUND"):
        actions += _feed_faster(advice)
    elif word == "INTERFERENCE":
        actions += [_convert(advice)] if advice.is_convertible else []
        actions.append(Action(text="Give the loader fewer workers, or the step more cores."))
    elif word == "COPY-BOUND":
        actions.append(_pin(advice))
        actions += _feed_faster(advice) if waited >= PARTLY_SHARE else []
    elif word == "LAUNCH-BOUND":
        actions += _launch(advice)
        actions += _feed_faster(advice) if waited >= PARTLY_SHARE else []
    else:
        actions.append(_nothing(advice))
    if advice.assume_gpu_rate is not None:
        actions.append(_on_a_gpu(advice, advice.assume_gpu_rate))
    return tuple(actions)


def _feed_faster(advice: Advice) -> Iterator[Action]:
    cause = None if advice.loop.cause is None else advice.loop.cause.word
    share = advice.loop.wait.share or 0.0
    if cause == "epoch-starts" and advice.num_workers and not advice.persistent_workers:
        yield Action(
            text="Keep the workers between epochs.", gain=_without(_edge_share(advice)), basis=UPPER_BOUND,
            command=f"DataLoader(..., num_workers={advice.num_workers}, persistent_workers=True)",
        )  # fmt: skip
    if advice.is_convertible:
        yield _convert(advice)
    more, now = max(1, advice.num_cores - 1), advice.num_workers
    is_short = cause == "one-worker" or (now is not None and cause not in ("epoch-starts", "starved-cores"))
    if is_short and more > (now or 0):
        yield Action(
            text="Let more processes load.", gain=_without(share), basis=UPPER_BOUND,
            command=f"DataLoader(..., num_workers={more}, persistent_workers=True)",
        )  # fmt: skip
    if cause == "starved-cores":
        yield Action(text=f"Ask for more than {advice.num_cores} cores per GPU, or leave the loader fewer workers.")
    if advice.converted:
        yield Action(text="Do less per sample, or make the step's own batches larger: samples lie in memory already.",
                     gain=_without(share), basis=UPPER_BOUND)  # fmt: skip
    elif not advice.are_images:
        yield Action(text="Do less per sample: what every epoch computes anew can be computed once, and stored.",
                     gain=_without(share), basis=UPPER_BOUND)  # fmt: skip


def _convert(advice: Advice) -> Action:
    gain, share, cause = advice.gain, advice.loop.wait.share or 0.0, advice.loop.cause
    if cause is not None and cause.word == "epoch-starts":
        share = max(share, _edge_share(advice))
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
    busy, command = advice.loop.gpu.busy_share, None
    copy = "images.to(device, non_blocking=True)"
    if advice.converted:
        text, command = "Keep the samples in GPU memory, if they fit there.", 'fastload.Loader(..., placement="gpu")'
    elif advice.pinned is None:
        text = f"Copy without waiting, {copy}, and from pinned memory where batches do not lie in it."
    elif advice.pinned:
        text = f"Copy without waiting, {copy}, and fewer bytes: uint8 that the GPU itself makes floats of."
    else:
        text = f"Copy from pinned memory, without waiting: pin_memory=True, and {copy}."
        command = "DataLoader(..., pin_memory=True)"
    gain, basis = (1 / busy, UPPER_BOUND) if busy else (None, None)
    return Action(text=text, command=command, gain=gain, basis=basis)


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
    if not advice.is_convertible:
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
