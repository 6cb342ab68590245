"""Rulers: plain measures of a song that a reward may follow in place of quality.

Each is a pure function of `RulerSongs` and gives (B,) values. A song measures the same in any
batch. Loudness, crest and width are of the channels; all others are of the mono mix, which is what
reward models encode. A silent song has finite values too.

Shape key: B = songs, C = channels, T = samples, F = frames, K = bins, N = bands, L = lags.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from apex_reward.audio.loudness import ABSOLUTE_GATE, loudness_and_range
from apex_reward.rewards.guards.measures import BATCHED, duration, silent_share
from apex_reward.rewards.guards.songs import Songs, autocorrelation, frame_power, within

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


class RulerSongs(Songs):
    """Songs with their channels, and what several rulers need, computed once.

    Frames are those of `Songs.power`; a song shorter than a frame is one frame.

    Args:
        waveforms: (B, T) or (B, C, T) in [-1, 1]; nothing beyond the lengths counts.
        lengths: B samples, each at least 1.
        sample_rate: Hz.
    """

    def __init__(self, waveforms: Tensor, lengths: Sequence[int], sample_rate: int) -> None:
        channels = waveforms if waveforms.ndim == 3 else waveforms[:, None]
        super().__init__(channels.mean(dim=1), lengths, sample_rate)
        self.channels = channels * within(lengths, channels.shape[2], channels.device)[:, None]
        self.counts = [max(1, self.short_frames(length)) for length in self.lengths]

    @property
    def hop(self) -> float:
        """Seconds from one frame to the next."""
        return self.short_size // 2 / self.sample_rate

    @cached_property
    def volume(self) -> tuple[Tensor, Tensor]:
        """Integrated loudness, LUFS, at least -70, and loudness range, LU."""
        volume, spread = loudness_and_range(self.channels, self.sample_rate, self.lengths)
        return volume.clamp(min=ABSOLUTE_GATE), spread

    @cached_property
    def spectra(self) -> tuple[Tensor, Tensor, Tensor]:
        """The whole song's power spectrum (B, K); band levels (B, N, F), dB; their mask (B, F).

        Levels lie within 60 dB of the song's loudest band. The bands are a sixth of an octave wide,
        and wider where a frame does not resolve that. Long songs are read in parts of a minute.
        """
        size, hop = self.short_size, self.short_size // 2
        padded = F.pad(self.waveforms, (0, max(0, size - self.waveforms.shape[1])))
        mask = within(self.counts, max(self.counts), padded.device)
        step = max(1, round(PART_SECONDS / self.hop))
        bands = self._bands()
        total, levels = padded.new_zeros(len(padded), size // 2 + 1, dtype=torch.float64), []
        for first in range(0, max(self.counts), step):
            last = min(first + step, max(self.counts))
            part = padded[:, first * hop : (last - 1) * hop + size]
            power = frame_power(part, size) * mask[:, first:last, None]
            total += power.sum(dim=1, dtype=torch.float64)
            levels.append(power @ bands.T)
        power = torch.cat(levels, dim=1).mT.double()
        floor = power.amax(dim=(1, 2), keepdim=True) * 10 ** (-FLOOR_DB / 10) + 1e-20
        return total, 10 * torch.log10(torch.maximum(power, floor)), mask

    @cached_property
    def onsets(self) -> Tensor:
        """Mean rise of the band levels from frame to frame (B, F), dB; silence comes first."""
        _, levels, mask = self.spectra
        lowest = levels.amin(dim=(1, 2), keepdim=True).expand(-1, levels.shape[1], 1)
        rise = torch.cat([lowest, levels], dim=2).diff(dim=2).clamp(min=0).mean(dim=1)
        return rise * mask

    @cached_property
    def beat(self) -> tuple[Tensor, Tensor]:
        """Tempo, beats per minute, and the autocorrelation of the onsets at the beat, in [0, 1].

        The tempo is the fastest one whose correlation is at least 0.8 of the highest one; 0 where
        there is none.
        """
        width = max(1, math.ceil(3 * SMOOTH_SECONDS / self.hop))
        steps = torch.arange(-width, width + 1, device=self.onsets.device) * self.hop
        kernel = torch.exp(-0.5 * (steps / SMOOTH_SECONDS).square()).double()
        smooth = F.conv1d(self.onsets[:, None], kernel[None, None], padding=width)
        slow, fast = (60 / tempo / self.hop for tempo in TEMPO_BPM)
        lags = range(math.floor(fast) - 1, math.ceil(slow) + 2)
        found = self._correlation(smooth, lags)  # (B, L)
        middle = found[:, 1:-1]
        peaks = (middle >= found[:, :-2]) & (middle >= found[:, 2:]) & (middle > 0)
        best = torch.where(peaks, middle, 0.0).amax(dim=1)
        first = (peaks & (middle >= 0.8 * best[:, None])).int().argmax(dim=1, keepdim=True)
        before, at, after = (found.gather(1, first + shift)[:, 0] for shift in range(3))
        # The top of the parabola through three lags.
        bend = (2 * at - before - after).clamp(min=1e-12)
        lag = first[:, 0] + lags[1] + 0.5 * (after - before) / bend
        return torch.where(best > 0, 60 / (lag * self.hop), 0.0), best.clamp(0, 1)

    def _bands(self) -> Tensor:
        """(N, K) which bins each band holds; bands without a bin are left out."""
        low, high = BAND_HZ[0], min(BAND_HZ[1], 0.45 * self.sample_rate)
        place = BANDS * torch.log(self.short_hertz.clamp(min=1) / low) / math.log(high / low)
        bands = torch.arange(BANDS, device=place.device)[:, None] == place.floor()
        return bands[bands.any(dim=1)].float()

    def _correlation(self, values: Tensor, lags: Sequence[int]) -> Tensor:
        """Autocorrelation (B, L) of (B, N, F) over all bands, in [-1, 1].

        Each band has its mean over the song removed. Each lag is normalised by the energy of the
        two overlapping parts. 0 where they do not overlap or hold less than a thousandth of it.
        """
        mask = within(self.counts, values.shape[2], values.device)
        sizes = torch.tensor(self.counts, device=values.device)[:, None]
        values = values - (values * mask[:, None]).sum(2, keepdim=True) / sizes[:, :, None]
        values = values * mask[:, None]
        index = torch.tensor(lags, device=values.device).expand(len(values), -1)
        products = autocorrelation(values, int(index.max()) + 1).sum(dim=1).gather(1, index)
        energy = F.pad(values.square().sum(dim=1).cumsum(1), (1, 0))
        total = energy[:, -1:]
        head = energy.gather(1, (sizes - index).clamp(min=0))
        tail = total - energy.gather(1, index.clamp(max=values.shape[2]))
        # Levels that move by less than 0.01 dB do not repeat anything.
        least = torch.maximum(1e-3 * total, 1e-4 * values.shape[1] * sizes)
        there = (torch.minimum(head, tail) > least) & (index < sizes)
        return torch.where(there, products / (head * tail).clamp(min=1e-30).sqrt(), 0.0)


def crest(songs: RulerSongs) -> Tensor:
    """Highest sample of any channel over the integrated loudness, dB; 0 for silence."""
    peak = songs.channels.abs().amax(dim=(1, 2)).double()
    level = 20 * torch.log10(peak.clamp(min=10 ** (ABSOLUTE_GATE / 20)))
    return level - songs.volume[0]


def centroid(songs: RulerSongs) -> Tensor:
    """Mean frequency of the energy, Hz; 0 for silence."""
    return _mean_frequency(songs, songs.short_hertz.expand(len(songs.lengths), -1))


def bandwidth(songs: RulerSongs) -> Tensor:
    """Standard deviation of the energy's frequency around the centroid, Hz."""
    return _mean_frequency(songs, (songs.short_hertz - centroid(songs)[:, None]).square()).sqrt()


def high_share(songs: RulerSongs) -> Tensor:
    """Share of the energy above 4 kHz, in [0, 1]."""
    return _mean_frequency(songs, (songs.short_hertz > HIGH_HZ).expand(len(songs.lengths), -1))


def width(songs: RulerSongs) -> Tensor:
    """Share of the channels' energy that the mono mix loses, in [0, 1].

    0 for mono, 0.5 for two channels without correlation, 1 for two channels of opposite phase.
    """
    mono = songs.waveforms.double().square().sum(dim=1)
    every = songs.channels.double().square().mean(dim=1).sum(dim=1)
    return torch.where(every > 0, 1 - mono / every.clamp(min=1e-30), 0.0).clamp(0, 1)


def onset_rate(songs: RulerSongs) -> Tensor:
    """Onsets per second.

    An onset is a frame whose rise of the band levels is the highest within 70 ms, and 3 dB above
    the mean within half a second.
    """
    rise, mask = songs.onsets[:, None], songs.spectra[2][:, None].double()
    near, around = (max(1, round(s / songs.hop)) for s in (ONSET_SECONDS, AROUND_SECONDS))
    highest = F.max_pool1d(rise, 2 * near + 1, 1, near)
    earlier = F.max_pool1d(F.pad(rise, (near, 0)), near, 1)[..., : rise.shape[2]]
    mean, known = (F.avg_pool1d(x, 2 * around + 1, 1, around) for x in (rise, mask))
    # Of equal neighbours the first one counts.
    starts = (rise == highest) & (rise > earlier) & (rise > mean / known.clamp(min=1e-9) + ONSET_DB)
    return (starts & (mask > 0)).sum(dim=(1, 2)) / BATCHED[duration](songs).to(rise)


def tempo(songs: RulerSongs) -> Tensor:
    """Tempo, beats per minute from 40 to 240; 0 where there is no beat."""
    return songs.beat[0]


def tempo_stability(songs: RulerSongs) -> Tensor:
    """How exactly onsets repeat after a beat, in [0, 1]: near 1 for a click track, 0 for a tone."""
    return songs.beat[1]


def repetition(songs: RulerSongs) -> Tensor:
    """How well the song repeats itself after 4 s or more, in [0, 1].

    The highest autocorrelation of the band levels over lags from 4 s to half of the song; 1 for a
    loop, and 0 for a steady tone and for a song below 8 s.
    """
    first, last = math.ceil(REPEAT_SECONDS / songs.hop), max(songs.counts) // 2
    if last < first:
        return songs.spectra[0].new_zeros(len(songs.lengths))
    lags = range(first, last + 1)
    found = songs._correlation(songs.spectra[1], lags)
    halves = torch.tensor(songs.counts, device=found.device)[:, None] // 2
    return (found * (torch.tensor(lags, device=found.device) <= halves)).amax(dim=1).clamp(0, 1)


def contrast(songs: RulerSongs) -> Tensor:
    """How much sections of about 5 s differ, dB: the deviation of a band's level, root mean square.

    0 for a song of one section, below 7.5 s.
    """
    values = []
    for song, count in zip(songs.spectra[1], songs.counts, strict=True):
        sections = max(1, round(count * songs.hop / SECTION_SECONDS))
        means = [part.mean(dim=1) for part in song[:, :count].tensor_split(sections, dim=1)]
        values.append(torch.stack(means).var(dim=0, unbiased=False).mean().sqrt())
    return torch.stack(values)


RULERS: dict[str, Callable[[RulerSongs], Tensor]] = {
    "length": BATCHED[duration],
    "loudness": lambda songs: songs.volume[0],
    "crest": crest,
    "loudness_range": lambda songs: songs.volume[1],
    "centroid": centroid,
    "bandwidth": bandwidth,
    "high_share": high_share,
    "width": width,
    "onset_rate": onset_rate,
    "tempo_stability": tempo_stability,
    "repetition": repetition,
    "silence": BATCHED[silent_share],
    "contrast": contrast,
}
"""The rulers by the names of their heads."""


def _mean_frequency(songs: RulerSongs, values: Tensor) -> Tensor:
    """The mean (B,) of (B, K) values of the frequencies, weighted by their energy."""
    power = songs.spectra[0]
    return (power * values).sum(dim=1) / power.sum(dim=1).clamp(min=1e-30)
