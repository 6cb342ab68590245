"""Bind predictors that are trained already into one ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apex_reward.data.shards import EmbeddingSource
from apex_reward.errors import UsageError
from apex_reward.model.config import ApexConfig
from apex_reward.model.predictor import members_of
from apex_reward.train.card import write_trained_card
from apex_reward.train.dataset import Data
from apex_reward.train.evaluate import Checkpoint, predict_split
from apex_reward.train.familiar import fit_familiarity
from apex_reward.train.report import fit_spread_scale, metrics_report, write_report
from apex_reward.train.trainer import save_members

SHARED = (
    "encoder", "encoder_name", "layers", "task", "shared", "trunk_widths", "head_widths",
    "sample_rate", "segment_seconds", "segment_tail",
)  # fmt: skip


def bind(runs: Sequence[Path], data: Data, output: Path) -> dict[str, Any]:
    """Make one ensemble of finished runs and measure it; writes `best/` and `metrics.json`.

    Args:
        runs: folders that `train` left, or of models (as a grid's `models/*`); an ensemble gives
            all its members.
        data: for the spread's scale (val), the statistics of the songs (train) and the measures
            (test); with layer embeddings where the runs trained their pooling.

    Raises:
        UsageError: fewer than two predictors, or runs that differ in encoder, pooling, task, shape
            or mode; all differences are listed.
    """
    folders = [run / "best" if (run / "best").is_dir() else run for run in runs]
    found = [Checkpoint.load(folder) for folder in folders]
    _check(folders, found)
    first = found[0]
    predictors = [member for one in found for member in members_of(one.predictor)]
    if len(predictors) < 2:
        raise UsageError(f"{folders[0]} alone is no ensemble; name two runs or more with --from")
    mode = first.training.get("mode") or "song"
    val, test = (_members(found, data, split, mode) for split in ("val", "test"))
    heads = first.config.head_names
    scale = fit_spread_scale(val, data["val"].labels[:, : len(heads)])
    notes = [note for one in found for note in _notes(one)]
    config = ApexConfig.from_dict(first.config.to_dict())
    config.spread_scale, config.mix, config.preference = scale, None, None
    features = torch.as_tensor(data["train"].samples("song", "popularity").features).float()
    if features.ndim == 3:
        with torch.no_grad():
            features = first.pooling(features)
    save_members(
        output / "best", config, predictors, first.pooling,
        fit_familiarity(features.numpy()), mode, notes,
    )  # fmt: skip
    losses = {note["loss"] for note in notes}
    about = {
        "mode": mode,
        "task": first.config.task,
        "loss": losses.pop() if len(losses) == 1 else "mixed",
        "shared": first.config.shared,
    }
    report = metrics_report(about, test, data["test"].labels[:, : len(heads)], heads, scale)
    write_trained_card(output / "best", data, report, [("bound from", f"{len(runs)} runs")])
    write_report(output, report)
    return report


def _members(found: Sequence[Checkpoint], data: Data, split: str, mode: str) -> Any:
    import numpy as np

    return np.concatenate([predict_split(one, data[split], mode) for one in found], axis=1)


def _notes(one: Checkpoint) -> list[dict[str, Any]]:
    """What is known of each member's training."""
    if "members" in one.training:
        return list(one.training["members"])
    names = ("loss", "seed", "epoch", "val_loss")
    return [{name: one.training.get(name) for name in names}]


def _check(folders: Sequence[Path], found: Sequence[Checkpoint]) -> None:
    first, problems = found[0], []
    source = EmbeddingSource.of(first.config, first.pooling)
    for folder, one in zip(folders[1:], found[1:], strict=True):
        for name in SHARED:
            mine, theirs = getattr(first.config, name), getattr(one.config, name)
            if mine != theirs:
                problems.append(f"{folder}: {name} is {theirs}, of {folders[0]} {mine}")
        if first.training.get("mode") != one.training.get("mode"):
            problems.append(f"{folder}: mode is {one.training.get('mode')}")
        if not source.same_pooling(EmbeddingSource.of(one.config, one.pooling)):
            problems.append(f"{folder}: another layer pooling")
    if problems:
        raise UsageError("these runs are no ensemble:\n  " + "\n  ".join(problems))
