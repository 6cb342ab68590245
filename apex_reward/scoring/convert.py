"""Published weights to one safetensors folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from apex_reward.errors import UsageError
from apex_reward.rewards.load import without_bars

if TYPE_CHECKING:
    from apex_reward.model import ApexReward


def import_published(predictor: str, encoder: str, output: str | Path) -> ApexReward:
    """Read the published layouts once and write a `save_pretrained` folder, whole or not at all.

    Args:
        predictor: `best_model.pt`, or a folder or hub id that holds the predictor.
        encoder: folder or hub id in MERT's layout.
        output: a folder that does not exist yet or is empty.

    Returns:
        The model, as `ApexReward.from_pretrained(output)` gives it.

    Raises:
        UsageError: `output` is there and not empty.
        CheckpointError: as `ApexReward.from_published`.
    """
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{output} is there already; name a new or empty folder")

    from apex_reward.model import ApexReward

    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with without_bars():
            model = ApexReward.from_published(_local(predictor), _local(encoder))
            target.parent.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(temporary)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return model


def _local(name: str) -> str | Path:
    """A path where there is one; else a hub id or whatever the reader makes of it."""
    return Path(name) if Path(name).exists() else name
