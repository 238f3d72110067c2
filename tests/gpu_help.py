"""What tests of the GPU's side share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from unittest import mock

import torch


def asks_for_gpus(words: Sequence[str]) -> bool:
    """Tell whether pytest's command line asks for the tests marked gpu: by what stands behind its last -m."""
    chosen = ""
    for word, following in pairwise([*words, ""]):
        if found := re.fullmatch(r"-[hlqsvx]*m=?(.*)", word):
            chosen = found[1] or following
    return re.search(r"\bgpu\b", re.sub(r"\bnot\s+\w+", "", chosen)) is not None


@contextmanager
def waits_noted() -> Iterator[list[str]]:
    """Note every call that makes the host wait for a GPU.

    torch's own sync debug mode raises for copies and `.item()`, and does not look at calls that ask for waiting.
    """
    noted: list[str] = []

    def noting(kind: str) -> Callable[..., None]:
        return lambda *_: noted.append(kind)

    has_mode = torch.backends.cuda.is_built()
    before = torch.cuda.get_sync_debug_mode() if has_mode else 0
    with (
        mock.patch.object(torch.cuda, "synchronize", noting("device")),
        mock.patch.object(torch.cuda.Event, "synchronize", noting("event")),
        mock.patch.object(torch.cuda.Stream, "synchronize", noting("stream")),
    ):
        try:
            if has_mode:
                torch.cuda.set_sync_debug_mode("error")
            yield noted
        finally:
            if has_mode:
                torch.cuda.set_sync_debug_mode(before)
