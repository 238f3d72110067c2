"""The line that says, while a loop runs, how it does."""

from __future__ import annotations

import sys
import time

from fastload.profiling.timing import WaitMeter

SECONDS_BETWEEN = 0.5


class LiveLine:
    """One line on standard error, written over twice a second; nothing where that is no terminal, or no more.

    Args:
        shown: False writes nothing, e.g. on all ranks but the first.
    """

    def __init__(self, *, shown: bool = True) -> None:
        try:
            self._shown = shown and sys.stderr.isatty()
        except (AttributeError, ValueError):  # None, of a process that was started without one; or closed
            self._shown = False
        self._next = time.monotonic() + SECONDS_BETWEEN
        self._written = False

    def tick(self, meter: WaitMeter) -> None:
        """Write it where it is time to."""
        if not self._shown or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SECONDS_BETWEEN
        share = meter.share_so_far
        wait = "" if share is None else f", data wait {share:.1%}"
        # To the end of the line is cleared: the last one may have been longer.
        self._written = self._write(f"\r{meter.num_steps:,} steps{wait}\x1b[K")

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if self._written:
            self._write("\r\x1b[K")
            self._written = False

    def _write(self, text: str) -> bool:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):  # a terminal that was closed stays so
            self._shown = False
        return self._shown
