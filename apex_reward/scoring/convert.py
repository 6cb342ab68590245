"""Published weights to one safetensors folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from apex_reward.errors import UsageError
from apex_reward.model.files import check_unused
from apex_reward.rewards.load import without_bars


def import_model(
    kind: str,
    predictor: str | Path,
    encoder: str | Path,
    output: str | Path,
    clap: str | Path | None = None,
) -> Any:
    """Read a published layout once and write a `save_pretrained` folder, whole or not at all.

    Args:
        kind: `apex`, `songeval`, `tunejury` or `muq-eval`.
        predictor: the file, folder or hub id that holds the predictor or head.
        encoder: folder or hub id of the encoder, in MERT's layout or in MuQ's.
        output: a folder that does not exist yet or is empty.
        clap: folder or hub id of CLAP, for `tunejury` only.

    Returns:
        The model, as `load_reward_model(output)` gives it.

    Raises:
        UsageError: `output` is there and not empty; `clap` where it is not read.
        CheckpointError: any tensor missing, extra or of another shape, named with its file.
    """
    target = check_unused(output)
    if clap is not None and kind != "tunejury":
        raise UsageError(f"--clap is for --kind tunejury; {kind} reads none")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with without_bars():
            model = _read(kind, _local(predictor), _local(encoder), clap)
            target.parent.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(temporary)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return model


def _read(kind: str, predictor: str | Path, encoder: str | Path, clap: str | Path | None) -> Any:
    if kind == "songeval":
        from apex_reward.rewards.foreign.songeval import SongEval

        return SongEval.from_published(predictor=predictor, encoder=encoder)
    if kind == "muq-eval":
        from apex_reward.rewards.foreign.muq_eval import MuQEval

        return MuQEval.from_published(predictor=predictor, encoder=encoder)
    if kind == "tunejury":
        from apex_reward.rewards.foreign.tunejury import TuneJury

        options = {} if clap is None else {"clap": _local(clap)}
        return TuneJury.from_published(predictor=predictor, encoder=encoder, **options)
    from apex_reward.model import ApexReward

    return ApexReward.from_published(predictor, encoder)


def _local(name: str | Path) -> str | Path:
    """A path where there is one; else a hub id or whatever the reader makes of it."""
    return Path(name) if Path(name).exists() else name
