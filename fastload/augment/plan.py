"""What a batch goes through: passes, each one resampling and a chain of colour steps, and how they are built up.

A pass is what one or a few kernels do. Transforms join the current pass as long as that changes nothing;
where their order forbids it (a crop behind a colour change, a second warp), the builder begins another one.
The plan's structure depends on the pipeline and the image size alone; what differs from image to image are its
arrays, which `arithmetic.Numbers` makes.

N images, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import IntEnum
from typing import Any, Protocol

from fastload.augment.arithmetic import Array, Numbers
from fastload.augment.maps import Geometry, choose
from fastload.errors import TransformError


class Code(IntEnum):
    """What a colour step does to an image. The values are in the kernels."""

    NOTHING = 0
    BRIGHTNESS = 1
    CONTRAST = 2
    SATURATION = 3
    HUE = 4
    GREY = 5
    INVERT = 6
    POSTERIZE = 7
    SOLARIZE = 8
    AUTOCONTRAST = 9
    EQUALIZE = 10
    SHARPNESS = 11
    BLUR = 12
    ERASE = 13


STENCILS = frozenset({Code.SHARPNESS, Code.BLUR})
STATISTICS = frozenset({Code.CONTRAST, Code.AUTOCONTRAST, Code.EQUALIZE})


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Normal noise instead of a value: `z * scale + offset` in 0..1 units, per channel; drawn by `number`."""

    number: int
    scale: tuple[float, ...]
    offset: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One colour operation, which may be another one for each image.

    Attributes:
        code: a Code for each image, [N].
        values: up to four numbers for each image: a factor (levels, threshold, sigma), or the box
            (top, left, bottom, right) that is erased.
        kinds: the codes that may occur.
        group: steps of one group hold at most one of STATISTICS for each image.
        radius: (vertical, horizontal) pixels that BLUR reads on either side.
        fill: what ERASE writes, in 0..1 units.
        noise: instead of `fill`.
    """

    code: Array
    values: tuple[Array, ...] = ()
    kinds: frozenset[Code]
    group: int = 0
    radius: tuple[int, int] = (0, 0)
    fill: tuple[float, ...] = (0.0,)
    noise: Noise | None = None


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One resampling, the colour steps behind it, and how many channels come out: as many as went in, 1 or 3."""

    geometry: Geometry
    steps: tuple[Step, ...] = ()
    channels: int


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The weighted sum of the image and of what each chain makes of it; `weights[0]` is the image's own."""

    weights: tuple[Array, ...]
    chains: tuple[tuple[Pass, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """MixUp or CutMix with the image before this one in the batch.

    Attributes:
        cut: which images take a box instead of a share, [N].
        share: of the image itself, in the pixels of MixUp and in the labels of both, [N].
        box: top, left, bottom, right of what CutMix takes from the other, in pixels, [N] each.
        classes: columns of the labels; None where labels come as rows already.
        cuts, blends: whether either may occur.
    """

    cut: Array
    share: Array
    box: tuple[Array, Array, Array, Array]
    classes: int | None
    cuts: bool
    blends: bool


Node = Pass | Mixture


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All a batch goes through, from stored pixels to the output, before scale and offset.

    Attributes:
        nodes: one after the other; the last one is a Pass.
        mixing: what happens between images, last of all.
        size: output pixels.
        channels: of the output.
    """

    nodes: tuple[Node, ...]
    mixing: tuple[Mixing, ...]
    size: tuple[int, int]
    channels: int


class Op(Protocol):
    """One transform of a pipeline."""

    def add(self, builder: Builder, number: int) -> None:
        """Add it to the plan; `number` keys its draws."""
        ...


Numbered = tuple[int, Op]


@dataclass
class Builder:
    """The plan so far.

    Attributes:
        xp: makes the arrays.
        channels: of the image at this place.
        gate: the images that the next transforms are for; None for all.
    """

    xp: Numbers
    geometry: Geometry
    channels: int
    nodes: list[Node] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    mixing: list[Mixing] = field(default_factory=list)
    gate: Array | None = None
    _groups: int = 0

    def __post_init__(self) -> None:
        self._fresh = self.geometry

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) of the image at this place."""
        return self.geometry.out

    def new_group(self) -> int:
        """Return the name of a group of steps that no other has."""
        self._groups += 1
        return self._groups

    def move(
        self, change: Callable[[Geometry], Geometry], *, joins: Callable[[Geometry], bool], mirror: bool = False
    ) -> None:
        """Add a geometric transform.

        Args:
            change: what it does to the geometry.
            joins: whether it can be part of the resampling so far.
            mirror: colour steps in front of it do not mind: it may go before them.
        """
        if self.mixing:
            raise TransformError("MixUp and CutMix come last; put it in front of them.")
        free = mirror and not any(Code.ERASE in s.kinds for s in self.steps)
        if (self.steps and not free) or not joins(self.geometry):
            self.flush()
        changed = change(self.geometry)
        for fill in (changed.fill if changed.padded else (0.0,), changed.warp_fill or (0.0,)):
            if len(fill) not in (1, self.channels):
                raise TransformError(f"its fill has {len(fill)} channels, the images have {self.channels}.")
        self.geometry = changed if self.gate is None else choose(self.xp, self.gate, changed, self.geometry)

    def colour(self, code: Array, values: Sequence[Array] = (), *, kinds: set[Code], **options: Any) -> None:
        """Add a colour step."""
        if self.mixing:
            raise TransformError("MixUp and CutMix come last; put it in front of them.")
        if self.channels not in (1, 3) and kinds != {Code.ERASE}:
            raise TransformError(f"it is for grey or RGB images, not {self.channels} channels.")
        code = self.xp.where(self.gate, code, 0) if self.gate is not None else code
        group = options.pop("group", None) or self.new_group()
        self.steps.append(Step(code=code, values=tuple(values), kinds=frozenset(kinds), group=group, **options))

    def flush(self) -> None:
        """End the current pass."""
        if self.steps or self.geometry is not self._fresh:
            self._append()

    def set_channels(self, channels: int) -> None:
        """Go on with another number of channels: the first one alone, or the only one three times."""
        self.channels = channels
        self._append()

    def _append(self) -> None:
        self.nodes.append(Pass(geometry=self.geometry, steps=tuple(self.steps), channels=self.channels))
        self.geometry, self.steps = Geometry.identity(*self.size), []
        self._fresh = self.geometry

    def select(
        self, conditions: Sequence[Array], branches: Sequence[Sequence[Numbered]], *, exhaustive: bool = False
    ) -> None:
        """Add branch i for the images where condition i holds; at most one of them holds, or exactly one."""
        outer, start = self.gate, self._state()
        results = []
        for branch in branches:
            self._restore(start)
            self.gate = None
            add_all(self, branch)
            results.append(self._state())
        self._restore(start)
        self.gate = outer
        lengths = (len(start.nodes), len(start.mixing))
        alone = all((len(r.nodes), len(r.mixing)) == lengths for r in results)
        if alone and all(len(r.steps) == len(start.steps) for r in results):
            # Geometry alone: each branch starts at the image as it was, so they may differ in between.
            chosen = results[0].geometry if exhaustive else start.geometry
            for condition, result in zip(conditions[exhaustive:], results[exhaustive:], strict=True):
                chosen = choose(self.xp, condition, result.geometry, chosen)
            self.geometry = chosen if outer is None else choose(self.xp, outer, chosen, start.geometry)
            return
        if outer is not None:
            conditions = [outer & c for c in conditions]
        if alone and all(r.geometry is start.geometry for r in results) and self._zip(conditions, results, start):
            return
        for condition, branch in zip(conditions, branches, strict=True):
            self.gate = condition
            add_all(self, branch)
        self.gate = outer

    def finish(self) -> Plan:
        """Return the plan."""
        size = self.size
        self.flush()
        if not self.nodes or isinstance(self.nodes[-1], Mixture):
            self.nodes.append(Pass(geometry=Geometry.identity(*size), channels=self.channels))
        return Plan(nodes=tuple(self.nodes), mixing=tuple(self.mixing), size=size, channels=self.channels)

    def _zip(self, conditions: Sequence[Array], results: Sequence[_State], start: _State) -> bool:
        """Add the branches' steps side by side, where they are colour alone; return whether that was possible."""
        tails = [r.steps[len(start.steps) :] for r in results]
        groups: dict[tuple[int, ...], int] = {}
        merged = []
        for i in range(max(len(t) for t in tails)):
            row = [(c, t[i]) for c, t in zip(conditions, tails, strict=True) if i < len(t)]
            special = [s for _, s in row if s.kinds & {Code.BLUR, Code.ERASE}]
            if len(special) > 1:
                return False
            key = tuple(t[i].group if i < len(t) else 0 for t in tails)
            code: Array = 0
            values: list[Array] = [0.0] * max(len(s.values) for _, s in row)
            for condition, step in row:
                code = self.xp.where(condition, step.code, code)
                for j, value in enumerate(step.values):
                    values[j] = self.xp.where(condition, value, values[j])
            one = special[0] if special else row[0][1]
            merged.append(replace(
                one, code=code, values=tuple(values), kinds=frozenset().union(*(s.kinds for _, s in row)),
                group=groups.setdefault(key, self.new_group()),
            ))  # fmt: skip
        self.steps += merged
        return True

    def _state(self) -> _State:
        return _State(self.geometry, tuple(self.steps), tuple(self.nodes), tuple(self.mixing), self.channels)

    def _restore(self, state: _State) -> None:
        self.geometry, self.steps, self.nodes = state.geometry, list(state.steps), list(state.nodes)
        self.mixing, self.channels = list(state.mixing), state.channels


@dataclass(frozen=True, eq=False)
class _State:
    geometry: Geometry
    steps: tuple[Step, ...]
    nodes: tuple[Node, ...]
    mixing: tuple[Mixing, ...]
    channels: int


def add_all(builder: Builder, ops: Sequence[Numbered]) -> None:
    """Add transforms one after the other; a mistake names the transform's number."""
    for number, op in ops:
        try:
            op.add(builder, number)
        except TransformError as e:
            if str(e).startswith("transform "):
                raise
            raise TransformError(f"transform {number} ({type(op).__name__}): {e}") from None


def rows_of(part: Any) -> list[Array]:
    """Return every array of a plan, or of a part of it, in a fixed order."""
    found: list[Array] = []
    transfer(part, lambda array: found.append(array))
    return found


def transfer(part: Any, change: Callable[[Array], Any]) -> Any:
    """Return a copy of a plan (or a part) with each of its per-image numbers replaced by `change` of it.

    Per-image numbers are the fields annotated `Array` (alone or in tuples).
    """
    if is_dataclass(part) and not isinstance(part, type):
        changes = {}
        for f in fields(part):
            value = getattr(part, f.name)
            if "Array" in str(f.type) or str(f.type).startswith("Matrix"):
                changes[f.name] = tuple(change(v) for v in value) if isinstance(value, tuple) else (
                    None if value is None else change(value)
                )  # fmt: skip
            else:
                changes[f.name] = transfer(value, change)
        return replace(part, **changes)
    if isinstance(part, tuple):
        return tuple(transfer(p, change) for p in part)
    return part
