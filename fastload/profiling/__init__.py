"""Where the time of a training loop goes. Watches any iterable of batches from outside.

`timing` measures data wait and step times, `system`, `nvml`, `busy` and `samples` what goes on beside; `loops` makes of
it what `report` describes, with a cause (`causes`), a verdict (`verdict`) and what to do (`actions`). `intervals` is
their arithmetic, `ranks` makes one report of several processes'.
"""

from __future__ import annotations

from fastload.profiling.timing import Timing, WaitMeter
from fastload.profiling.verdict import judge

__all__ = ["Timing", "WaitMeter", "judge"]
