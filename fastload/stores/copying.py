"""Batches on their way to a GPU, beside the step that uses the one before."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

# Steps that were begun and have not read their batch yet. With the batch that is being copied that makes three, as
# placement counts; a host that is far ahead of light steps would else keep as many batches as a GPU's queue is long.
STEPS_AHEAD = 2


class Copies:
    """Copies on a stream of their own to one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._used: deque[torch.cuda.Event] = deque(maxlen=STEPS_AHEAD)  # nobody waits where nothing is copied

    def begin(self, samples: torch.Tensor, labels: torch.Tensor) -> Copy:
        """Begin a copy, as soon as the batch of STEPS_AHEAD steps ago was read."""
        while len(self._used) >= STEPS_AHEAD:
            self._used.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            samples = samples.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
        return Copy(samples=samples, labels=labels, event=self._stream.record_event(), copies=self)

    def end(self) -> None:
        """Note that the step that is under way has launched all that reads its batch as it was copied.

        To be called once nobody holds that batch: its memory may then be taken again as soon as it was read.
        """
        self._used.append(torch.cuda.current_stream(self.device).record_event())


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Samples and labels on a GPU, whole once `event` has happened."""

    samples: torch.Tensor
    labels: torch.Tensor
    event: torch.cuda.Event
    copies: Copies

    def join(self) -> None:
        """Let the stream that uses them wait for them."""
        stream = torch.cuda.current_stream(self.copies.device)
        stream.wait_event(self.event)
        # The memory belongs to the copying stream: without this it would be given away while still in use.
        self.samples.record_stream(stream)
        self.labels.record_stream(stream)
