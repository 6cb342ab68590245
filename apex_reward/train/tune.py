"""Tune the encoder too: LoRA adapters on MERT's attention, trained from audio through segments.

For music far from what MERT heard. First a predictor is trained on the stored embeddings, as
`apex_reward.train.trainer.train` does; from there adapters and predictor train together. Each
epoch every song gives one of its segments, drawn anew; validation hears whole songs.

Shape key: B = songs of a batch, n = samples in a segment, H = heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from apex_reward.data.encoder import load_encoder
from apex_reward.errors import UsageError
from apex_reward.files.atomic import atomic
from apex_reward.files.tables import write_json
from apex_reward.model.apex import ApexReward
from apex_reward.train.adapters import add_adapters, merge_adapters
from apex_reward.train.card import write_trained_card
from apex_reward.train.dataset import Data, split_folders
from apex_reward.train.draws import epoch_batches, stream
from apex_reward.train.evaluate import TRAINING_FILE, Checkpoint
from apex_reward.train.loop import Loop
from apex_reward.train.report import metrics_report
from apex_reward.train.session import load_training_data, make_accelerator
from apex_reward.train.settings import Condition, TrainSettings
from apex_reward.train.songs import AudioSongs, song_paths
from apex_reward.train.stack import PredictorStack, shape_of
from apex_reward.train.steps import predict
from apex_reward.train.trainer import (
    OnEpoch,
    about,
    finish_run,
    followed,
    pooling_with,
    run_history,
    train,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

# Told how many songs of an epoch have been heard, and how many there are.
OnSongs = Callable[[int, int], None]


def tune_encoder(
    data: Path,
    audio_dir: Path,
    output: Path,
    condition: Condition,
    settings: TrainSettings,
    *,
    encoder: str | None = None,
    teacher_file: Path | None = None,
    resume: bool = False,
    on_frozen: OnEpoch = lambda row: None,
    on_epoch: OnEpoch = lambda row: None,
    on_songs: OnSongs = lambda done, total: None,
) -> dict[str, Any]:
    """Train predictor and encoder adapters; the result is a whole model in `output/best`.

    `output/frozen` holds the predictor on the untouched encoder, for comparison.

    Args:
        data: shards, for the labels, the split and the first predictor.
        audio_dir: where the songs are, by the shards' `path`, else `<audio_id>.*`.
        encoder: folder or hub id; None takes what the shards say, else MERT-v1-95M.
        on_frozen: called with each new row of the first predictor's history.
        on_epoch: called with each new row of the history, and `on_songs` within an epoch.

    Returns:
        Test metrics in the form of `metrics.json`.

    Raises:
        DataError: songs whose audio is missing, listed together.
        UsageError: several processes; this trains in one.
    """
    accelerator = make_accelerator(settings.precision)
    if accelerator.num_processes > 1:
        raise UsageError("--tune-encoder trains in one process; start it without a launcher")
    found = load_training_data(
        data, condition.task, layers=settings.train_pooling, encoder=encoder,
        teacher_file=teacher_file,
    )  # fmt: skip
    paths = song_paths(split_folders(data), audio_dir, found)
    name = encoder or found.source.model_config().encoder_name
    if name is None:
        raise UsageError("the shards name no encoder; name it with --encoder")
    frozen = replace(condition, mode="song")
    train(
        found, frozen, settings, output / "frozen",
        accelerator=accelerator, resume=resume, on_epoch=on_frozen,
    )  # fmt: skip
    tuner = Tuner(
        load_encoder(name, accelerator.device), Checkpoint.load(output / "frozen" / "best"),
        found, paths, condition, settings, accelerator, on_songs,
    )  # fmt: skip
    with run_history(tuner, output) as history:
        for _ in followed(tuner, history, resume, on_epoch):
            pass  # a whole model is large: it is written once, at the end
        report = _save(tuner, found, condition, output)
        finish_run(tuner, history, report)
    return report


def _save(tuner: Tuner, found: Data, condition: Condition, output: Path) -> dict[str, Any]:
    """Write the best model and its card; the test metrics."""
    members = tuner.predict(tuner.songs["test"], tuner.best_stack(), tuner.best_adapters)
    labels = found["test"].labels[:, : members.shape[2]]
    about_it = {**about([condition]), "mode": "song"}
    report = metrics_report(about_it, members.numpy(), labels, tuner.stack.shape.heads)
    note = {"loss": condition.loss, "seed": condition.seed, "tuned": "lora"}
    with atomic(output / "best") as folder:
        tuner.merged_model().save_pretrained(folder)
        epoch = tuner.best_epoch[0]
        write_json(folder / TRAINING_FILE, {"mode": "song", **note, "epoch": epoch})
    tuned = [("seed", condition.seed), ("encoder", "tuned with LoRA")]
    write_trained_card(output / "best", found, report, tuned)
    return report


class Tuner(Loop):
    """One predictor and adapters on the encoder in training, from audio.

    Args:
        model: with the encoder to tune.
        start: the predictor and pooling to start from.
        data: the labels of every split.
        paths: the audio files of every split, in the order of its songs.
    """

    def __init__(
        self,
        model: ApexReward,
        start: Checkpoint,
        data: Data,
        paths: dict[str, list[str]],
        condition: Condition,
        settings: TrainSettings,
        accelerator: Accelerator,
        on_songs: OnSongs = lambda done, total: None,
    ) -> None:
        self.model, self.config, self.data, self.on_songs = model, start.config, data, on_songs
        self.songs = {split: AudioSongs(paths[split], model.config) for split in paths}
        device = accelerator.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(condition.seed))
            self.adapters = add_adapters(model.encoder).to(device)
        self.pooling = start.pooling.to(device).requires_grad_(False)
        stack = PredictorStack(
            shape_of(start.config),
            [start.predictor.state_dict()],
            [start.pooling] if settings.train_pooling else None,
        ).to(device)
        self.labels = {
            split: torch.as_tensor(data[split].labels[:, : len(stack.shape.heads)])
            for split in data.splits
        }
        train_labels = self.labels["train"].numpy()
        parameters = [*self.adapters.parameters(), *stack.parameters()]
        super().__init__([condition], stack, parameters, train_labels, settings, accelerator)
        self.best_adapters = _copy(self.adapters)

    def train_epoch(self) -> tuple[Tensor, Tensor]:
        """One pass over the training songs, a segment of each."""
        labels, seed = self.labels["train"], self.conditions[0].seed
        rng = np.random.default_rng([seed, self.epoch])
        errors = torch.zeros_like(self.stack.log_sigma)
        losses = errors.new_zeros(())
        done, total = 0, len(labels) + len(self.labels["val"])
        size = self.settings.batch_size
        for (rows,) in epoch_batches(len(labels), [seed], self.epoch, size, 0, 1):
            songs = [self.songs["train"].random_segment(row, rng) for row in rows.tolist()]
            segments = torch.stack(songs).to(self.accelerator.device)
            with self.accelerator.autocast():
                layers = self.model.encode_segments(segments)
            targets = labels[rows].to(self.accelerator.device).unsqueeze(1)
            masks = self.draws.draw(len(rows), self.seed_of)
            step_errors, step_losses = self.step(self._features(layers.float()), targets, masks)
            errors += step_errors * len(rows)
            losses = losses + step_losses * len(rows)
            done += len(rows)
            self.on_songs(done, total)
        return (errors / len(labels)).cpu(), (losses / len(labels)).cpu()

    def _features(self, layers: Tensor) -> Tensor:
        """Layer embeddings (B, L, W) as the stack takes them: pooled, unless its pooling trains."""
        return (layers if self.settings.train_pooling else self.pooling(layers)).unsqueeze(1)

    def validation_errors(self) -> Tensor:
        """(1, H) mean squared errors over whole validation songs, float64 on the CPU."""
        scores = self.predict(self.songs["val"], self.stack)
        total = len(self.labels["train"]) + len(scores)
        self.on_songs(total, total)
        return (scores - self.labels["val"].double().unsqueeze(1)).square().mean(dim=0)

    def predict(
        self,
        songs: AudioSongs,
        stack: PredictorStack,
        adapters: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(N, 1, H) scores of whole songs, float64 on the CPU, with other adapters where given."""
        if adapters is not None:
            self.adapters.load_state_dict(adapters)
        with torch.no_grad():
            layers = [mean.to(self.accelerator.device) for mean in songs.means(self.model)]
            return predict(stack, self._features(torch.cat(layers)).squeeze(1)).double()

    def clip(self, parameters: Sequence[nn.Parameter]) -> None:
        """Bound the norm of the whole gradient: adapters and predictor are one model."""
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip)

    def keep_best(self, position: int, condition: int) -> None:
        """Note the adapters with the predictor."""
        super().keep_best(position, condition)
        self.best_adapters = _copy(self.adapters)

    def state(self) -> dict[str, Any]:
        """As any loop's, with the adapters."""
        return {
            **super().state(),
            "adapters": self.adapters.state_dict(),
            "best_adapters": self.best_adapters,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().load(state)
        self.adapters.load_state_dict(state["adapters"])
        self.best_adapters = state["best_adapters"]

    def merged_model(self) -> ApexReward:
        """A whole model of the best epoch, whose encoder has the adapters worked in."""
        self.adapters.load_state_dict(self.best_adapters)
        merge_adapters(self.model.encoder)
        config, stack = self.config, self.best_stack()
        config.encoder, config.familiar = self.model.config.encoder, False
        whole = ApexReward(config)
        whole.encoder.load_state_dict(self.model.encoder.state_dict())
        whole.predictor.load_state_dict(stack.state_of(0))
        trained = stack.pooling_of(0)
        pooling = self.pooling if trained is None else pooling_with(trained)
        whole.pooling.load_state_dict(pooling.state_dict())
        return whole


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
