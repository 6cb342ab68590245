"""Measure a predictor on a split: errors and correlations per head, with intervals and examples.

Shape key: N = songs, M = members, H = heads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_reward.data.shards import EmbeddingSource
from apex_reward.errors import UsageError
from apex_reward.files.tables import write_table
from apex_reward.model.predictor import members_of
from apex_reward.train.dataset import load_data, recorded_sources
from apex_reward.train.intervals import bootstrap_intervals
from apex_reward.train.plots import plot_metrics
from apex_reward.train.report import FloatArray, ensemble_mean, metrics_report, write_report
from apex_reward.train.split import MODES, Split, song_means

if TYPE_CHECKING:
    from accelerate import Accelerator

    from apex_reward.model.config import ApexConfig
    from apex_reward.model.predictor import LayerPooling, Predictor, PredictorEnsemble

TRAINING_FILE = "training.json"


@dataclass(frozen=True)
class Checkpoint:
    """A predictor or ensemble with what is known of its training."""

    config: ApexConfig
    predictor: Predictor | PredictorEnsemble
    pooling: LayerPooling
    training: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """From a folder that `train` or `save_pretrained` left, or a published `best_model.pt`."""
        from apex_reward.model.checkpoint import load_parts

        config, predictor, pooling, _ = load_parts(path)
        return cls(config, predictor, pooling, _training_of(Path(path)))


def _training_of(path: Path) -> dict[str, Any]:
    """Mode and loss of a checkpoint, where it tells them."""
    if (path / TRAINING_FILE).is_file():
        return dict(json.loads((path / TRAINING_FILE).read_text(encoding="utf-8")))
    files = [path] if path.is_file() else sorted(path.glob("best_model.pt"))
    if not files:
        return {}
    import torch

    saved = torch.load(files[0], map_location="cpu", weights_only=True)
    return {key: saved[key] for key in ("mode", "loss") if isinstance(saved.get(key), str)}


def evaluate_checkpoint(
    checkpoint: str | Path,
    data: Path,
    output: Path,
    *,
    mode: str | None = None,
    teacher: dict[str, dict[str, float]] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    formats: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a checkpoint on a folder of shards and write what came out.

    Writes `metrics.json` (with 95% bootstrap intervals over songs; of an ensemble also what
    `apex_reward.train.report` says), `predictions.csv` (a row per song) and `examples.csv` (per
    head, the ten songs predicted best and the ten predicted worst).

    Args:
        checkpoint: a folder or a published `best_model.pt`.
        data: folder with `*.parquet`.
        formats: in which the measures are drawn with their intervals, a file per kind of head.
        mode: `song` or `segment`; None takes the checkpoint's, or `song` where it tells none.

    Returns:
        The content of `metrics.json`.
    """
    if mode is not None and mode not in MODES:
        raise UsageError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
    loaded = Checkpoint.load(checkpoint)
    mode = mode or loaded.training.get("mode") or "song"
    task = loaded.config.task
    own = EmbeddingSource.of(loaded.config, loaded.pooling)
    # The stored segment embeddings serve unless the checkpoint trained its own pooling.
    layers = not recorded_sources(sorted(data.glob("*.parquet")))[0].same_pooling(own)
    shards = load_data({"data": data}, task, source=own, layers=layers, teacher=teacher)
    split = shards["data"]
    members = predict_split(loaded, split, mode, accelerator)
    pred, heads = ensemble_mean(members), loaded.config.head_names
    about = {
        "mode": mode,
        "task": task,
        "loss": loaded.training.get("loss"),
        "shared": loaded.config.shared,
    }
    report = metrics_report(about, members, split.labels, heads, loaded.config.spread_scale)
    report["ci95"] = bootstrap_intervals(pred, split.labels, heads, bootstrap, seed)
    if accelerator is None or accelerator.is_main_process:
        write_report(output, report)
        write_examples(output, pred, split, heads)
        plot_metrics(report, output, formats)
    return report


def predict_split(
    checkpoint: Checkpoint, split: Split, mode: str, accelerator: Accelerator | None = None
) -> FloatArray:
    """(N, M, H) predictions of a split's songs; in segment mode means over a song's segments.

    M is 1 for a single predictor.
    """
    import torch

    from apex_reward.train.stack import PredictorStack, shape_of
    from apex_reward.train.steps import predict

    samples = split.samples(mode, checkpoint.config.task)
    layered = samples.features.ndim == 3
    stack = PredictorStack(
        shape_of(checkpoint.config),
        [member.state_dict() for member in members_of(checkpoint.predictor)],
        [checkpoint.pooling] * checkpoint.config.members if layered else None,
    )
    features = torch.as_tensor(samples.features)
    if accelerator is None:
        scores = predict(stack, features)
    else:
        stack, features = stack.to(accelerator.device), features.to(accelerator.device)
        ranks = accelerator.process_index, accelerator.num_processes
        scores = predict(stack, features, accelerator.reduce, *ranks)
    return song_means(scores.double().numpy(), samples.song, samples.weight)


def write_examples(
    output: Path, pred: FloatArray, split: Split, heads: Sequence[str], count: int = 10
) -> None:
    """`predictions.csv` with every song, `examples.csv` with the best and worst of each head."""
    errors = np.abs(pred - split.labels)
    rows = []
    for column, head in enumerate(heads):
        order = np.argsort(errors[:, column], kind="stable")
        chosen = [("best", i) for i in order[:count]] + [("worst", i) for i in order[::-1][:count]]
        rows += [
            {
                "head": head,
                "kind": kind,
                "audio_id": split.audio_ids[i],
                "label": float(split.labels[i, column]),
                "prediction": float(pred[i, column]),
                "error": float(errors[i, column]),
            }
            for kind, i in chosen
        ]
    write_table(output / "examples.csv", rows)
    songs = zip(split.audio_ids, pred.tolist(), split.labels.tolist(), strict=True)
    write_table(
        output / "predictions.csv",
        [
            {"audio_id": name}
            | dict(zip(heads, values, strict=True))
            | {f"{head}_label": label for head, label in zip(heads, labels, strict=False)}
            for name, values, labels in songs
        ],
    )
