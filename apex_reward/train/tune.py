"""Tune the encoder too: LoRA adapters on MERT's attention, trained from audio through segments.

For music far from what MERT heard. First a predictor is trained on the stored embeddings, as
`apex_reward.train.trainer.train` does; from there adapters and predictor train together. Each
epoch every song gives one of its segments, drawn anew; validation hears whole songs.

Shape key: B = songs of a batch, n = samples in a segment, H = heads.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from apex_reward.data.encoder import load_encoder
from apex_reward.errors import UsageError
from apex_reward.files.tables import atomic_path, write_json
from apex_reward.model.apex import ApexReward
from apex_reward.train.adapters import add_adapters, merge_adapters
from apex_reward.train.dataset import Split, split_folders
from apex_reward.train.draws import DROPOUT, epoch_batches, stream
from apex_reward.train.evaluate import TRAINING_FILE, Checkpoint, head_metrics, write_report
from apex_reward.train.losses import combine
from apex_reward.train.plots import plot_curves
from apex_reward.train.session import load_training_data, make_accelerator
from apex_reward.train.settings import Condition, Settings
from apex_reward.train.songs import AudioSongs, song_paths
from apex_reward.train.steps import label_variances
from apex_reward.train.trainer import STATE_FILE, clear, train, write_history

if TYPE_CHECKING:
    from accelerate import Accelerator


def tune_encoder(
    data: Path,
    audio_dir: Path,
    output: Path,
    condition: Condition,
    settings: Settings,
    *,
    encoder: str | None = None,
    songeval: Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train predictor and encoder adapters; the result is a whole model in `output/best`.

    `output/frozen` holds the predictor on the untouched encoder, for comparison.

    Args:
        data: shards, for the labels, the split and the first predictor.
        audio_dir: where the songs are, by the shards' `path`, else `<audio_id>.*`.
        encoder: folder or hub id; None takes what the shards say, else MERT-v1-95M.

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
        data, condition.task, layers=settings.train_pooling, encoder=encoder, songeval=songeval
    )
    paths = song_paths(split_folders(data), audio_dir, found)
    name = encoder or found.source.model_config().encoder_name
    if name is None:
        raise UsageError("the shards name no encoder; name it with --encoder")
    frozen = replace(condition, mode="song")
    train(found, frozen, settings, output / "frozen", accelerator=accelerator, resume=resume)
    model = load_encoder(name, accelerator.device)
    tuner = _Tuner(
        model, Checkpoint.load(output / "frozen" / "best"), condition, settings, accelerator
    )
    songs = {split: AudioSongs(paths[split], model.config) for split in paths}
    variances = label_variances(found["train"].labels, tuner.heads, [condition])
    state = output / STATE_FILE
    if resume and state.is_file():
        tuner.load_state(state)
    else:
        clear(output)
    while not tuner.finished:
        tuner.run_epoch(found, songs, variances)
        tuner.save_state(state)
        write_history(tuner.history, output / "history.jsonl.partial")
    return _finish(tuner, songs["test"], found["test"], condition, output)


def _finish(
    tuner: _Tuner, songs: AudioSongs, split: Split, condition: Condition, output: Path
) -> dict[str, Any]:
    """Leave the best model, merged, and its measures."""
    tuner.restore_best()
    best = tuner.merged_model()
    report = _report(tuner, songs, split, condition)
    best.save_pretrained(output / "best")
    about = {"mode": "song", "loss": condition.loss, "seed": condition.seed, "tuned": "lora"}
    write_json(output / "best" / TRAINING_FILE, {**about, "epoch": tuner.best_epoch})
    write_report(output, report)
    plot_curves(tuner.history, condition, output / "curves.png")
    write_history(tuner.history, output / "history.jsonl")
    (output / "history.jsonl.partial").unlink(missing_ok=True)
    return report


class _Tuner:
    """Adapters, predictor and learned sigmas in training."""

    def __init__(
        self,
        model: ApexReward,
        start: Checkpoint,
        condition: Condition,
        settings: Settings,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.condition, self.settings = model, condition, settings
        self.accelerator, self.config = accelerator, start.config
        self.heads = start.config.head_names
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(condition.seed))
            self.adapters = add_adapters(model.encoder)
        self.predictor = start.predictor.to(accelerator.device)
        self.pooling = start.pooling.to(accelerator.device).requires_grad_(settings.train_pooling)
        self.log_sigma = nn.Parameter(torch.zeros(len(self.heads), device=accelerator.device))
        modules = {"adapters": self.adapters, "predictor": self.predictor, "pooling": self.pooling}
        self.trained = nn.ModuleDict(modules)
        self.trained.register_parameter("log_sigma", self.log_sigma)
        self.trained.to(accelerator.device)
        self.optimizer = accelerator.prepare_optimizer(
            torch.optim.AdamW(
                [p for p in self.trained.parameters() if p.requires_grad],
                lr=settings.lr,
                weight_decay=settings.weight_decay,
            )
        )
        self.epoch, self.best_epoch, self.best_loss = 0, 0, float("inf")
        self.history: list[dict[str, float | int]] = []
        self.best = self._copy()

    @property
    def finished(self) -> bool:
        waited = self.epoch - self.best_epoch
        return self.epoch >= self.settings.epochs or waited >= self.settings.patience

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.trained.state_dict().items()}

    def restore_best(self) -> None:
        self.trained.load_state_dict(self.best)

    def run_epoch(self, data: Any, songs: dict[str, AudioSongs], variances: Tensor) -> None:
        """One pass over the training songs, then the validation songs."""
        self.epoch += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr_at(self.epoch)
        variances = variances.to(self.accelerator.device)
        labels = torch.as_tensor(data["train"].labels[:, : len(self.heads)])
        seed = self.condition.seed
        torch.manual_seed(stream(seed, self.epoch, DROPOUT))
        rng = np.random.default_rng([seed, self.epoch])
        self.predictor.train()
        total, errors_sum = 0.0, torch.zeros(len(self.heads), dtype=torch.float64)
        for batch in epoch_batches(len(labels), [seed], self.epoch, self.settings.batch_size, 0, 1):
            rows = batch[0].tolist()
            segments = torch.stack([songs["train"].random_segment(row, rng) for row in rows])
            errors, loss = self._step(segments, labels[batch[0]], variances)
            total += float(loss) * len(rows)
            errors_sum += errors.double().cpu() * len(rows)
        self._validate(
            data["val"], songs["val"], total / len(labels), errors_sum / len(labels), variances
        )

    def _step(self, segments: Tensor, labels: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        """One optimisation step on segments (B, n) with labels (B, H)."""
        device = self.accelerator.device
        with self.accelerator.autocast():
            layers = self.model.encode_segments(segments.to(device))
        scores = self.predictor(self.pooling(layers.float()))
        errors = (scores - labels.to(device)).square().mean(dim=0)
        loss = combine(self.condition.loss, errors, self.log_sigma, variances)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.trained.parameters(), self.settings.clip)
        self.optimizer.step()
        return errors.detach(), loss.detach()

    def _validate(
        self, split: Split, songs: AudioSongs, train_loss: float, train: Tensor, variances: Tensor
    ) -> None:
        labels = torch.as_tensor(split.labels[:, : len(self.heads)]).double()
        errors = (self.predict(songs) - labels).square().mean(dim=0)
        sigma = self.log_sigma.detach().cpu().double()
        loss = float(combine(self.condition.loss, errors, sigma, variances.cpu().double()))
        row: dict[str, float | int] = {
            "epoch": self.epoch,
            "lr": self.settings.lr_at(self.epoch),
            "train_loss": train_loss,
            "val_loss": loss,
        }
        for name, values in (("train_mse", train), ("val_mse", errors), ("sigma", sigma.exp())):
            row |= {f"{name}_{h}": v for h, v in zip(self.heads, values.tolist(), strict=True)}
        self.history.append(row)
        if loss < self.best_loss:
            self.best_loss, self.best_epoch, self.best = loss, self.epoch, self._copy()

    def predict(self, songs: AudioSongs) -> Tensor:
        """(N, H) scores of whole songs, float64 on the CPU."""
        self.predictor.eval()
        with torch.no_grad():
            embeddings = [
                self.pooling(layers.to(self.accelerator.device))
                for layers in songs.means(self.model)
            ]
            return self.predictor(torch.cat(embeddings)).double().cpu()

    def merged_model(self) -> ApexReward:
        """A whole model whose encoder has the adapters worked in."""
        merge_adapters(self.model.encoder)
        config = self.config
        config.encoder = self.model.config.encoder
        whole = ApexReward(config)
        whole.encoder.load_state_dict(self.model.encoder.state_dict())
        whole.predictor.load_state_dict(self.predictor.state_dict())
        whole.pooling.load_state_dict(self.pooling.state_dict())
        return whole

    def save_state(self, path: Path) -> None:
        state = {
            "about": self._about(),
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "history": json.dumps(self.history),
            "trained": self.trained.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def load_state(self, path: Path) -> None:
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        if state["about"] != self._about():
            raise UsageError(
                f"the run to resume had other settings; give the same ones, or leave out --resume:"
                f"\n  then {state['about']}\n  now  {self._about()}"
            )
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_loss, self.history = state["best_loss"], json.loads(state["history"])
        self.trained.load_state_dict(state["trained"])
        self.best = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])

    def _about(self) -> str:
        return json.dumps({**self.settings.to_dict(), **vars(self.condition)})


def _report(tuner: _Tuner, songs: AudioSongs, split: Split, condition: Condition) -> dict[str, Any]:
    pred = tuner.predict(songs).numpy()
    return {
        "mode": "song",
        "task": condition.task,
        "loss": condition.loss,
        "shared": condition.shared,
        "n_songs": len(split.labels),
        "metrics": head_metrics(pred, split.labels.astype(np.float64), tuner.heads),
    }
