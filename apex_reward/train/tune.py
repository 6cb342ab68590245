"""Tune the encoder too: LoRA adapters on MERT's attention, trained from audio through segments.

For music far from what MERT was trained on. First a predictor is trained on the stored embeddings,
as `apex_reward.train.trainer.train` does; from there adapters (Hu et al. 2021, through peft) and
predictor train together. In each epoch every song gives one of its segments, drawn anew;
validation reads whole songs.

Shape key: B = songs of a batch, n = samples in a segment, L = layers, W = embedding width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from apex_reward.audio.decoding import DecodeSettings, decode_song
from apex_reward.audio.resample import resample
from apex_reward.audio.segment import cut_segments
from apex_reward.data.shards import load_encoder
from apex_reward.errors import DataError, UsageError
from apex_reward.files.atomic import atomic
from apex_reward.files.tables import write_json
from apex_reward.model.apex import ApexReward
from apex_reward.model.config import ApexConfig
from apex_reward.rewards.encode import encode_files
from apex_reward.train.evaluate import TRAINING_FILE, Checkpoint
from apex_reward.train.loop import Loop, Network, epoch_batches, predict, seeded, stream
from apex_reward.train.report import few_songs, metrics_report, write_trained_card
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Data, load_training_data, split_folders
from apex_reward.train.trainer import (
    OnEpoch,
    finish_run,
    followed,
    make_accelerator,
    run_history,
    run_stamp,
    train,
)

RANK, SCALE = 8, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
SHOWN = 20
# Called with the number of songs of an epoch that are done, and the number of all.
OnSongs = Callable[[int, int], None]


def tune_encoder(
    data: Path,
    audio_dir: Path,
    output: Path,
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
        encoder: folder or hub id; None means what the shards say, else MERT-v1-95M.
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
        data, settings.task, layers=settings.train_pooling, encoder=encoder,
        teacher_file=teacher_file,
    )  # fmt: skip
    paths = song_paths(split_folders(data), audio_dir, found)
    name = encoder or found.source.model_config().encoder_name
    if name is None:
        raise UsageError("the shards name no encoder; name it with --encoder")
    frozen = replace(settings, mode="song")
    train(
        found, frozen, output / "frozen",
        accelerator=accelerator, resume=resume, on_epoch=on_frozen,
    )  # fmt: skip
    tuner = Tuner(
        load_encoder(name, accelerator.device), Checkpoint.load(output / "frozen" / "best"),
        found, paths, settings, accelerator, on_songs,
    )  # fmt: skip
    with run_history([tuner], output) as history:
        stamp = run_stamp(found, settings, [path for split in paths for path in paths[split]])
        for _ in followed([tuner], history, stamp, resume, on_epoch):
            pass  # a whole model is large: it is written once, at the end
        report = _save(tuner, found, output)
        finish_run([tuner], history, report)
    return report


def _save(tuner: Tuner, found: Data, output: Path) -> dict[str, Any]:
    """Write the best model and its card; the test metrics."""
    with tuner.at_best():
        members = tuner.predict(tuner.songs["test"]).unsqueeze(1).numpy()
    settings, labels = tuner.settings, found["test"].labels[:, : len(tuner.heads)]
    about = {"mode": "song", **{k: getattr(settings, k) for k in ("task", "loss", "shared")}}
    report = metrics_report(about, members, labels, tuner.heads)
    report["warnings"] = few_songs(found.songs)
    with atomic(output / "best") as folder:
        tuner.merged_model().save_pretrained(folder)
        note = {"loss": settings.loss, "seed": settings.seed, "tuned": "lora"}
        write_json(folder / TRAINING_FILE, {"mode": "song", **note, "epoch": tuner.best_epoch})
    tuned = [("seed", settings.seed), ("encoder", "tuned with LoRA")]
    write_trained_card(output / "best", found.songs, report, tuned)
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
        settings: TrainSettings,
        accelerator: Accelerator,
        on_songs: OnSongs = lambda done, total: None,
    ) -> None:
        self.model, self.config, self.on_songs = model, start.config, on_songs
        self.songs = {split: AudioSongs(paths[split], model.config) for split in paths}
        device = accelerator.device
        with seeded(stream(settings.seed)):
            self.adapters = add_adapters(model.encoder).to(device)
        self.pooling = start.pooling.to(device).requires_grad_(False)
        trained = copy.deepcopy(start.pooling).requires_grad_() if settings.train_pooling else None
        network = Network(start.predictors[0], trained).to(device)
        heads = len(network.log_sigma)
        self.labels = {
            split: torch.as_tensor(data[split].labels[:, :heads]) for split in data.splits
        }
        labels = self.labels["train"].numpy()
        parameters = [*self.adapters.parameters(), *network.parameters()]
        super().__init__(settings, network, parameters, labels, accelerator)

    def train_epoch(self) -> tuple[Tensor, Tensor]:
        """One pass over the training songs, a segment of each."""
        labels, seed = self.labels["train"], self.settings.seed
        rng = np.random.default_rng([seed, self.epoch])
        errors, losses = torch.zeros_like(self.variances), self.variances.new_zeros(())
        done, total = 0, len(labels) + len(self.labels["val"])
        for rows in epoch_batches(len(labels), seed, self.epoch, self.settings.batch_size):
            songs = [self.songs["train"].random_segment(row, rng) for row in rows.tolist()]
            segments = torch.stack(songs).to(self.accelerator.device)
            with self.accelerator.autocast():
                layers = self.model.encode_segments(segments)
            targets = labels[rows].to(self.accelerator.device)
            step_errors, step_loss = self.step(self._features(layers.float()), targets)
            errors, losses = errors + step_errors * len(rows), losses + step_loss * len(rows)
            done += len(rows)
            self.on_songs(done, total)
        return errors / len(labels), losses / len(labels)

    def _features(self, layers: Tensor) -> Tensor:
        """Layer embeddings (B, L, W) for the network: pooled, unless its pooling trains."""
        return layers if self.settings.train_pooling else self.pooling(layers)

    def validation_errors(self) -> Tensor:
        """(H,) mean squared errors over whole validation songs, float64 on the CPU."""
        scores = self.predict(self.songs["val"])
        total = len(self.labels["train"]) + len(scores)
        self.on_songs(total, total)
        return (scores - self.labels["val"].double()).square().mean(dim=0)

    def predict(self, songs: AudioSongs) -> Tensor:
        """(N, H) scores of whole songs, float64 on the CPU."""
        with torch.no_grad():
            layers = [mean.to(self.accelerator.device) for mean in songs.means(self.model)]
            return predict(self.network, self._features(torch.cat(layers))).double()

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the network and the adapters."""
        adapters = self.adapters.state_dict().items()
        return super().snapshot() | {f"adapters.{name}": v.clone() for name, v in adapters}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Go back to a snapshot."""
        mine = {n: v for n, v in snapshot.items() if n.startswith("adapters.")}
        self.adapters.load_state_dict({n.removeprefix("adapters."): v for n, v in mine.items()})
        super().restore({n: v for n, v in snapshot.items() if n not in mine})

    def merged_model(self) -> ApexReward:
        """A whole model of the best epoch, with the adapters merged into its encoder."""
        self.restore(self.best)
        merge_adapters(self.model.encoder)
        self.config.encoder, self.config.familiar = self.model.config.encoder, False
        whole = ApexReward(self.config)
        whole.encoder.load_state_dict(self.model.encoder.state_dict())
        whole.predictor.load_state_dict(self.network.predictor.state_dict())
        whole.pooling.load_state_dict((self.network.pooling or self.pooling).state_dict())
        return whole


def add_adapters(encoder: nn.Module) -> nn.ModuleList:
    """Put LoRA adapters on the attention projections; only they require gradients.

    Returns:
        The adapters' own modules, which hold nothing of the encoder.

    Raises:
        UsageError: the encoder has no such projections.
    """
    encoder.requires_grad_(False)
    try:
        inject_adapter_in_model(
            LoraConfig(r=RANK, lora_alpha=SCALE, target_modules=TARGETS), encoder
        )
    except ValueError as error:
        raise UsageError(f"this encoder takes no adapters: {error}") from error
    adapters = nn.ModuleList()
    for _, layer in _adapted(encoder):
        adapters += [layer.lora_A, layer.lora_B]
    return adapters


def merge_adapters(encoder: nn.Module) -> None:
    """Merge the adapters into the weights and remove them: the encoder's names are as before."""
    for name, layer in _adapted(encoder):
        layer.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(encoder.get_submodule(parent), leaf, layer.get_base_layer())


def _adapted(encoder: nn.Module) -> list[tuple[str, Any]]:
    return [(n, module) for n, module in encoder.named_modules() if isinstance(module, LoraLayer)]


def song_paths(folders: Mapping[str, Path], audio_dir: Path, data: Data) -> dict[str, list[str]]:
    """The audio file of every song, per split, in the order of the split's songs.

    Raises:
        DataError: songs without a file, listed together.
    """
    problems: list[str] = []
    found: dict[str, list[str]] = {}
    by_stem = {path.stem: path for path in sorted(audio_dir.rglob("*"), reverse=True)}
    for split, folder in folders.items():
        stored = _stored_paths(folder)
        found[split] = []
        for name in data[split].audio_ids:
            path = audio_dir / stored[name] if name in stored else by_stem.get(name)
            if path is None or not path.is_file():
                problems.append(f"{split}: {name}: {path or 'no file of that name'}")
            found[split].append(str(path))
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError.listing(f"songs without audio in {audio_dir}", problems[:SHOWN] + more)
    return found


def _stored_paths(folder: Path) -> dict[str, str]:
    """The shards' own `path` of every song, where they have it."""
    paths: dict[str, str] = {}
    for file in sorted(folder.glob("*.parquet")):
        if "path" in pq.read_schema(file).names:
            table = pq.read_table(file, columns=["audio_id", "path"])
            columns = (table[name].to_pylist() for name in ("audio_id", "path"))
            paths |= {str(name): path for name, path in zip(*columns, strict=True) if path}
    return paths


class AudioSongs:
    """Songs by number, decoded when asked for."""

    def __init__(self, paths: Sequence[str], config: ApexConfig) -> None:
        self.paths, self.config = list(paths), config

    def random_segment(self, number: int, rng: np.random.Generator) -> Tensor:
        """One (n,) segment of a song, as extraction would cut it, drawn evenly."""
        config = self.config
        song = decode_song(
            self.paths[number], DecodeSettings(config.segment_seconds, config.sample_rate)
        )
        if song.error is not None:
            raise DataError(f"{self.paths[number]} {song.error}")
        waveform = resample(torch.from_numpy(song.mono)[None], song.sample_rate, config.sample_rate)
        segments = cut_segments(
            waveform,
            [waveform.shape[1]],
            config.segment_samples,
            config.sample_rate,
            config.segment_tail,
        )
        return segments.samples[int(rng.integers(len(segments.samples)))]

    def means(self, model: ApexReward) -> Iterator[Tensor]:
        """(1, L, W) mean layer embeddings of every song, in order."""
        for result in encode_files(model, self.paths):
            if result.error is not None:
                raise DataError(f"{result.path} {result.error}")
            yield result.features[0]
