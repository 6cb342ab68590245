"""Rulers as a reward model: plain measures of a song that a reward may follow in place of quality.

Each is a pure function of a `RulerSong` and gives one value. Loudness, crest and width are of the
channels; all others are of the mono mix, which is what reward models encode. A silent song has
finite values too.

Shape key: C = channels, T = samples, F = frames, K = bins, N = bands, L = lags.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from apex_reward.audio.loudness import ABSOLUTE_GATE, loudness_and_range
from apex_reward.model.encode import Prompts
from apex_reward.model.licences import CODE, Licence
from apex_reward.model.source import Source
from apex_reward.rewards.foreign.called import CalledModel
from apex_reward.rewards.guards.measures import OF_SONG, duration, silent_share
from apex_reward.rewards.guards.songs import Song, autocorrelation, frame_power
from apex_reward.scores.head import Head

HIGH_HZ = 4_000.0
BANDS = 48
BAND_HZ = (60.0, 12_000.0)
FLOOR_DB = 60.0
PART_SECONDS = 60.0
ONSET_DB = 3.0
ONSET_SECONDS = 0.07
AROUND_SECONDS = 0.5
TEMPO_BPM = (40.0, 240.0)
SMOOTH_SECONDS = 0.035
REPEAT_SECONDS = 4.0
SECTION_SECONDS = 5.0


class RulerSong(Song):
    """A song with its channels, and what several rulers need, computed once.

    Frames are those of `Song.power`; a song shorter than a frame is one frame.

    Args:
        waveform: (T,) or (C, T) in [-1, 1], T at least 1.
        sample_rate: Hz.
    """

    def __init__(self, waveform: Tensor, sample_rate: int) -> None:
        self.channels = torch.atleast_2d(waveform)
        super().__init__(self.channels.mean(dim=0), sample_rate)

    @property
    def hop(self) -> float:
        """Seconds from one frame to the next."""
        return self.short_size // 2 / self.sample_rate

    @cached_property
    def volume(self) -> tuple[Tensor, Tensor]:
        """Integrated loudness, LUFS, at least -70, and loudness range, LU."""
        volume, spread = loudness_and_range(self.channels[None], self.sample_rate)
        return volume[0].clamp(min=ABSOLUTE_GATE), spread[0]

    @cached_property
    def spectra(self) -> tuple[Tensor, Tensor]:
        """The whole song's power spectrum (K,), and band levels (N, F), dB.

        Levels lie within 60 dB of the song's loudest band. The bands are a sixth of an octave wide,
        and wider where a frame does not resolve that. Long songs are read in parts of a minute.
        """
        size, hop = self.short_size, self.short_size // 2
        padded = F.pad(self.waveform, (0, max(0, size - self.length)))
        count, step = (len(padded) - size) // hop + 1, max(1, round(PART_SECONDS / self.hop))
        bands = self._bands()
        total, levels = padded.new_zeros(size // 2 + 1, dtype=torch.float64), []
        for first in range(0, count, step):
            last = min(first + step, count)
            part = padded[first * hop : (last - 1) * hop + size]
            power, whole = frame_power(part, size, slice(None))
            total += whole
            levels.append(bands @ power.T)
        power = torch.cat(levels, dim=1).double()
        floor = power.amax() * 10 ** (-FLOOR_DB / 10) + 1e-20
        return total, 10 * torch.log10(torch.maximum(power, floor))

    @cached_property
    def onsets(self) -> Tensor:
        """Mean rise of the band levels from frame to frame (F,), dB; silence comes first."""
        levels = self.spectra[1]
        lowest = levels.amin().expand(len(levels), 1)
        return torch.cat([lowest, levels], dim=1).diff(dim=1).clamp(min=0).mean(dim=0)

    @cached_property
    def beat(self) -> tuple[Tensor, Tensor]:
        """Tempo, beats per minute, and the autocorrelation of the onsets at the beat, in [0, 1].

        The tempo is the fastest one whose correlation is at least 0.8 of the highest one; 0 where
        there is none.
        """
        width = max(1, math.ceil(3 * SMOOTH_SECONDS / self.hop))
        steps = torch.arange(-width, width + 1, device=self.onsets.device) * self.hop
        kernel = torch.exp(-0.5 * (steps / SMOOTH_SECONDS).square()).double()
        smooth = F.conv1d(self.onsets[None, None], kernel[None, None], padding=width)[0]
        slow, fast = (60 / tempo / self.hop for tempo in TEMPO_BPM)
        lags = range(math.floor(fast) - 1, math.ceil(slow) + 2)
        found = _correlation(smooth, lags)  # (L,)
        middle = found[1:-1]
        peaks = (middle >= found[:-2]) & (middle >= found[2:]) & (middle > 0)
        best = torch.where(peaks, middle, 0.0).amax()
        first = int((peaks & (middle >= 0.8 * best)).int().argmax())
        before, at, after = found[first : first + 3]
        # The top of the parabola through three lags.
        bend = (2 * at - before - after).clamp(min=1e-12)
        lag = first + lags[1] + 0.5 * (after - before) / bend
        return torch.where(best > 0, 60 / (lag * self.hop), 0.0), best.clamp(0, 1)

    def _bands(self) -> Tensor:
        """(N, K) which bins each band holds; bands without a bin are left out."""
        low, high = BAND_HZ[0], min(BAND_HZ[1], 0.45 * self.sample_rate)
        place = BANDS * torch.log(self.short_hertz.clamp(min=1) / low) / math.log(high / low)
        bands = torch.arange(BANDS, device=place.device)[:, None] == place.floor()
        return bands[bands.any(dim=1)].float()


def _correlation(values: Tensor, lags: range) -> Tensor:
    """Autocorrelation (L,) of (N, F) over all bands, in [-1, 1].

    Each band has its mean over the song removed. Each lag is normalised by the energy of the two
    overlapping parts. 0 where they do not overlap or hold less than a thousandth of it.
    """
    count = values.shape[1]
    values = values - values.mean(dim=1, keepdim=True)
    index = torch.tensor(lags, device=values.device)
    products = autocorrelation(values, lags[-1] + 1).sum(dim=0)[index]
    energy = F.pad(values.square().sum(dim=0).cumsum(0), (1, 0))
    total = energy[-1]
    head, tail = energy[(count - index).clamp(min=0)], total - energy[index.clamp(max=count)]
    # Levels that move by less than 0.01 dB do not repeat anything.
    least = torch.maximum(1e-3 * total, total.new_tensor(1e-4 * values.numel()))
    there = (torch.minimum(head, tail) > least) & (index < count)
    return torch.where(there, products / (head * tail).clamp(min=1e-30).sqrt(), 0.0)


def crest(song: RulerSong) -> Tensor:
    """Highest sample of any channel over the integrated loudness, dB; 0 for silence."""
    peak = song.channels.abs().amax().double()
    level = 20 * torch.log10(peak.clamp(min=10 ** (ABSOLUTE_GATE / 20)))
    return level - song.volume[0]


def centroid(song: RulerSong) -> Tensor:
    """Mean frequency of the energy, Hz; 0 for silence."""
    return _mean_frequency(song, song.short_hertz)


def bandwidth(song: RulerSong) -> Tensor:
    """Standard deviation of the energy's frequency around the centroid, Hz."""
    return _mean_frequency(song, (song.short_hertz - centroid(song)).square()).sqrt()


def high_share(song: RulerSong) -> Tensor:
    """Share of the energy above 4 kHz, in [0, 1]."""
    return _mean_frequency(song, song.short_hertz > HIGH_HZ)


def width(song: RulerSong) -> Tensor:
    """Share of the channels' energy that the mono mix loses, in [0, 1].

    0 for mono, 0.5 for two channels without correlation, 1 for two channels of opposite phase.
    """
    mono = song.waveform.double().square().sum()
    every = song.channels.double().square().mean(dim=0).sum()
    return torch.where(every > 0, 1 - mono / every.clamp(min=1e-30), 0.0).clamp(0, 1)


def onset_rate(song: RulerSong) -> Tensor:
    """Onsets per second.

    An onset is a frame whose rise of the band levels is the highest within 70 ms, and 3 dB above
    the mean within half a second.
    """
    rise = song.onsets[None]
    near, around = (max(1, round(s / song.hop)) for s in (ONSET_SECONDS, AROUND_SECONDS))
    highest = F.max_pool1d(rise, 2 * near + 1, 1, near)
    earlier = F.max_pool1d(F.pad(rise, (near, 0)), near, 1)[..., : rise.shape[1]]
    mean = F.avg_pool1d(rise, 2 * around + 1, 1, around, count_include_pad=False)
    # Of equal neighbours the first one counts.
    starts = (rise == highest) & (rise > earlier) & (rise > mean + ONSET_DB)
    return starts.sum() / (song.length / song.sample_rate)


def tempo(song: RulerSong) -> Tensor:
    """Tempo, beats per minute from 40 to 240; 0 where there is no beat."""
    return song.beat[0]


def tempo_stability(song: RulerSong) -> Tensor:
    """How exactly onsets repeat after a beat, in [0, 1]: near 1 for a click track, 0 for a tone."""
    return song.beat[1]


def repetition(song: RulerSong) -> Tensor:
    """How well the song repeats itself after 4 s or more, in [0, 1].

    The highest autocorrelation of the band levels over lags from 4 s to half of the song; 1 for a
    loop, and 0 for a steady tone and for a song below 8 s.
    """
    levels = song.spectra[1]
    first, last = math.ceil(REPEAT_SECONDS / song.hop), levels.shape[1] // 2
    if last < first:
        return levels.new_zeros(())
    return _correlation(levels, range(first, last + 1)).amax().clamp(0, 1)


def contrast(song: RulerSong) -> Tensor:
    """How much sections of about 5 s differ, dB: the deviation of a band's level, root mean square.

    0 for a song of one section, below 7.5 s.
    """
    levels = song.spectra[1]
    sections = max(1, round(levels.shape[1] * song.hop / SECTION_SECONDS))
    means = [part.mean(dim=1) for part in levels.tensor_split(sections, dim=1)]
    return torch.stack(means).var(dim=0, unbiased=False).mean().sqrt()


RULERS: dict[str, Callable[[RulerSong], Tensor]] = {
    "length": OF_SONG[duration],
    "loudness": lambda song: song.volume[0],
    "crest": crest,
    "loudness_range": lambda song: song.volume[1],
    "centroid": centroid,
    "bandwidth": bandwidth,
    "high_share": high_share,
    "width": width,
    "onset_rate": onset_rate,
    "tempo_stability": tempo_stability,
    "repetition": repetition,
    "silence": OF_SONG[silent_share],
    "contrast": contrast,
}
"""The rulers by the names of their heads."""


def _mean_frequency(song: RulerSong, values: Tensor) -> Tensor:
    """The mean of (K,) values of the frequencies, weighted by their energy."""
    power = song.spectra[0]
    return (power * values).sum() / power.sum().clamp(min=1e-30)


class Rulers(CalledModel):
    """Length, loudness, brightness, rhythm and form of songs; no head has a better direction.

    Each head is one of `RULERS`. Songs are measured at their own rate and
    with their channels. Not differentiable.
    """

    name = "rulers"
    heads = tuple(Head(name) for name in RULERS)
    sample_rate = 24_000
    reads_channels = True
    licences: ClassVar[list[Licence]] = [CODE]

    def __init__(self) -> None:
        self.source = Source(self.name)

    def score_songs(
        self, songs: Sequence[Tensor], sample_rate: int, prompts: Prompts
    ) -> list[list[float]]:
        """The rulers of songs (T,) or (C, T); raises UsageError for a rate below 4 kHz."""
        measured = [RulerSong(song.float(), sample_rate) for song in songs]
        return [[float(measure(song)) for measure in RULERS.values()] for song in measured]
