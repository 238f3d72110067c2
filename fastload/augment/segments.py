"""How a pass is cut into what one kernel does: `fused` launches them, `saying` counts them. Needs no Triton."""

from __future__ import annotations

from dataclasses import dataclass

from fastload.augment.maps import Geometry
from fastload.augment.plan import STATISTICS, STENCILS, Code, Pass, Step


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What one launch of `kernels.apply` does of a pass: it starts with a geometry or a stencil."""

    geometry: Geometry | None
    stencil: Step | None
    steps: tuple[Step, ...]

    @property
    def blurs(self) -> bool:
        """Return whether a kernel of its own blurs down the columns first."""
        return self.stencil is not None and Code.BLUR in self.stencil.kinds

    @property
    def measures(self) -> bool:
        """Return whether its steps need statistics, which a reduction takes first."""
        return any(s.kinds & STATISTICS for s in self.steps)

    @property
    def equalizing(self) -> tuple[Step, ...]:
        """Return the steps that need a histogram, which has to be zeros first, and a table of it."""
        return tuple(s for s in self.steps if Code.EQUALIZE in s.kinds)

    @property
    def num_launches(self) -> int:
        """Return how many kernels it takes."""
        return 1 + self.blurs + self.measures + 2 * bool(self.equalizing)


def segments(node: Pass) -> list[Segment]:
    """Cut a pass where a stencil reads neighbours, and where an image may need a second statistic."""
    found: list[Segment] = []
    geometry: Geometry | None = node.geometry
    stencil: Step | None = None
    steps: list[Step] = []
    group = 0

    def cut() -> None:
        nonlocal geometry, stencil, steps, group
        found.append(Segment(geometry=geometry, stencil=stencil, steps=tuple(steps)))
        geometry, stencil, steps, group = None, None, [], 0

    for step in node.steps:
        if step.kinds & STATISTICS:
            if group and group != step.group:
                cut()
            group = step.group
        if step.kinds - STENCILS:
            steps.append(step)
        if step.kinds & STENCILS:
            cut()
            stencil = step
    cut()
    return found
