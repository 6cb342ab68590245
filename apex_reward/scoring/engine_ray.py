"""The Ray engine: blocks as rows of a Ray data set, actors that hold what works on them.

Every machine must see the files under the same paths (a shared file system). Ray restarts an actor
that is killed and has its blocks done again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from apex_reward.errors import ApexError, UsageError
from apex_reward.scoring.engines import Load, Worker

TASKS_PER_ACTOR = 64


class BlockActor:
    """Holds a worker in a Ray process; a call does one block.

    Args:
        folder: to work in, as the starting process does, so that relative paths mean the same.
        threads: of the CPU; as many as the starting process has, because sums over another number
            of threads differ in their last bits.
    """

    def __init__(self, load: Load, folder: str, threads: int, device: str | None) -> None:
        self.load, self.folder, self.threads, self.device = load, folder, threads, device
        self.worker: Worker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The songs of the block, or why it failed: Ray hides an error behind its own."""
        try:
            self.worker = self.worker or self._begun()
            return {"songs": sum(self.worker([int(row["item"])])), "error": ""}
        except Exception as error:
            return {"songs": 0, "error": f"{type(error).__name__}: {error}"}

    def _begun(self) -> Worker:
        import torch

        if not os.path.isdir(self.folder):
            raise UsageError(
                f"{self.folder} is not there on {os.uname().nodename}; Ray's machines must see the "
                "files under the same paths"
            )
        os.chdir(self.folder)
        torch.set_num_threads(self.threads)
        return self.load(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def start_ray() -> Any:
    """The module `ray`, connected: to the cluster of `RAY_ADDRESS`, else to one on this machine.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed: pip install 'apex-reward[ray]'") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    return ray


def run_on_ray(blocks: Sequence[int], load: Load, actors: int, device: str | None) -> Iterator[int]:
    """Have blocks done by actors; the number of songs with every block that is finished."""
    if not blocks:
        return
    ray = start_ray()
    import torch
    from ray.data import ActorPoolStrategy, DataContext, from_items

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    DataContext.get_current().enable_progress_bars = False
    actors = min(max(1, actors), len(blocks))
    gpus = 0.0 if device == "cpu" else float(ray.cluster_resources().get("GPU", 0))
    tasks = min(len(blocks), TASKS_PER_ACTOR * actors)
    actor: Any = BlockActor
    done = from_items(list(blocks), override_num_blocks=tasks).map(
        actor,
        fn_constructor_args=(load, os.getcwd(), torch.get_num_threads(), device),
        compute=ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=min(1.0, gpus / actors),
    )
    for row in done.iter_rows():
        if row["error"]:
            raise ApexError(
                f"a Ray actor failed: {row['error']}; the finished blocks are kept, go on with "
                "--resume"
            )
        yield int(row["songs"])
