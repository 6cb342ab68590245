"""MuQ as a song encoder: whole songs in one pass, the time-mean of one hidden state.

Shape key: B = songs, T = samples, n = samples of one song, W = width.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from torch import Tensor, nn

from apex_reward.audio.segment import Segments, whole_song
from apex_reward.model.encoders.muq import MIN_SAMPLES, SAMPLE_RATE, MuqEncoder
from apex_reward.model.encoders.segments import weights_hash


class MuqSongs:
    """A `SongEncoder` whose feature is the time-mean (1, W) of a MuQ's hidden state.

    A song is one piece of its own length, in a pass of its own, since attention spans it whole;
    one shorter than 50 ms is zero-padded to that.
    """

    name = "muq"
    sample_rate = SAMPLE_RATE
    batch_segments = 1
    window: int | None = None
    by_length = False

    def __init__(self, muq: MuqEncoder) -> None:
        self.muq = muq

    def cut(self, songs: Tensor, lengths: Sequence[int]) -> Segments:
        """One song (1, T) to one piece (1, n)."""
        return whole_song(songs, lengths[0], at_least=MIN_SAMPLES)

    def encode(self, samples: Tensor, real: Tensor | None) -> Tensor:
        """The feature of one song (1, n)."""
        return self.muq(samples).mean(dim=1)

    def weights(self) -> Sequence[nn.Module]:
        """The modules that the feature depends on."""
        return (self.muq,)

    def parameters(self) -> Iterable[nn.Parameter]:
        """Their weights."""
        return [weight for module in self.weights() for weight in module.parameters()]

    def fingerprint(self) -> Hashable:
        """A hash of weights and settings."""
        hashes = tuple(weights_hash(module) for module in self.weights())
        return type(self).__name__, self.muq.layer, self.muq.config, hashes
