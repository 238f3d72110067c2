"""When the compiled functions of the CPU are there: compiled.py takes seconds to load, and Numba may be missing."""

from __future__ import annotations

import itertools
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, NamedTuple

# Loading takes a second or two of a core: nothing for a program that wants a few batches.
WORTH_BATCHES = 16
_asked = itertools.count()


class Compiled(NamedTuple):
    """The functions of compiled.py: `make` images of a batch, and random `words`."""

    make: Callable[..., None]
    words: Callable[..., Any]


def compiled() -> Compiled | None:
    """Return the functions, for one more batch; None until they are compiled in a thread, or without Numba."""
    if next(_asked) < WORTH_BATCHES:
        return None
    _build(os.getpid())
    return ready()


def ready() -> Compiled | None:
    """Return the functions where they are there already."""
    future = _begun.get(os.getpid())
    return future.result() if future is not None and future.done() else None


# By process: a forked one has no thread that would end what its parent's began.
_begun: dict[int, Future[Compiled | None]] = {}


@lru_cache(maxsize=1)
def _build(process: int) -> Future[Compiled | None]:
    """Begin to compile, once in a process."""
    future: Future[Compiled | None] = Future()

    def build() -> None:
        try:
            from fastload.augment.compiled import build

            future.set_result(Compiled(*build()))
        except ImportError:
            future.set_result(None)
        except Exception as e:  # whatever a Numba that does not fit its LLVM or this machine may raise
            warnings.warn(f"Numba cannot compile the CPU's fast way, so torch takes it: {e}", stacklevel=1)
            future.set_result(None)

    # Not a daemon: the interpreter must not go while it compiles.
    threading.Thread(target=build, name="fastload-compile").start()
    _begun[process] = future
    return future
