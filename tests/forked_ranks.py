"""Ranks forked from one process, which has imported everything; by torchrun each would import it once more."""

import os
import socket
import sys
import traceback
from collections.abc import Callable


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def fork_ranks(world_size: int, one_rank: Callable[[int], None]) -> bool:
    """Run `one_rank(rank)` in so many processes with the variables that torchrun sets; return whether one failed."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    children = []
    for rank in range(world_size):
        if (pid := os.fork()) == 0:
            # Before Accelerate and torch.distributed look for them.
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            status = 1
            try:
                one_rank(rank)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    return any(statuses)
