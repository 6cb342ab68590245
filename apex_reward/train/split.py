"""One split in memory, and the samples that models train on.

Shape key: R = segments, N = songs, n = samples, L = layers, W = embedding width, H = heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from apex_reward.data.shards import FloatArray
from apex_reward.errors import UsageError
from apex_reward.scores.apex import task_heads

IntArray = npt.NDArray[np.int64]
Mode = Literal["song", "segment"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass
class Samples:
    """What a model trains on or is evaluated on.

    Attributes:
        features: (n, W) embeddings, or (n, L, W) where the layer pooling trains.
        labels: (n, H) in head order.
        song: (n,) song number of each sample, rising; in song mode 0 to n - 1.
        weight: (n,) what each sample counts in its song's mean, 1 for the largest of a song.
    """

    features: npt.NDArray[np.floating]
    labels: FloatArray
    song: IntArray
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Split:
    """One split in memory; the rows of a song are neighbours, in song order.

    Attributes:
        embeddings: (R, W) float32, or (R, L, W) float16 layer embeddings.
        song: (R,) song number of each row, rising.
        weight: (R,) what each row counts in its song's mean, 1 for the largest of a song.
        labels: (N, H) float32.
        audio_ids: N names.
    """

    embeddings: npt.NDArray[np.floating]
    song: IntArray
    weight: FloatArray
    labels: FloatArray
    audio_ids: list[str]

    def samples(self, mode: str, task: str) -> Samples:
        """Song mode: a song's mean embedding is one sample. Segment mode: each segment is.

        The pooling is linear, so the mean of the layer embeddings serves where it trains.
        """
        labels = self.labels[:, : len(task_heads(task))]
        if mode == "segment":
            return Samples(self.embeddings, labels[self.song], self.song, self.weight)
        if mode != "song":
            raise UsageError(f"mode is {mode!r}; expected 'song' or 'segment'")
        means = song_means(self.embeddings, self.song, self.weight, np.float32)
        songs = len(labels)
        return Samples(means, labels, np.arange(songs), np.ones(songs, np.float32))


def song_means(
    values: npt.NDArray[Any], song: IntArray, weight: FloatArray, dtype: npt.DTypeLike = np.float64
) -> npt.NDArray[Any]:
    """Weighted mean over each song's samples: (n, ...) with rising song numbers -> (N, ...).

    Args:
        weight: (n,) what each sample counts in its song.
        dtype: of the sums.
    """
    starts = np.flatnonzero(np.diff(song, prepend=-1))
    shape = -1, *[1] * (values.ndim - 1)
    if not (weight == 1).all():  # else the weighing is a copy of what may be gigabytes
        values = values * weight.reshape(shape)
    sums = np.add.reduceat(values, starts, axis=0, dtype=dtype)
    return np.asarray(sums / np.add.reduceat(weight, starts, dtype=dtype).reshape(shape))
