"""When the compiled functions of the CPU are there: compiled.py takes seconds to load, and Numba may be missing."""

from __future__ import annotations

import itertools
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

# Loading takes a second or two of a core: nothing for a program that wants a few batches.
WORTH_BATCHES = 16
THREAD = "fastload-compile"
_asked = itertools.count()


class Compiled(NamedTuple):
    """The functions of compiled.py: `make` images of a batch, and random `words`."""

    make: Callable[..., None]
    words: Callable[..., Any]


class Coloured(NamedTuple):
    """The function of compiled_colour.py: `paint` images of a batch."""

    paint: Callable[..., None]


def compiled() -> Compiled | None:
    """Return the functions, for one more batch; None until they are compiled in a thread, or without Numba."""
    if next(_asked) < WORTH_BATCHES:
        return None
    _build(os.getpid(), Compiled)
    return ready()


def ready() -> Compiled | None:
    """Return the functions where they are there already."""
    return _done(Compiled)


def coloured() -> Coloured | None:
    """Return the functions once `compiled` has its own, and these are compiled, too: they take a while longer."""
    if ready() is None:
        return None
    _build(os.getpid(), Coloured)
    return _done(Coloured)


def wait() -> None:
    """Wait for what is being compiled in this process."""
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()


_Kind = TypeVar("_Kind", Compiled, Coloured)
# By process: a forked one has no thread that would end what its parent's began.
_begun: dict[tuple[int, type], Future[Any]] = {}


def _done(kind: type[_Kind]) -> _Kind | None:
    future = _begun.get((os.getpid(), kind))
    functions: _Kind | None = future.result() if future is not None and future.done() else None
    return functions


@lru_cache(maxsize=2)
def _build(process: int, kind: type[Compiled] | type[Coloured]) -> Future[Any]:
    """Begin to compile, once in a process."""
    future: Future[Any] = Future()

    def build() -> None:
        try:
            module = "compiled" if kind is Compiled else "compiled_colour"
            future.set_result(kind(*import_module(f"fastload.augment.{module}").build()))
        except ImportError:
            future.set_result(None)
        except Exception as e:  # whatever a Numba that does not fit its LLVM or this machine may raise
            warnings.warn(f"Numba cannot compile the CPU's fast way, so torch takes it: {e}", stacklevel=1)
            future.set_result(None)

    # Not a daemon: the interpreter must not go while it compiles.
    threading.Thread(target=build, name=THREAD).start()
    _begun[process, kind] = future
    return future


def compile_all(
    functions: Sequence[tuple[Callable[..., Any], str]], options: dict[str, Any]
) -> tuple[Callable[..., Any], ...]:
    """Return functions compiled for their signatures: seconds, or as an earlier process left them in the cache."""
    from numba import njit

    try:
        return tuple(njit(signature, cache=True, **options)(f) for f, signature in functions)
    except RuntimeError:  # no folder that can be written, to keep them in
        return tuple(njit(signature, **options)(f) for f, signature in functions)
