"""A training program's whole state in one file, written at once after every epoch."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import atomic_path
from apex_reward.train.program import Program


def save_state(program: Program, path: Path) -> None:
    """Write everything a resumed run needs; the random draws follow from seed and epoch.

    The file holds plain tensors, numbers and text, and is read with `weights_only=True`.
    """
    scaler = program.accelerator.scaler
    state = {
        "settings": json.dumps(program.settings.to_dict()),
        "conditions": str(program.conditions),
        "samples": len(program.features),
        "epoch": program.epoch,
        "active": program.active,
        "stack": program.stack.state_dict(),
        "optimizer": program.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else {},
        "history": json.dumps(program.history),
        "best": program.best,
        "best_loss": program.best_loss,
        "best_epoch": program.best_epoch,
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(program: Program, path: Path) -> None:
    """Go on from a state that a program with the same settings and conditions left.

    Raises:
        UsageError: it was left by a run with other settings, conditions or data.
        DataError: the file cannot be read.
    """
    device = program.accelerator.device
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises whatever its readers do
        raise DataError(f"{path} cannot be read ({error}); leave out --resume") from error
    now = (
        json.dumps(program.settings.to_dict()),
        str(program.conditions),
        len(program.features),
    )
    then = (state["settings"], state["conditions"], state["samples"])
    if then != now:
        lines = [f"  {a}\n  now {b}" for a, b in zip(then, now, strict=True) if a != b]
        raise UsageError(
            "the run to resume had other settings or data; give the same ones, or leave out "
            "--resume:\n" + "\n".join(lines)
        )
    program.epoch, program.active = state["epoch"], list(state["active"])
    program.resize(torch.tensor(program.active, dtype=torch.long, device=device))
    program.stack.load_state_dict(state["stack"])
    program.optimizer.load_state_dict(state["optimizer"])
    if program.accelerator.scaler and state["scaler"]:
        program.accelerator.scaler.load_state_dict(state["scaler"])
    program.history = json.loads(state["history"])
    program.best = state["best"]
    program.best_loss, program.best_epoch = list(state["best_loss"]), list(state["best_epoch"])
