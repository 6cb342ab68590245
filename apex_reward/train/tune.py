"""Tune the encoder too: LoRA adapters on MERT's attention, trained from audio through segments.

For music far from what MERT was trained on. First a predictor is trained on the stored embeddings,
as `apex_reward.train.trainer.train` does; from there adapters (Hu et al. 2021, through peft) and
predictor train together. In each epoch every song gives one of its segments, drawn anew;
validation reads whole songs.

Shape key: B = songs of a batch, n = samples in a segment, L = layers, W = embedding width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from apex_reward.audio.decoding import DecodeSettings, decode_song
from apex_reward.audio.load import songs_by_stem
from apex_reward.audio.resample import resample
from apex_reward.audio.segment import cut_segments
from apex_reward.data.shards import load_encoder
from apex_reward.errors import DataError, UsageError
from apex_reward.files.atomic import atomic
from apex_reward.files.tables import write_json
from apex_reward.metrics import few_songs
from apex_reward.model.apex import ApexReward
from apex_reward.model.config import ApexConfig
from apex_reward.rewards.engine import encode_files
from apex_reward.train.evaluate import TRAINING_FILE, Checkpoint
from apex_reward.train.loop import Loop, Network, predict, seeded, stream
from apex_reward.train.report import metrics_report, write_trained_card
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
    layers = settings.train_pooling
    found = load_training_data(data, settings.task, layers=layers, teacher_file=teacher_file)
    paths = song_paths(split_folders(data), audio_dir, found)
    name = found.source.model_config().encoder_name
    if name is None:
        raise UsageError("the shards name no encoder; extract them again")
    frozen = replace(settings, mode="song")
    first = output / "frozen"
    train(found, frozen, first, accelerator=accelerator, resume=resume, on_epoch=on_frozen)
    start = Checkpoint.load(first / "best")
    model = load_encoder(name, accelerator.device)
    tuner = Tuner(model, start, found, paths, settings, accelerator, on_songs)
    with run_history([tuner], output) as history:
        stamp = run_stamp(found, settings, [path for split in paths for path in paths[split]])
        for _ in followed([tuner], history, stamp, resume, on_epoch):
            pass  # a whole model is large: it is written once, at the end
        with tuner.at_best():
            members = tuner.predict("test").unsqueeze(1).numpy()
        shape = {k: getattr(settings, k) for k in ("task", "loss", "shared")}
        labels = tuner.labels["test"].numpy()
        report = metrics_report({"mode": "song", **shape}, members, labels, tuner.heads)
        report["warnings"] = few_songs(found.songs)
        with atomic(output / "best") as folder:
            tuner.merged_model().save_pretrained(folder)
            note = {"loss": settings.loss, "seed": settings.seed, "tuned": "lora"}
            write_json(folder / TRAINING_FILE, {"mode": "song", **note, "epoch": tuner.best_epoch})
        how = [("seed", settings.seed), ("encoder", "tuned with LoRA")]
        write_trained_card(output / "best", found.songs, report, how)
        finish_run([tuner], history, report)
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
        self.model, self.config, self.paths, self.on_songs = model, start.config, paths, on_songs
        device = accelerator.device
        model.encoder.requires_grad_(False)
        lora = LoraConfig(r=RANK, lora_alpha=SCALE, target_modules=TARGETS)
        with seeded(stream(settings.seed)):
            self.lora = LoraModel(model.encoder, lora, "default")
        layers: list[Any] = [m for m in model.encoder.modules() if isinstance(m, LoraLayer)]
        self.adapters = nn.ModuleList([p for one in layers for p in (one.lora_A, one.lora_B)])
        self.pooling = start.pooling.to(device).requires_grad_(False)
        trained = copy.deepcopy(start.pooling).requires_grad_() if settings.train_pooling else None
        network = Network(start.predictors[0], trained, self.adapters).to(device)
        heads = len(network.log_sigma)
        self.labels = {
            split: torch.as_tensor(data[split].labels[:, :heads]) for split in data.splits
        }
        self.total = len(self.labels["train"]) + len(self.labels["val"])
        super().__init__(settings, network, self.labels["train"].numpy(), accelerator)

    def train_epoch(self) -> Sequence[Tensor]:
        """One pass over the training songs, a segment of each."""
        self.random, self.done = np.random.default_rng([self.settings.seed, self.epoch]), 0
        return super().train_epoch()

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a segment of each song, drawn anew, and labels."""
        paths = [self.paths["train"][row] for row in rows.tolist()]
        segments = torch.stack([random_segment(p, self.model.config, self.random) for p in paths])
        with self.accelerator.autocast():
            layers = self.model.encode_segments(segments.to(self.accelerator.device))
        return self._features(layers.float()), self.labels["train"][rows].to(layers.device)

    def step(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A step as of any `Loop`, whose songs are counted."""
        measured = super().step(features, labels)
        self.done += len(labels)
        self.on_songs(self.done, self.total)
        return measured

    def _features(self, layers: Tensor) -> Tensor:
        """Layer embeddings (B, L, W) for the network: pooled, unless its pooling trains."""
        return layers if self.settings.train_pooling else self.pooling(layers)

    def validation_errors(self) -> Tensor:
        """(H,) mean squared errors over whole validation songs, float64 on the CPU."""
        scores = self.predict("val")
        self.on_songs(self.total, self.total)
        return (scores - self.labels["val"].double()).square().mean(dim=0)

    def predict(self, split: str) -> Tensor:
        """(N, H) scores of a split's whole songs, float64 on the CPU."""
        layers = []
        with torch.no_grad():
            for result in encode_files(self.model, self.paths[split]):
                if result.error is not None:
                    raise DataError(f"{result.path} {result.error}")
                layers.append(result.features[0].to(self.accelerator.device))
            return predict(self.network, self._features(torch.cat(layers))).double()

    def merged_model(self) -> ApexReward:
        """A whole model of the best epoch, with the adapters merged into its encoder."""
        self.network.load_state_dict(self.best)
        encoder = self.lora.merge_and_unload()
        self.config.encoder, self.config.familiar = self.model.config.encoder, False
        whole = ApexReward(self.config)
        whole.encoder.load_state_dict(encoder.state_dict())
        whole.predictor.load_state_dict(self.network.predictor.state_dict())
        whole.pooling.load_state_dict((self.network.pooling or self.pooling).state_dict())
        return whole


def random_segment(path: str, config: ApexConfig, random: np.random.Generator) -> Tensor:
    """One (n,) segment of a song, as extraction would cut it, drawn evenly."""
    song = decode_song(path, DecodeSettings(config.segment_seconds, config.sample_rate))
    if song.error is not None:
        raise DataError(f"{path} {song.error}")
    rate, mono = config.sample_rate, torch.from_numpy(song.mono)[None]
    waveform = resample(mono, song.sample_rate, rate)
    lengths, tail = [waveform.shape[1]], config.segment_tail
    segments = cut_segments(waveform, lengths, config.segment_samples, rate, tail).samples
    return segments[int(random.integers(len(segments)))]


def song_paths(folders: Mapping[str, Path], audio_dir: Path, data: Data) -> dict[str, list[str]]:
    """The audio file of every song, per split, in the order of the split's songs.

    It is the shards' own `path`, else a file with the song's name.

    Raises:
        DataError: songs without a file, listed together.
    """
    problems: list[str] = []
    found: dict[str, list[str]] = {}
    by_stem = songs_by_stem(audio_dir)
    for split, folder in folders.items():
        stored: dict[str, str | None] = {}
        for file in sorted(folder.glob("*.parquet")):
            if "path" in pq.read_schema(file).names:
                columns = pq.read_table(file, columns=["audio_id", "path"]).to_pydict().values()
                stored |= dict(zip(*columns, strict=True))
        found[split] = []
        for name in data[split].audio_ids:
            own = stored.get(name)
            path = audio_dir / own if own else by_stem.get(name)
            if path is None or not path.is_file():
                problems.append(f"{split}: {name}: {path or 'no file of that name'}")
            found[split].append(str(path))
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError.listing(f"songs without audio in {audio_dir}", problems[:SHOWN] + more)
    return found
