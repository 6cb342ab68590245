"""Measure a predictor on a split: errors and correlations per head, with intervals and examples.

Shape key: n = samples, N = songs, M = models, H = heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apex_reward import metrics
from apex_reward.data.shards import EmbeddingSource
from apex_reward.errors import UsageError
from apex_reward.files.tables import write_json, write_table
from apex_reward.train.dataset import MODES, Split, load_data, recorded_sources
from apex_reward.train.intervals import METRICS, bootstrap_intervals

if TYPE_CHECKING:
    from accelerate import Accelerator

    from apex_reward.model.config import ApexConfig
    from apex_reward.model.pooling import LayerPooling
    from apex_reward.model.predictor import Predictor

FloatArray = npt.NDArray[np.float64]
HeadMetrics = dict[str, dict[str, float]]
TRAINING_FILE = "training.json"
MEASURES: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {
    name: getattr(metrics, name) for name in METRICS
}


@dataclass(frozen=True)
class Checkpoint:
    """A predictor with what is known of its training."""

    config: ApexConfig
    predictor: Predictor
    pooling: LayerPooling
    training: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """From a folder that `train` or `save_pretrained` left, or a published `best_model.pt`."""
        from apex_reward.model.checkpoint import load_predictor

        config, predictor, pooling = load_predictor(path)
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


def song_means(scores: FloatArray, song: npt.NDArray[np.int64]) -> FloatArray:
    """Mean over each song's samples: (n, ...) with rising song numbers -> (N, ...)."""
    starts = np.flatnonzero(np.diff(song, prepend=-1))
    counts = np.diff(starts, append=len(song)).reshape(-1, *[1] * (scores.ndim - 1))
    return np.asarray(np.add.reduceat(scores, starts, axis=0) / counts)


def head_metrics(pred: FloatArray, label: FloatArray, heads: Sequence[str]) -> HeadMetrics:
    """MSE, MAE, Pearson and Spearman per head of (N, H) predictions; NaN where undefined."""
    return {
        head: {name: measure(pred[:, i], label[:, i]) for name, measure in MEASURES.items()}
        for i, head in enumerate(heads)
    }


def evaluate(
    checkpoint: str | Path,
    data: Path,
    output: Path,
    *,
    mode: str | None = None,
    teacher: dict[str, dict[str, float]] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a folder of shards and write what came out.

    Writes `metrics.json` (with 95% bootstrap intervals over songs), `predictions.csv` (a row per
    song) and `examples.csv` (per head, the ten songs predicted best and the ten predicted worst).

    Args:
        checkpoint: a folder or a published `best_model.pt`.
        data: folder with `*.parquet`.
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
    pred = predict_split(loaded, split, mode, accelerator)
    report: dict[str, Any] = {
        "mode": mode,
        "task": task,
        "loss": loaded.training.get("loss"),
        "shared": loaded.config.shared,
        "n_songs": len(split.labels),
        "metrics": head_metrics(pred, split.labels.astype(np.float64), loaded.config.head_names),
        "ci95": bootstrap_intervals(pred, split.labels, loaded.config.head_names, bootstrap, seed),
    }
    if accelerator is None or accelerator.is_main_process:
        write_report(output, report)
        write_examples(output, pred, split, loaded.config.head_names)
    return report


def predict_split(
    checkpoint: Checkpoint, split: Split, mode: str, accelerator: Accelerator | None = None
) -> FloatArray:
    """(N, H) predictions of a split's songs; in segment mode the mean over a song's segments."""
    import torch

    from apex_reward.train.stack import PredictorStack, shape_of
    from apex_reward.train.steps import predict

    samples = split.samples(mode, checkpoint.config.task)
    layered = samples.features.ndim == 3
    stack = PredictorStack(
        shape_of(checkpoint.config),
        [checkpoint.predictor.state_dict()],
        [checkpoint.pooling] if layered else None,
    )
    features = torch.as_tensor(samples.features)
    if accelerator is None:
        scores = predict(stack, features)
    else:
        stack, features = stack.to(accelerator.device), features.to(accelerator.device)
        ranks = accelerator.process_index, accelerator.num_processes
        scores = predict(stack, features, accelerator.reduce, *ranks)
    return song_means(scores[:, 0].double().numpy(), samples.song)


def write_report(output: Path, report: dict[str, Any]) -> None:
    """`metrics.json`; an undefined measure (a constant input) is null."""
    write_json(output / "metrics.json", _nan_to_none(report))


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


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
