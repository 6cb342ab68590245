"""Songs of a data set as audio, for training the encoder.

Shape key: n = samples in a segment, S = segments, L = layers, W = embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from apex_reward.audio.decoding import DecodeSettings, decode_song
from apex_reward.audio.resample import resample
from apex_reward.audio.segment import cut_segments
from apex_reward.errors import DataError
from apex_reward.rewards.encode import encode_files
from apex_reward.train.dataset import Data

if TYPE_CHECKING:
    from apex_reward.model.apex import ApexReward
    from apex_reward.model.config import ApexConfig

SHOWN = 20


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
    import pyarrow.parquet as pq

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
