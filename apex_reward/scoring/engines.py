"""Who does work that falls into blocks: this process, each of several ranks, or Ray actors.

A block is the work of one call. It leaves a file that appears whole once it is done, so that a
killed process costs the blocks it had begun, which are done again. Ranks share the work without
talking to each other: each takes every n-th block. With Ray every machine must see the files under
the same paths (a shared file system); Ray restarts an actor that is killed.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from apex_reward.errors import ApexError, UsageError, expect_one_of

ENGINES = ("local", "ray")
PATIENCE = timedelta(days=7)  # ranks wait for the slowest; a launcher ends them where one dies

# Does blocks in order, and gives the number of songs that every step has finished.
Worker = Callable[[Sequence[int]], Iterator[int]]
# Makes the worker in the process that works, on a device; None leaves that to the loader.
Load = Callable[[str | None], Worker]


@dataclass(frozen=True)
class Share:
    """This process among those that were launched together.

    Args:
        rank: its number, from 0.
        processes: how many there are.
    """

    rank: int = 0
    processes: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that gathers and writes."""
        return self.rank == 0

    def begun(self, begin: Callable[[], int]) -> int:
        """What `begin` gives on the first process, on every one of them.

        Raises:
            UsageError: the first process could not begin.
        """
        if self.processes == 1:
            return begin()
        begun: list[int | None] = [None]
        try:
            if self.first:
                begun[0] = begin()
        finally:
            broadcast_object_list(begun)
        if begun[0] is None:
            raise UsageError("the first process could not begin; its message has the reason")
        return begun[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.processes > 1:
            PartialState().wait_for_everyone()


def share_of_launch(device: str | None = None) -> Share:
    """This process among those of `torchrun` or `accelerate launch`; alone without them.

    Each takes its own GPU, so call it before models are loaded.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Share()
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    return Share(state.process_index, state.num_processes)


@dataclass(frozen=True)
class Engine:
    """Who does the blocks.

    Args:
        name: `local` (this process and those that share with it) or `ray`.
        share: of this process, with the local engine.
        actors: of Ray, each with a copy of what works.
        device: of the actors; None takes a GPU where there is one.

    Raises:
        UsageError: an unknown name, or Ray under a launcher of several processes.
    """

    name: str = "local"
    share: Share = Share()
    actors: int = 1
    device: str | None = None

    def __post_init__(self) -> None:
        expect_one_of("engine", self.name, ENGINES)
        if self.name == "ray" and self.share.processes > 1:
            raise UsageError("Ray starts its own processes; start the engine 'ray' as one")

    def ended(self, code: int) -> int:
        """The exit code of finished work, of which songs may have failed.

        A launcher takes any other than 0 for a crash: it ends, or starts again, all processes.
        """
        return code if self.share.processes == 1 else 0

    @property
    def several(self) -> bool:
        """Whether several processes work."""
        return self.name == "ray" or self.share.processes > 1

    def run(self, blocks: Sequence[int], load: Load) -> Iterator[int]:
        """Have blocks done; the number of songs finished here with every step.

        It ends when all blocks of all processes are done. The same list must be given to each.
        """
        if self.name == "ray":
            yield from _on_ray(blocks, load, self.actors, self.device)
        elif mine := blocks[self.share.rank :: self.share.processes]:
            yield from load(None)(mine)
        self.share.wait()


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

    def score(self, block: int) -> int:
        """The songs of a block.

        Raises:
            ApexError: why it failed, in words that survive the way back.
        """
        try:
            self.worker = self.worker or self._begun()
            return sum(self.worker([block]))
        except Exception as error:
            raise ApexError(f"{type(error).__name__}: {error}") from None

    def _begun(self) -> Worker:
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


def shared_out(processes: int, device: str | None) -> dict[str, float]:
    """What each of several processes takes of the cluster: at most a processor and a GPU.

    More processes than processors or GPUs share them; none waits for a free one.
    """
    import ray

    there = ray.cluster_resources()
    gpus = 0.0 if device == "cpu" else there.get("GPU", 0.0)
    found = {"num_cpus": there.get("CPU", 1.0), "num_gpus": gpus}
    # Of one GPU, not of their sum; Ray counts in steps of 1/10,000.
    return {
        name: 10_000 // math.ceil(processes / amount) / 10_000 if amount else 0.0
        for name, amount in found.items()
    }


def _on_ray(blocks: Sequence[int], load: Load, actors: int, device: str | None) -> Iterator[int]:
    """Have blocks done by actors; the number of songs with every block that is finished."""
    ray = start_ray()
    from ray.util import ActorPool

    actors = max(1, min(actors, len(blocks)))
    # An actor that is killed starts again, and does its block again.
    remote = ray.remote(max_restarts=-1, max_task_retries=-1, **shared_out(actors, device))(
        BlockActor
    ).remote
    held = ray.put(load)  # an actor that starts again reads it again
    where = os.getcwd(), torch.get_num_threads(), device
    pool = ActorPool([remote(held, *where) for _ in range(actors)])
    try:
        yield from pool.map_unordered(lambda actor, block: actor.score.remote(block), list(blocks))
    except ray.exceptions.RayTaskError as error:
        raise ApexError(
            f"a Ray actor failed: {error.cause}; the finished blocks are kept, go on with --resume"
        ) from error
