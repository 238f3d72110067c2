"""Shards written by the workers of a Dask cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from fastload.errors import ConfigError, DatasetError, FastloadError, printable
from fastload.filling import Filler, convert_shards
from fastload.places import Place
from fastload.plan import Plan
from fastload.pool import ThreadPool
from fastload.sources.extras import need

CONNECT_SECONDS = 10


def convert_shards_on(
    address: str, plan: Plan, folder: Place, skip_bad: bool, advance: Callable[[int], object]
) -> dict[str, str]:
    """Do what `convert_shards` does for all shards of a plan, one task each, on the workers of a Dask cluster.

    The plan travels once to each worker, by Dask's own serialization. Workers must see the source and the
    folder under the same paths, and have fastload installed.

    Args:
        address: of the scheduler, e.g. `tcp://10.0.0.1:8786`.
        plan: what to convert.
        folder: where to.
        skip_bad: leave bad images out instead of stopping.
        advance: called with the number of samples that are done.

    Returns:
        SHA-256 (hex) of each file that was written now.

    Raises:
        ConfigError: Dask is not installed, or no scheduler answers there, or it has no workers.
        DecodeError: a bad image, where these are not skipped.
        DatasetError: a worker died, or cannot write.
    """
    distributed = need("distributed", "dask", "--dask")
    # The working folder of a worker is another one.
    plan = dataclasses.replace(plan, source=dataclasses.replace(plan.source, root=plan.source.root.absolute()))
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as e:
        raise ConfigError(
            f"--dask {printable(address)}: no scheduler answers ({printable(e)}); pass tcp://HOST:PORT as it printed."
        ) from e
    folder, digests = folder.absolute(), dict[str, str]()
    with client:
        try:
            everywhere = client.scatter(plan, broadcast=True)
        except TimeoutError as e:
            raise ConfigError(
                f"--dask {printable(address)}: the scheduler has no workers; start some with: "
                f"dask worker {printable(address)}"
            ) from e
        tasks = {
            client.submit(_convert_one, everywhere, number, folder, skip_bad, pure=False): shard
            for number, shard in enumerate(plan.shards)
        }
        try:
            for done in distributed.as_completed(list(tasks), loop=client.loop):
                digests |= _result(done, tasks[done].file)
                advance(len(tasks[done].records))
        finally:
            client.cancel(list(tasks))
    return digests


def _result(task: Any, file: str) -> dict[str, str]:
    try:
        written: dict[str, str] = task.result()
    except FastloadError:
        raise
    except Exception as e:  # whatever a worker raises, or Dask says of one that died
        raise DatasetError(
            f"{file} failed on a Dask worker ({printable(e)}); see that worker's log, and run the same command again: "
            "finished shards are kept."
        ) from e
    return written


def _convert_one(plan: Plan, number: int, folder: Place, skip_bad: bool) -> dict[str, str]:
    """Write one shard, on a worker."""
    # Dask itself runs as many tasks at a time as the worker has threads.
    torch.set_num_threads(1)
    with Filler(plan, [number], folder, 1, skip_bad=skip_bad) as filler, ThreadPool(filler, filler.path, 1) as pool:
        return convert_shards(filler, pool, lambda _: None)
