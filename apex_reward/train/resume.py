"""Run a training loop that can be taken up again: its whole state in one file after every epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from apex_reward.errors import DataError
from apex_reward.files.atomic import atomic
from apex_reward.files.stamps import Stamp
from apex_reward.train.loop import Loop


def run_epochs(loop: Loop, path: Path, resume: bool) -> Iterator[None]:
    """Train until the loop is finished, saving its state to `path` and yielding after every epoch.

    With several processes on one loop the main one writes, and all wait for it.

    Args:
        resume: go on from `path`, where it is there; what was done is yielded first.

    Raises:
        UsageError: the state was left by a run with other settings, conditions or data.
    """
    stamp, beside = Stamp(loop.about()), path.with_name(path.name + ".json")
    if resume and path.is_file():
        stamp.check(beside, path)
        load_state(loop, path)
        yield
    elif loop.rank == 0:
        path.unlink(missing_ok=True)
        stamp.write(beside)
    while not loop.finished:
        if loop.world > 1:
            loop.accelerator.wait_for_everyone()
        loop.run_epoch()
        if loop.rank == 0:
            save_state(loop, path)
        yield


def save_state(loop: Loop, path: Path) -> None:
    """Write everything a resumed run needs; the random draws follow from seed and epoch.

    The file holds plain tensors, numbers and text, and is read with `weights_only=True`.
    """
    state = loop.state()
    state["history"] = json.dumps(state["history"])
    with atomic(path) as temporary:
        torch.save(state, temporary)


def load_state(loop: Loop, path: Path) -> None:
    """Go on from a state that a loop with the same `about` left.

    Raises DataError where the file cannot be read.
    """
    try:
        state = torch.load(path, map_location=loop.accelerator.device, weights_only=True)
    except Exception as error:  # torch.load raises whatever its readers do
        raise DataError(f"{path} cannot be read ({error}); leave out --resume") from error
    state["history"] = json.loads(state["history"])
    loop.load(state)
