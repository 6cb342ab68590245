"""Songs of any rate and length as one padded batch, in the form of transformers.

Shape key: B = songs, C = channels, T = samples of the longest song.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor

from apex_reward.audio.resample import resample
from apex_reward.errors import UsageError
from apex_reward.model.inputs import mono_mix


class ApexFeatureExtractor(SequenceFeatureExtractor):
    """Brings songs to the encoder's rate, in mono, padded with zeros on the right.

        features = extractor(songs, sampling_rate=44_100)
        scores = model(**features, sample_rate=extractor.sampling_rate)

    Args:
        sampling_rate: Hz of what it returns.

    >>> features = ApexFeatureExtractor()([np.zeros(24_000), np.zeros(6_000)], 12_000)
    >>> features["waveforms"].shape, features["lengths"].tolist()
    (torch.Size([2, 48000]), [48000, 12000])
    """

    model_input_names = ["waveforms", "lengths"]  # noqa: RUF012

    def __init__(self, sampling_rate: int = 24_000, **kwargs: Any) -> None:
        options = {"feature_size": 1, "padding_value": 0.0, "padding_side": "right", **kwargs}
        super().__init__(sampling_rate=sampling_rate, **options)

    def __call__(
        self, songs: Any, sampling_rate: int | None = None, return_tensors: str = "pt"
    ) -> BatchFeature:
        """One batch of songs.

        Args:
            songs: a song or a sequence of them: float arrays or tensors (T,) or (C, T) in [-1, 1],
                or mappings with `array` and `sampling_rate`.
            sampling_rate: Hz of the arrays.
            return_tensors: `pt` or `np`.

        Returns:
            `waveforms` (B, T) at `self.sampling_rate`, and `lengths` (B,).

        Raises:
            UsageError: no rate, or something that is no song.
        """
        several = isinstance(songs, Sequence) and not isinstance(songs, str)
        heard = [self._mono(song, sampling_rate) for song in (songs if several else [songs])]
        waveforms = torch.nn.utils.rnn.pad_sequence(heard, batch_first=True)
        features = {"waveforms": waveforms, "lengths": torch.tensor([len(song) for song in heard])}
        if return_tensors == "np":
            return BatchFeature({name: value.numpy() for name, value in features.items()})
        return BatchFeature(features)

    def _mono(self, song: Any, rate: int | None) -> torch.Tensor:
        if isinstance(song, dict) and "array" in song:
            song, rate = song["array"], int(song.get("sampling_rate") or rate or 0)
        if not rate:
            raise UsageError("songs are arrays and no rate is given; pass sampling_rate= in Hz")
        wave = song if isinstance(song, torch.Tensor) else torch.as_tensor(np.asarray(song))
        if wave.dtype == torch.float64:
            wave = wave.float()
        if wave.ndim not in (1, 2):
            raise UsageError(f"a song has shape {tuple(wave.shape)}; expected (T,) or (C, T)")
        return resample(mono_mix(wave[None])[0], rate, self.sampling_rate)
