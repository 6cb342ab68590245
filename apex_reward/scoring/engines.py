"""Who does work that falls into blocks: this process, each of several ranks, or Ray actors.

A block is the work of one call, whoever makes it. It leaves a file that appears whole once it is
done, so that a killed process costs the blocks it had begun, which are done again. Ranks share
the work without talking to each other: each takes every n-th block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from apex_reward.errors import UsageError

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
        from accelerate.utils import broadcast_object_list

        said: list[int | None] = [None]
        try:
            if self.first:
                said[0] = begin()
        finally:
            broadcast_object_list(said)
        if said[0] is None:
            raise UsageError("the first process could not begin; its message says why")
        return said[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.processes > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def share_of_launch(device: str | None = None) -> Share:
    """This process among those of `torchrun` or `accelerate launch`; alone without them.

    Each takes its own GPU, so call it before models are loaded.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Share()
    import torch
    from accelerate import PartialState

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
        if self.name not in ENGINES:
            raise UsageError(f"engine is {self.name!r}; expected one of {', '.join(ENGINES)}")
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
            from apex_reward.scoring.engine_ray import run_on_ray

            yield from run_on_ray(blocks, load, self.actors, self.device)
        elif mine := blocks[self.share.rank :: self.share.processes]:
            yield from load(None)(mine)
        self.share.wait()
