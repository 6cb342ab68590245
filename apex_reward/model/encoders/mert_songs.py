"""MERT over whole songs: the last hidden state, averaged over a song heard in one pass.

Shape key: B = songs, T = samples, W = width (1024 for MERT-v1-330M).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from torch import Tensor, nn
from transformers import HubertConfig

from apex_reward.audio.segment import Segments, whole_song
from apex_reward.model.encoders.mert import MertEncoder
from apex_reward.model.encoders.segments import weights_hash

SAMPLE_RATE = 24_000
# The convolutions see 400 samples at once; a shorter song is padded with zeros.
SHORTEST = 400


class MertSongs:
    """A `SongEncoder` that hears whole songs; memory grows with the square of their length.

    Args:
        encoder: a `MertEncoder` that keeps its last hidden state only.
    """

    name = "mert"
    sample_rate = SAMPLE_RATE
    batch_segments = 1
    window: int | None = None
    by_length = False

    def __init__(self, encoder: MertEncoder) -> None:
        self.encoder = encoder

    def cut(self, songs: Tensor, lengths: Sequence[int]) -> Segments:
        """One song (1, T) as one piece of its own length."""
        (length,) = lengths
        return whole_song(songs, length, SHORTEST)

    def encode(self, samples: Tensor, real: Tensor | None = None) -> Tensor:
        """Time-means (1, W) of the last hidden state."""
        return self.encoder(samples)[:, 0]

    def parameters(self) -> Iterable[nn.Parameter]:
        """The encoder's weights."""
        return self.encoder.parameters()

    def fingerprint(self) -> Hashable:
        """A hash of weights and settings."""
        config = self.encoder.config.to_json_string()
        return self.name, "whole", self.encoder.kept_layers, config, weights_hash(self.encoder)


def whole_song_mert(config: HubertConfig) -> MertEncoder:
    """A `MertEncoder` of that configuration that keeps its last hidden state."""
    return MertEncoder(config, layers=(config.num_hidden_layers,))
