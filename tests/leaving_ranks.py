"""Two ranks end while gloo reduces. Its thread needs the GIL to let go of a tensor that Python knows, and one that
waits for it when the interpreter goes takes the process down (SIGABRT); here it always waits then.

    python -m tests.leaving_ranks

Forked, and each ends as an interpreter does, not by os._exit. Prints the exit codes of both.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable


def keep_the_gil(seconds: float) -> None:
    """Keep it for so long: nobody else is given it meanwhile."""
    sys.setswitchinterval(1000)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


class Lingering:
    def __del__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        sleep(0.1)  # lets go of the GIL in the midst of the interpreter's end


if __name__ == "__main__":
    # The first one that is registered is called last, and the interpreter ends right behind it.
    atexit.register(keep_the_gil, 1.5)

    import torch

    from fastload import TrainConfig, Trainer
    from tests.forked_ranks import free_port

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    children = []
    for rank in range(2):
        if (pid := os.fork()) == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            break
        children.append(pid)
    else:
        print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
        os._exit(0)

    lingering = Lingering()
    Trainer(TrainConfig(device="cpu"))
    reduced = torch.ones(1000)
    if rank == 1:
        time.sleep(0.7)
    torch.distributed.all_reduce(reduced, async_op=True)
