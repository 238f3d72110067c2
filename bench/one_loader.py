"""One loader in a process of its own: told what to make, it makes it at the first line that comes, and runs an epoch at
each one behind it.

Two OpenMP runtimes in one process (torch's and numba's), threads and processes that peers leave behind: measured
together, loaders slow each other down tenfold. Apart, and in turn, they only share the machine.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fastload.augment import compiling
from fastload.errors import ConfigError
from fastload.memory import resident_bytes


class Child:
    """A loader in a process of its own.

    Args:
        recipe: `maker`, the name of a function of bench/peers.py, and its arguments; fit for JSON. With `settled`
            the process has compiled what it compiles once before the loader is made; `threads` is how many torch uses.

    Attributes, once it has begun:
        first_batch_seconds: from the call of the maker to the first batch, imports apart.
        private_bytes: of the process before the loader was made.
        once_bytes: what torch and Numba took before that, once in a process: threads, kernels, compiled code.
        threads: that torch spreads a batch over.
    """

    def __init__(self, recipe: dict[str, Any]) -> None:
        self._name = str(recipe["maker"])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.one_loader", json.dumps(recipe)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip

    def wait(self) -> None:
        """Wait until it has imported what it needs."""
        self._answer()

    def begin(self) -> None:
        """Make the loader, take its first batch, and run the epoch to its end: nobody else is measured meanwhile."""
        answer = self._ask("begin")
        self.first_batch_seconds = float(answer["first_batch_seconds"])
        self.private_bytes = int(answer["private_bytes"])
        self.once_bytes = int(answer["once_bytes"])
        self.threads = int(answer["threads"])

    def epoch(self) -> dict[str, float]:
        """Run an epoch; return `images`, `seconds` and `private_bytes` (the most after any batch)."""
        return self._ask("epoch")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _ask(self, word: str) -> dict[str, float]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which is told below
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # peers print, too
                answer: dict[str, float] = json.loads(line)
                return answer
        raise ConfigError(f"{self._name} ended before its time; what it said stands above.")


@contextmanager
def children(recipes: dict[str, dict[str, Any]]) -> Iterator[dict[str, Child]]:
    """Yield a child for each recipe, and end them all."""
    made: dict[str, Child] = {}
    try:
        for name, recipe in recipes.items():
            made[name] = Child(recipe)  # all import at the same time
        for child in made.values():
            child.wait()
        for child in made.values():
            child.begin()  # and begin one after the other
        yield made
    finally:
        for child in made.values():
            child.close()


def settle(loader: Any) -> None:
    """Give batches until what is compiled beside them is there, and some more that use it."""
    for _ in islice(loader, 2 * compiling.WORTH_BATCHES):
        pass
    compiling.wait()
    for _ in islice(loader, compiling.WORTH_BATCHES):
        pass


def main() -> None:
    """Make the loader that the argument describes, and run an epoch for every line of standard input."""
    from bench import peers

    recipe = json.loads(sys.argv[1])
    settled = recipe.pop("settled", False)
    if "threads" in recipe:
        torch.set_num_threads(recipe.pop("threads"))
    make = getattr(peers, recipe.pop("maker"))
    arguments = {k: Path(v) if k in ("folder", "dataset", "beton") else v for k, v in recipe.items()}
    peers.warm_up(make.__name__)
    print(json.dumps({"ready": 1}), flush=True)
    sys.stdin.readline()
    bare = resident_bytes()
    if recipe.get("placement") in ("host", "mapped"):
        # What torch takes once, for threads and kernels, is not the loader's.
        next(iter(make(**{**arguments, "placement": "mapped"})))
        if settled:
            settle(make(**{**arguments, "placement": "mapped", "batch_size": 2}))
        gc.collect()
    before = resident_bytes()
    begin = time.perf_counter()
    loader = make(**arguments)
    batches = iter(loader)
    next(batches)
    seconds = time.perf_counter() - begin
    for _ in batches:
        pass  # to its end: ffcv keeps the thread of an epoch that is left, and the next loader wants these cores
    told = {"first_batch_seconds": seconds, "private_bytes": before, "once_bytes": before - bare,
            "threads": torch.get_num_threads()}  # fmt: skip
    print(json.dumps(told), flush=True)
    for _ in sys.stdin:
        count, peak, begin = 0, 0, time.perf_counter()
        for number, (images, _) in enumerate(loader):
            count += len(images)
            if number % 16 == 0:
                peak = max(peak, resident_bytes())
        seconds = time.perf_counter() - begin
        print(json.dumps({"images": count, "seconds": seconds, "private_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
