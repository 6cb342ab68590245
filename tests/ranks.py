"""Processes launched together as `torchrun` does, forked: nothing is imported twice."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

from apex_reward.scoring.engines import Share, share_of_launch
from tests.support import free_port


def launched(processes: int, work: Callable[[Share], object]) -> list[int]:
    """Wait statuses of processes that each did `work` with their share; the first ones first."""
    port, children = free_port(), []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os._exit(_rank(rank, processes, port, work))
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


def _rank(rank: int, processes: int, port: int, work: Callable[[Share], object]) -> int:
    from accelerate import PartialState

    PartialState._reset_state()  # what another test left in the parent
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    try:
        work(share_of_launch("cpu"))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
