"""Published weights to one safetensors folder."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from apex_reward.errors import UsageError
from apex_reward.files.atomic import atomic
from apex_reward.model import ApexReward
from apex_reward.model.files import check_unused
from apex_reward.rewards.load import FOREIGN, without_bars


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
    reader: Any = ApexReward if kind == "apex" else resolve_name(FOREIGN[kind])
    options = {} if clap is None else {"clap": clap}
    with without_bars(), atomic(target) as temporary:
        model = reader.from_published(predictor, encoder, **options)
        model.save_pretrained(temporary)
    return model
