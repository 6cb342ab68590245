"""Clips of songs with a teacher's scores: what a student learns from, in shards.

Shape key: K = clips, T = samples, M = members, H = heads, W = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from apex_reward.audio.decoding import decode_song
from apex_reward.audio.resample import resample
from apex_reward.errors import DataError
from apex_reward.files.stamps import Stamp
from apex_reward.model.config import ApexConfig
from apex_reward.model.encoders.student import MEL, mel_of
from apex_reward.model.inputs import at_loudness
from apex_reward.rewards.engine import reason_of
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.saved import provenance
from apex_reward.scores.scores import Scores
from apex_reward.train.loop import ORDER, stream
from apex_reward.train.settings import DistillSettings

RATE = 24_000
KINDS = ("crop", "gain", "mixed", "damaged")
CLIPS = 8  # of each song, two of each kind
SHARD_SONGS = 8
MOST_SECONDS = 240  # of a song that clips are drawn from
HELD_OUT = 0.2  # share of the songs
GRADIENT_SONGS = 8


class Clips:
    """K clips of shards' rows; with H heads.

    Attributes:
        songs, kinds: K texts. real: (K,) samples without padding. mels: (K, bands, frames).
        labels: (K, M, H). embeddings: (K, W), None where the teacher has none.
        samples: waveforms of the first clips, for the gradient.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], heads: int) -> None:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        self.songs, self.kinds = columns["song"], columns["kind"]
        self.real = torch.tensor(columns["real"])
        self.labels = torch.tensor(columns["labels"]).unflatten(1, (-1, heads))
        mels = [np.frombuffer(mel, np.float16).reshape(MEL.bands, -1) for mel in columns["mel"]]
        self.mels = torch.from_numpy(np.stack(mels))
        known = rows[0]["embedding"] is not None
        self.embeddings = torch.tensor(columns["embedding"]) if known else None
        waves = [np.frombuffer(wave, np.float32) for wave in columns["samples"] if wave is not None]
        self.samples = [torch.tensor(wave.copy()) for wave in waves]


def shard_stamp(teacher: Reward, songs: Sequence[str], settings: DistillSettings) -> Stamp:
    """What the shards depend on: the teacher, the songs with their content, how clips are drawn."""
    drawn = [settings.seed, *MEL, CLIPS, SHARD_SONGS, MOST_SECONDS, KINDS]
    return Stamp({"teacher": provenance(teacher), "songs": list(songs), "clips": drawn}, songs)


def plan_shards(songs: Sequence[str], seed: int) -> list[tuple[str, list[str]]]:
    """Names and songs of the shards; held-out songs have shards of their own."""
    if len(songs) < 4:
        raise DataError(f"{len(songs)} songs; distillation needs 4 or more")
    order = np.random.default_rng(stream(seed, ORDER)).permutation(len(songs))
    held = max(2, round(HELD_OUT * len(songs)))
    plan = []
    for split, numbers in (("held", order[:held]), ("train", order[held:])):
        own = [songs[n] for n in numbers]
        plan += [
            (f"{split}-{start // SHARD_SONGS:05d}.parquet", own[start : start + SHARD_SONGS])
            for start in range(0, len(own), SHARD_SONGS)
        ]
    return plan


def made_shard(teacher: Reward, paths: Sequence[str], seed: int, name: str) -> pa.Table:
    """Rows of a shard: clips, and `kind` failed with an `error` for a song without clips."""
    columns = {
        "song": pa.string(), "kind": pa.string(), "error": pa.string(), "real": pa.int64(),
        "labels": pa.list_(pa.float32()), "embedding": pa.list_(pa.float32()),
        "mel": pa.binary(), "samples": pa.binary(),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    loaded: dict[str, Tensor] = {}
    for path in paths:
        try:
            loaded[path] = _song(teacher, path)
        except Exception as error:  # one song must not end the run
            rows.append({"song": path, "kind": "failed", "error": reason_of(error)})
    names = list(loaded)
    for number, path in enumerate(names):
        key = [stream(seed, *path.encode()), stream(seed, *name.encode())]
        rng = np.random.default_rng(key)
        other = loaded[names[(number + 1) % len(names)]]
        first = name == "held-00000.parquet" and number < GRADIENT_SONGS
        try:
            rows += _scored_clips(teacher, path, loaded[path], other, rng, first)
        except Exception as error:  # as above
            rows.append({"song": path, "kind": "failed", "error": reason_of(error)})
    return pa.Table.from_pylist(rows, pa.schema(columns))


def _song(teacher: Reward, path: str) -> Tensor:
    """The beginning of a song (T,), mono at 24 kHz."""
    song = decode_song(path, teacher.parts.decode_settings)
    if song.error is not None:
        raise DataError(song.error)
    rate, parts = song.sample_rate, []
    for block in song.blocks():
        parts.append(np.asarray(block, np.float32))
        if sum(map(len, parts)) >= MOST_SECONDS * rate:
            break
    song.close()
    whole = torch.from_numpy(np.concatenate(parts)[: MOST_SECONDS * rate])
    return resample(whole[None], rate, RATE)[0]


def _scored_clips(
    teacher: Reward, path: str, song: Tensor, other: Tensor, rng: np.random.Generator, first: bool
) -> list[dict[str, Any]]:
    """The rows of a song's clips."""
    window, _ = segment_of(teacher)
    clips = [_clip(KINDS[n % len(KINDS)], song, other, window, rng) for n in range(CLIPS)]
    real = [len(clip) for clip in clips]
    waves = torch.stack([F.pad(clip, (0, window - len(clip))) for clip in clips])
    if teacher.loudness is not None:
        waves = at_loudness(waves, RATE, teacher.loudness, real)
    parts = teacher.parts
    with torch.no_grad():
        scores, features = parts.forward(waves.to(parts.device), RATE, real)
        embeddings = getattr(teacher.model, "embeddings_of", lambda _: None)(features)
        labels = members_of_scores(scores).transpose(0, 1).flatten(1).float().cpu()
        mels = mel_of(waves).half()
    if not bool(labels.isfinite().all()):
        raise DataError("the teacher's scores are not finite")
    own = [None] * CLIPS if embeddings is None else embeddings.float().cpu().tolist()
    return [
        {
            "song": path, "kind": KINDS[n % len(KINDS)], "real": real[n], "embedding": own[n],
            "labels": labels[n].tolist(), "mel": mels[n].numpy().tobytes(),
            "samples": waves[n, : real[n]].numpy().tobytes() if first and n == 0 else None,
        }
        for n in range(CLIPS)
    ]  # fmt: skip


def segment_of(teacher: Reward) -> tuple[int, str]:
    """Samples of a segment at 24 kHz and the segment tail: those of an APEX model, else APEX's."""
    config = getattr(teacher.model, "config", None)
    config = config if isinstance(config, ApexConfig) else ApexConfig()
    return round(config.segment_seconds * RATE), config.segment_tail


def members_of_scores(scores: Scores) -> Tensor:
    """(M, K, H): of one ensemble its members, else the scores as one member."""
    if len(scores.ensembles) == 1 and scores.ensembles[0][0] == scores.names:
        return scores.ensembles[0][1]
    return scores.stack()[None]


def _clip(kind: str, song: Tensor, other: Tensor, window: int, rng: np.random.Generator) -> Tensor:
    """A crop (n,) of at most `window` samples, changed as `kind` says, within [-1, 1]."""
    size = min(window, len(song)) if rng.random() < 0.7 else rng.integers(window // 4, window + 1)
    clip = _crop(song, int(size), rng)
    if kind == "gain":
        clip = clip * float(10 ** (rng.uniform(-24, 6) / 20))
    elif kind == "mixed":
        second = _crop(other, len(clip), rng)
        clip = clip + float(rng.uniform(0.2, 1)) * F.pad(second, (0, len(clip) - len(second)))
    elif kind == "damaged":
        clip = _like_a_codec(clip, rng)
    return clip / clip.abs().max().clamp_min(1.0)


def _crop(song: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    start = int(rng.integers(0, max(0, len(song) - size) + 1))
    return song[start : start + size]


def _like_a_codec(clip: Tensor, rng: np.random.Generator) -> Tensor:
    """Bands above a cutoff and weak bins removed, the others rounded in dB, as at low bit rates."""
    size, window = 1024, torch.hann_window(1024)
    padded = F.pad(clip, (0, max(0, size - len(clip))))
    spectrum = torch.stft(padded, size, 256, window=window, return_complex=True)
    level = 20 * spectrum.abs().clamp_min(1e-7).log10()
    step, depth = float(rng.uniform(1, 9)), float(rng.uniform(20, 60))
    kept = level > level.amax(dim=0) - depth
    kept[round(float(rng.uniform(2500, 12_000)) / RATE * size) :] = False
    rounded = 10 ** ((level / step).round() * step / 20)
    changed = torch.polar(rounded * kept, spectrum.angle())
    return torch.istft(changed, size, 256, window=window, length=len(padded))[: len(clip)]
