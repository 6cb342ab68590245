"""Reward models made of encoders: songs become features, once per encoder, and features scores.

A `SongEncoder` is an encoder with its rate, its windows and their weights. An `EncodedModel` names
its encoders and maps their features to scores. So several models can share an encoder, and windows
of many songs share its batches.

Shape key: B = songs, C = channels, T = samples, N = pieces, n = samples in a piece, W = width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from apex_reward.audio.segment import Segments, cut_segments
from apex_reward.errors import UsageError
from apex_reward.model.inputs import at_rate, checked_songs
from apex_reward.model.packing import drawn_pieces, graph_settings, scaled_gradient
from apex_reward.model.packing import encode_pieces as encode_pieces
from apex_reward.prompt import Prompt, prompts_of
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

Lengths = Tensor | Sequence[int] | None
# Texts, or what `prompt_of` reads; models get `Prompt`s.
Prompts = Sequence[Any] | None


@runtime_checkable
class SongEncoder(Protocol):
    """An encoder with its rate and its windows.

    Attributes:
        name: short, for messages.
        sample_rate: Hz of the mono songs it encodes.
        batch_segments: pieces per encoder batch, unless a call sets it.
        window: samples of a piece; None where a song is encoded whole, in a pass of its own.
    """

    name: str
    sample_rate: int
    batch_segments: int
    window: int | None

    def cut(self, songs: Tensor, lengths: Sequence[int]) -> Segments:
        """Songs (B, T) at `sample_rate`, zero beyond their lengths, to weighted pieces.

        Where `window` is None it gets one song at a time, of its own length; elsewhere a long song
        comes in stretches of whole windows, the last two windows with the tail.
        """

    def encode(self, samples: Tensor, real: Tensor | None) -> Tensor:
        """Pieces (N, n), of which (N,) samples are real, to features (N, ...) on the graph."""

    def fingerprint(self) -> Hashable:
        """Equal for two encoders that give the same features: weights and settings."""


class Pieces:
    """The cut of song encoders: into windows, or whole songs, which are batches of their own.

    Attributes:
        tail: as in `cut_segments`.
        shortest: samples that a shorter whole song is zero-padded to.
    """

    sample_rate: int
    batch_segments = 1
    window: int | None = None
    tail: str = "pad"
    shortest = 1

    def cut(self, songs: Tensor, lengths: Sequence[int]) -> Segments:
        """Songs (B, T), zero beyond their lengths, to windows; one song (1, T) to one piece."""
        size = self.window or max(self.shortest, *lengths)
        return cut_segments(songs, lengths, size, self.sample_rate, self.tail)


class ModuleEncoder(Pieces):
    """Base of song encoders over modules: their cut, weights and fingerprint.

    A subclass defines `weights`, the modules that its features depend on, and `settings`.
    """

    def weights(self) -> Sequence[nn.Module]:
        """The modules that the features depend on."""
        raise NotImplementedError

    def settings(self) -> Hashable:
        """What else they depend on."""
        raise NotImplementedError

    def parameters(self) -> Iterable[nn.Parameter]:
        """The modules' weights."""
        return [weight for module in self.weights() for weight in module.parameters()]

    def fingerprint(self) -> Hashable:
        """A hash of weights and settings."""
        return type(self).__name__, self.settings(), *map(weights_hash, self.weights())


class EncodedModel:
    """Base of reward models that are made of song encoders.

    A subclass defines `name`, `heads` (the named outputs with their ranges, in order), `encoders`
    and `score_features`.
    """

    name: str
    heads: tuple[Head, ...]
    differentiable = True
    reads_text = False

    @property
    def encoders(self) -> tuple[SongEncoder, ...]:
        """The encoders whose song features `score_features` takes, in that order."""
        raise NotImplementedError

    def score_features(self, features: Sequence[Tensor], prompts: Prompts = None) -> Scores:
        """Scores of songs from one (B, ...) tensor of song means per encoder."""
        raise NotImplementedError

    @property
    def sample_rate(self) -> int:
        """Hz of the first encoder; songs at this rate are not resampled for it."""
        return self.encoders[0].sample_rate

    def __call__(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None, prompts: Prompts = None
    ) -> Scores:
        """Scores of a batch of songs; a song scores the same alone or in any batch.

        Args:
            waveforms: float tensor (B, T) or (B, C, T) in [-1, 1], zero-padded on the right.
            sample_rate: Hz.
            lengths: (B,) real samples of each song; None where no song is padded.
            prompts: B texts, for a model that reads them.

        Returns:
            `Scores` of (B,) tensors on the autograd graph.

        Raises:
            UsageError: a wrong shape, dtype, rate, length or number of prompts.
            AudioError: samples that are NaN, infinite or plainly not in [-1, 1].
        """
        texts = check_prompts(self.name, self.reads_text, prompts, len(waveforms))
        return self.score_features(
            song_features(self.encoders, waveforms, sample_rate, lengths), texts
        )


def song_features(
    encoders: Iterable[SongEncoder],
    waveforms: Tensor,
    sample_rate: int,
    lengths: Lengths = None,
    batch_segments: int | None = None,
) -> list[Tensor]:
    """Song features (B, ...) of every encoder, on the graph; songs are resampled once per rate.

    Args and errors are those of `EncodedModel.__call__`; `batch_segments`: pieces per encoder
    batch, which bounds the memory of the backward pass; None takes each encoder's own.
    """
    if len(waveforms) == 0:
        raise UsageError("the batch holds no songs; give at least one")
    mono, ends = checked_songs(waveforms, lengths)
    return encoded_songs(encoders, mono, sample_rate, ends, batch_segments)


def encoded_songs(
    encoders: Iterable[SongEncoder],
    mono: Tensor,
    sample_rate: int,
    ends: Sequence[int],
    batch_segments: int | None = None,
) -> list[Tensor]:
    """`song_features` of checked songs (B, T), zero beyond their `ends`; it reads no tensor."""
    by_rate: dict[int, tuple[Tensor, list[int]]] = {}
    features = []
    for encoder in encoders:
        rate = encoder.sample_rate
        if rate not in by_rate:
            by_rate[rate] = at_rate(mono, ends, sample_rate, rate)
        features.append(_encoded(encoder, *by_rate[rate], batch_segments))
    return features


def check_prompts(name: str, reads_text: bool, prompts: Prompts, songs: int) -> list[Prompt] | None:
    """The prompts as `Prompt`s for a model that reads text; None for another one.

    Raises:
        UsageError: it reads text and there are none, or another number than songs.
    """
    if not reads_text:
        return None
    if prompts is None:
        raise UsageError(
            f"{name} judges songs by their prompts and none were given; pass prompts=, one text "
            "per song (score --prompts FILE, or a column 'prompt', on the command line)"
        )
    if isinstance(prompts, str) or len(prompts) != songs:
        given = "one text" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise UsageError(f"{given} for {songs} songs; expected a list with one per song")
    return prompts_of(prompts)


def weights_hash(module: nn.Module) -> str:
    """A hash of a module's tensors by name: equal weights, equal hash."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def _encoded(
    encoder: SongEncoder, songs: Tensor, ends: list[int], batch_segments: int | None
) -> Tensor:
    if encoder.window is not None:
        pieces = encoder.cut(songs, ends)
        features = _features(encoder, pieces, batch_segments)
        return pieces.song_means(features, songs=len(ends))
    # Songs encoded whole are batches of their own; the last ones keep their graph.
    kept = graph_settings().graph_segments
    whole = []
    for number, (song, end) in enumerate(zip(songs, ends, strict=True)):
        pieces = encoder.cut(song[None, :end], [end])
        keep = number >= len(ends) - (1 if kept is None else kept)
        features = encode_pieces(encoder, pieces.samples, pieces.real, 1, int(keep))
        whole.append(pieces.song_means(features, songs=1))
    return torch.cat(whole)


def _features(encoder: SongEncoder, pieces: Segments, batch_segments: int | None) -> Tensor:
    """Features (N, ...) of pieces; where the settings ask for it, only some on the graph."""
    drawn = graph_settings().segments
    if drawn is None or not torch.is_grad_enabled():
        return encode_pieces(encoder, pieces.samples, pieces.real, batch_segments)
    chosen, scale = drawn_pieces(pieces.song, drawn)
    real = pieces.real
    if bool(chosen.all()):
        return encode_pieces(encoder, pieces.samples, real, batch_segments)
    with torch.no_grad():
        plain = encode_pieces(encoder, pieces.samples[~chosen], real[~chosen], batch_segments)
    drawn_ones = encode_pieces(encoder, pieces.samples[chosen], real[chosen], batch_segments)
    order = torch.cat([(~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]]).argsort()
    return torch.cat([plain, scaled_gradient(drawn_ones, scale[chosen])])[order]
