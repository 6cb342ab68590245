"""Check and prepare waveforms for the encoder: mono, zero beyond each song's end, resampled.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apex_reward.audio.flags import INTEGER_LIKE_PEAK
from apex_reward.audio.loudness import loudness_gain
from apex_reward.audio.resample import resample, resampled_length
from apex_reward.errors import AudioError, UsageError, listed

# More channels than this are samples in the wrong dimension.
MAX_CHANNELS = 64


def checked_songs(
    waveforms: Tensor, lengths: Tensor | Sequence[int] | None
) -> tuple[Tensor, list[int]]:
    """Mono songs (B, T), zero beyond their ends, and those.

    Raises:
        UsageError: a wrong shape, dtype or length.
        AudioError: samples that are NaN, infinite or plainly not in [-1, 1].
    """
    mono = mono_mix(waveforms)
    ends = _song_lengths(lengths, *mono.shape)
    mono = _cut(mono, ends)
    _check_samples(mono)
    return mono, ends


def at_rate(
    mono: Tensor, ends: Sequence[int], sample_rate: int, target_rate: int
) -> tuple[Tensor, list[int]]:
    """Songs (B, T) resampled, zero beyond their ends, and those at the new rate."""
    resampled = resample(mono, sample_rate, target_rate)
    new_ends = [resampled_length(end, sample_rate, target_rate) for end in ends]
    # The filter rings beyond a padded song's end; alone, the song is cut there.
    return (resampled if sample_rate == target_rate else _cut(resampled, new_ends)), new_ends


def at_loudness(
    waveforms: Tensor,
    sample_rate: int,
    target: float,
    lengths: Tensor | Sequence[int] | None = None,
) -> Tensor:
    """The mono mix (B, T) of each song, brought to one loudness in LUFS; differentiable.

    Models encode the mono mix, so its loudness is the one that is set. Silence stays as it is.
    """
    mono = mono_mix(waveforms)
    ends = _song_lengths(lengths, *mono.shape)
    return mono * loudness_gain(mono, sample_rate, target, ends)[:, None]


def mono_mix(waveforms: Tensor) -> Tensor:
    """The mean over channels of (B, T) or (B, C, T), (B, T), after checking the layout.

    Raises:
        UsageError: no float tensor, another number of dimensions, or more channels than samples.
    """
    if not isinstance(waveforms, Tensor) or not waveforms.is_floating_point():
        given = waveforms.dtype if isinstance(waveforms, Tensor) else type(waveforms).__name__
        raise UsageError(
            f"waveforms are {given}; expected a float tensor in [-1, 1] "
            "(divide integer samples by their full scale, 32768 for 16 bits)"
        )
    shape = tuple(waveforms.shape)
    if waveforms.ndim not in (2, 3):
        raise UsageError(
            f"waveforms have shape {shape}; expected (B, T) or (B, C, T): one song is "
            "waveform[None]"
        )
    # One song of (T, C) samples, as decoders give it, would be T songs of C samples.
    if waveforms.ndim == 2 and 0 < shape[1] <= MAX_CHANNELS < shape[0]:
        raise UsageError(
            f"waveforms have shape {shape}, read as {shape[0]} songs of {shape[1]} samples; one "
            "song of (T, C) samples is waveform.T[None]"
        )
    if waveforms.ndim == 3 and not 0 < shape[1] <= min(MAX_CHANNELS, shape[2]):
        raise UsageError(
            f"waveforms have shape {shape}, read as (B, C, T) with {shape[1]} channels; did you "
            "pass (B, T, C)?"
        )
    return waveforms if waveforms.ndim == 2 else waveforms.mean(dim=1)


def _song_lengths(lengths: Tensor | Sequence[int] | None, songs: int, samples: int) -> list[int]:
    if lengths is None:
        ends = [samples] * songs
    elif isinstance(lengths, Tensor) and lengths.is_floating_point():
        raise UsageError(f"lengths are {lengths.dtype}; expected whole numbers of samples")
    else:
        ends = [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
    if len(ends) != songs:
        raise UsageError(f"{len(ends)} lengths were given for {songs} songs")
    wrong = [f"song {i}: {n}" for i, n in enumerate(ends) if not 1 <= n <= samples]
    if wrong:
        raise UsageError(
            f"lengths must lie between 1 and T = {samples} samples; given {listed(wrong)}"
            + ("; did you pass seconds?" if samples > 0 and max(ends, default=0) < 1000 else "")
        )
    return ends


def _cut(songs: Tensor, ends: list[int]) -> Tensor:
    """Songs (B, T) with zeros beyond their ends."""
    if all(end == songs.shape[1] for end in ends):
        return songs
    positions = torch.arange(songs.shape[1], device=songs.device)
    beyond = positions >= torch.tensor(ends, device=songs.device)[:, None]
    return songs.masked_fill(beyond, 0.0)


def _check_samples(mono: Tensor) -> None:
    peaks = mono.detach().abs().amax(dim=1).tolist() if mono.numel() else []
    # NaN compares false with everything, infinity is above every peak.
    bad = [i for i, peak in enumerate(peaks) if not peak < float("inf")]
    if bad:
        raise AudioError(f"songs {listed(bad)} of the batch hold NaN or infinite samples")
    loud = [f"song {i}: {peak:.0f}" for i, peak in enumerate(peaks) if peak > INTEGER_LIKE_PEAK]
    if loud:
        raise AudioError(
            f"samples should lie in [-1, 1]; peaks are {listed(loud)}: divide integer samples by "
            "their full scale (32768 for 16 bits)"
        )
