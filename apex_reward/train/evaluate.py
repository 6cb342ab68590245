"""Saved predictors: load, save, bind into an ensemble, and measure on a split.

Shape key: N = songs, M = members, H = heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apex_reward.data.shards import EmbeddingSource
from apex_reward.errors import CheckpointError, DataError, UsageError
from apex_reward.files.atomic import atomic
from apex_reward.files.tables import read_json, write_json, write_table
from apex_reward.metrics import few_songs
from apex_reward.model.checkpoint import load_parts, save_predictor
from apex_reward.model.config import PUBLISHED_ENCODER, ApexConfig
from apex_reward.model.predictor import (
    Familiarity,
    LayerPooling,
    Predictor,
    PredictorEnsemble,
    StudentHeads,
    members_of,
)
from apex_reward.train import report as reports
from apex_reward.train.loop import Network, predict
from apex_reward.train.results import plot_metrics
from apex_reward.train.shards import Data, Split, load_data, recorded_sources, song_means

if TYPE_CHECKING:
    from accelerate import Accelerator

TRAINING_FILE = "training.json"
# What the members of one ensemble have alike.
ALIKE = (
    "encoder", "encoder_name", "layers", "task", "shared", "trunk_widths", "head_widths",
    "sample_rate", "segment_seconds", "segment_tail",
)  # fmt: skip


@dataclass
class Checkpoint:
    """Predictors of one shape with what is known of their training.

    Attributes:
        predictors: one, or the members of an ensemble.
        training: the content of `training.json`: `mode`, `loss`, `seed`, `epoch`, the validation
            figures and `encoder_weights`; of an ensemble `members` has those of each.
    """

    config: ApexConfig
    predictors: list[Predictor]
    pooling: LayerPooling
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """From a folder that `train` or `save_pretrained` left, or a published `best_model.pt`."""
        config, predictor, pooling, _ = load_parts(path)
        if isinstance(predictor, StudentHeads):
            raise CheckpointError(
                f"{path} is a student that `distill` made; it has no predictor of shards. "
                "Its own metrics.json has its figures"
            )
        return cls(config, members_of(predictor), pooling, _training_of(Path(path)))

    def save(self, folder: Path, familiar: Familiarity | None = None) -> None:
        """Write a folder that `score --model` and `load` read."""
        many = len(self.predictors) > 1
        whole = PredictorEnsemble(self.predictors) if many else self.predictors[0]
        with atomic(folder) as temporary:
            save_predictor(temporary, self.config, whole, self.pooling, familiar)
            write_json(temporary / TRAINING_FILE, self.training)

    @property
    def mode(self) -> str:
        """What a training sample was; `song` where it is not known."""
        return self.training.get("mode") or "song"

    @property
    def source(self) -> EmbeddingSource:
        """What made the embeddings that the predictors take."""
        config = ApexConfig.from_dict(self.config.to_dict())
        if config.encoder_name == PUBLISHED_ENCODER and "seed" not in self.training:
            config.encoder_name = None  # a published file does not name its encoder
        weights = self.training.get("encoder_weights") or ""
        return EmbeddingSource.of(config, self.pooling, weights)

    def about(self) -> dict[str, Any]:
        """The first keys of `metrics.json`."""
        shape = {"task": self.config.task, "loss": self.training.get("loss")}
        return {"mode": self.mode, **shape, "shared": self.config.shared}

    def notes(self) -> list[dict[str, Any]]:
        """What is known of each member's training."""
        if "members" in self.training:
            return list(self.training["members"])
        shared = ("mode", "encoder_weights")
        return [{k: v for k, v in self.training.items() if k not in shared}]

    def predict(self, split: Split, accelerator: Accelerator | None = None) -> reports.FloatArray:
        """(N, M, H) predictions of a split's songs; in segment mode means over a song's segments.

        M is 1 for a single predictor.
        """
        samples = split.samples(self.mode, self.config.task)
        features = torch.as_tensor(samples.features)
        pooling = self.pooling if features.ndim == 3 else None
        networks = [Network(predictor, pooling) for predictor in self.predictors]
        ranks: Any = ()
        if accelerator is not None:
            ranks = accelerator.reduce, accelerator.process_index, accelerator.num_processes
            features = features.to(accelerator.device)
        scores = [predict(network.to(features.device), features, *ranks) for network in networks]
        values = torch.stack(scores, dim=1).double().numpy()
        return song_means(values, samples.song, samples.weight)


def training_notes(mode: str, source: EmbeddingSource, notes: Sequence[dict[str, Any]]) -> Any:
    """The content of `training.json` from the notes of each member."""
    known = {"mode": mode, "encoder_weights": source.encoder_weights}
    if len(notes) == 1:
        return {**known, **notes[0]}
    losses = {note.get("loss") for note in notes}
    return {**known, "loss": losses.pop() if len(losses) == 1 else "mixed", "members": list(notes)}


def _training_of(path: Path) -> dict[str, Any]:
    """Mode and loss of a checkpoint, where it tells them."""
    if (path / TRAINING_FILE).is_file():
        return read_json(path / TRAINING_FILE)
    files = [path] if path.is_file() else sorted(path.glob("best_model.pt"))
    if not files:
        return {}
    saved = torch.load(files[0], map_location="cpu", weights_only=True)
    return {key: saved[key] for key in ("mode", "loss") if isinstance(saved.get(key), str)}


def evaluate_checkpoint(
    checkpoint: str | Path,
    data: Path,
    output: Path,
    *,
    teacher: dict[str, dict[str, float]] | None = None,
    bootstrap: int = reports.ROUNDS,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    formats: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a checkpoint on a folder of shards and write what came out.

    Writes `metrics.json` (with 95% intervals over songs; see `apex_reward.train.report`)
    and `examples.csv` (per head, the ten songs predicted best and the ten predicted worst).

    Args:
        checkpoint: a folder or a published `best_model.pt`.
        data: folder with `*.parquet`.
        formats: in which the measures are drawn with their intervals, in `figures/`.
        bootstrap, seed: resamples of the intervals.

    Returns:
        The content of `metrics.json`; `warnings` names splits of fewer than 30 songs.

    Raises:
        DataError: the shards come from another encoder than the checkpoint's, or are unusable.
    """
    loaded = Checkpoint.load(checkpoint)
    layers = False
    for recorded in recorded_sources(sorted(data.glob("*.parquet"))):
        if differences := recorded.encoder_differences(loaded.source):
            raise DataError.listing(
                f"{data} holds embeddings of another encoder than {checkpoint} was trained on; "
                "extract the songs with the checkpoint's encoder",
                differences,
            )
        # The stored segment embeddings serve unless the checkpoint trained its own pooling.
        layers = layers or not recorded.same_pooling(loaded.source)
    shards = load_data(
        {"data": data}, loaded.config.task, source=loaded.source, layers=layers, teacher=teacher
    )
    split, heads = shards["data"], loaded.config.head_names
    members = loaded.predict(split, accelerator)
    about, scale = loaded.about(), loaded.config.spread_scale
    report = reports.metrics_report(about, members, split.labels, heads, scale, bootstrap, seed)
    report["warnings"] = few_songs({data.name: len(split.audio_ids)})
    if accelerator is None or accelerator.is_main_process:
        reports.write_report(output, report)
        write_examples(output, members.mean(axis=1), split, heads)
        plot_metrics(report, output / "figures", formats)
    return report


def write_examples(
    output: Path, pred: reports.FloatArray, split: Split, heads: Sequence[str]
) -> None:
    """`examples.csv` with the ten songs of each head that are predicted best, and worst."""
    errors = np.abs(pred - split.labels)
    examples = []
    for column, head in enumerate(heads):
        order = np.argsort(errors[:, column], kind="stable")
        for kind, chosen in (("best", order[:10]), ("worst", order[::-1][:10])):
            examples += [
                {
                    "head": head, "kind": kind, "audio_id": split.audio_ids[i],
                    "label": float(split.labels[i, column]),
                    "prediction": float(pred[i, column]), "error": float(errors[i, column]),
                }
                for i in chosen
            ]  # fmt: skip
    write_table(output / "examples.csv", examples)


def bind(runs: Sequence[Path], data: Data, output: Path) -> dict[str, Any]:
    """Make one ensemble of finished runs and measure it; writes `best/` and `metrics.json`.

    Args:
        runs: folders that `train` left, or of models (as a grid's `models/*`); an ensemble gives
            all its members.
        data: for the spread's scale (val), the statistics of the songs (train) and the measures
            (test); with layer embeddings where the runs trained their pooling.

    Raises:
        UsageError: runs that differ in encoder, pooling, task, shape
            or mode; all differences are listed.
    """
    folders = [run / "best" if (run / "best").is_dir() else run for run in runs]
    found = [Checkpoint.load(folder) for folder in folders]
    first, problems = found[0], []
    for folder, one in zip(folders[1:], found[1:], strict=True):
        pairs = [(name, getattr(one.config, name), getattr(first.config, name)) for name in ALIKE]
        for name, theirs, mine in (*pairs, ("mode", one.mode, first.mode)):
            if mine != theirs:
                problems.append(f"{folder}: {name} is {theirs}, of {folders[0]} {mine}")
        if not first.source.same_pooling(one.source):
            problems.append(f"{folder}: another layer pooling")
    if problems:
        raise UsageError("these runs are no ensemble:\n  " + "\n  ".join(problems))
    predictors = [predictor for one in found for predictor in one.predictors]
    notes = [note for one in found for note in one.notes()]
    config = ApexConfig.from_dict(first.config.to_dict())
    config.mix = config.preference = None
    training = training_notes(first.mode, first.source, notes)
    whole = Checkpoint(config, predictors, first.pooling, training)
    report = finish_checkpoint(whole, data, output / "best", [("bound from", f"{len(runs)} runs")])
    reports.write_report(output, report)
    return report


def finish_checkpoint(
    checkpoint: Checkpoint,
    data: Data,
    folder: Path,
    how: Sequence[tuple[str, Any]] = (),
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Measure a trained checkpoint, and write its folder with its card.

    The scale of an ensemble's spread is fitted on the split val; the measures are of test.

    Args:
        how: further rows of the card on how it was trained.

    Returns:
        The content of `metrics.json`.
    """
    heads = checkpoint.config.head_names
    labels = {split: data[split].labels[:, : len(heads)] for split in data.splits}
    if len(checkpoint.predictors) > 1:
        val = checkpoint.predict(data["val"], accelerator)
        checkpoint.config.spread_scale = reports.fit_spread_scale(val, labels["val"])
    test = checkpoint.predict(data["test"], accelerator)
    scale = checkpoint.config.spread_scale
    report = reports.metrics_report(checkpoint.about(), test, labels["test"], heads, scale)
    report["warnings"] = few_songs(data.songs)
    if accelerator is None or accelerator.is_main_process:
        checkpoint.save(folder, data.familiarity(checkpoint.pooling))
        reports.write_trained_card(folder, data.songs, report, how)
    return report
