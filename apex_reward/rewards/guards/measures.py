"""What the guards measure, each of one song.

Shape key: T = samples, F = frames, K = frequency bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from apex_reward.audio.flags import mono_loss as worst_mono_loss
from apex_reward.audio.loudness import integrated_loudness
from apex_reward.rewards.guards.songs import Song, autocorrelation, frames

Measure = Callable[[Tensor, int], float]
SongMeasure = Callable[[Song], Tensor]

SILENCE_DBFS = -60.0
FULL_SCALE = 0.99
HEARING_HZ = (20.0, 16_000.0)
DRIFT_HZ = 2.0
LOOP_SECONDS = 0.4
BAND_DB = 80.0

# Each measure below as a function of a `Song` that several of them share; () on the graph.
OF_SONG: dict[Measure, SongMeasure] = {}


def _of_waveform(of_song: SongMeasure) -> Measure:
    """A measure as a pure function of one waveform (T,) and its rate in Hz."""

    @wraps(of_song)
    def measure(waveform: Tensor, sample_rate: int) -> float:
        return float(of_song(Song(waveform.float(), sample_rate)))

    OF_SONG[measure] = of_song
    return measure


@_of_waveform
def silent_share(song: Song) -> Tensor:
    """Share of 50 ms frames below -60 dBFS RMS, in [0, 1]."""
    level = song.frame_energy / song.frame_size
    return (level < 10 ** (SILENCE_DBFS / 10)).float().mean()


@_of_waveform
def clipped_share(song: Song) -> Tensor:
    """Share of samples in flat tops, in [0, 1].

    A flat top is three or more samples in a row, of one sign, within 1 % of full scale or beyond;
    a master that only touches full scale has few, whatever its loudness.
    """
    if song.peak < FULL_SCALE or song.length < 3:
        return song.waveform.new_zeros(())
    flat = torch.zeros_like(song.waveform, dtype=torch.bool)
    for hot in (song.waveform >= FULL_SCALE, song.waveform <= -FULL_SCALE):
        middle = hot[:-2] & hot[1:-1] & hot[2:]
        for shift in range(3):
            flat[shift : shift + len(middle)] |= middle
    return flat.sum() / song.length


@_of_waveform
def dc_offset(song: Song) -> Tensor:
    """How far the waveform stands off zero in nine of ten seconds, full scale = 1.

    The means of 1 s frames (of the whole song below 1 s): the distance from zero that nine tenths
    of them keep, on one side. Deep bass and slow drift move single frames, to both sides.
    """
    size = song.sample_rate
    if song.length < size:
        return song.waveform.mean().abs()
    ordered = song.waveform[: song.length // size * size].unflatten(0, (-1, size)).mean(dim=1)
    ordered = ordered.sort().values
    tenth = (len(ordered) - 1) // 10
    return torch.maximum(ordered[tenth], -ordered[-1 - tenth]).clamp(min=0)


@_of_waveform
def inaudible_share(song: Song) -> Tensor:
    """Share of the energy from 2 to 20 Hz or above 16 kHz, in [0, 1]; 0 for silence.

    What lies below 2 Hz is offset and drift, and counts as nothing.
    """
    spectrum, hertz = song.low_spectrum()
    scale = song.low.square().mean() / spectrum.sum().clamp(min=1e-30)
    drift = scale * spectrum[hertz < DRIFT_HZ].sum()
    below = scale * spectrum[(hertz >= DRIFT_HZ) & (hertz < HEARING_HZ[0])].sum()
    whole = song.power[1]
    high = whole[song.short_hertz > HEARING_HZ[1]].sum()
    above = song.mean_square * high / whole.sum().clamp(min=1e-30)
    heard = song.mean_square - drift
    share = (below + above) / heard.clamp(min=1e-30)
    # A constant leaves rounding errors only.
    return torch.where(heard > 1e-6 * song.square + 1e-30, share, 0.0).clamp(0, 1)


@_of_waveform
def loudness(song: Song) -> Tensor:
    """Integrated loudness, LUFS (BS.1770-4); minus infinity for silence."""
    return integrated_loudness(song.waveform[None], song.sample_rate)[0]


@_of_waveform
def duration(song: Song) -> Tensor:
    """Length, seconds."""
    return torch.tensor(song.length / song.sample_rate, dtype=torch.float64)


@_of_waveform
def loop_correlation(song: Song) -> Tensor:
    """How exactly the song repeats itself: the highest autocorrelation, in [-1, 1].

    Heard from 20 Hz to at least 4 kHz, over lags from 0.4 s to half of the song, each normalised
    by the energy of the two overlapping parts. A segment that is copied to the end gives 1, and so
    does a held tone; music that repeats a bar with other notes, words or timing stays well below.
    0 below 0.8 s and for silence.
    """
    heard = _without_rumble(song)
    count, first = len(heard), max(1, round(LOOP_SECONDS * song.low_rate))
    last = count // 2
    if last < first:
        return heard.new_zeros(())
    correlation = autocorrelation(heard, last + 1)[first:]
    energy = heard.square().cumsum(0, dtype=torch.float64)
    total = energy[-1]
    head = energy[count - 1 - last : count - first].flip(0)  # of all but the last `lag` samples
    head, tail = head.to(heard.dtype), (total - energy[first - 1 : last]).to(heard.dtype)
    audible = torch.minimum(head, tail) > 1e-3 * total
    scale = (head * tail).clamp(min=1e-30).sqrt()
    best, at = torch.where(audible, correlation / scale, -math.inf).max(dim=0)
    between = _highest_near(correlation, at) / scale[at]
    return torch.where(torch.isfinite(best), torch.maximum(best, between).clamp(-1, 1), 0.0)


@_of_waveform
def noise_floor(song: Song) -> Tensor:
    """Level of the steady broadband part against the whole song, dB; about 0 for white noise.

    Minimum statistics (R. Martin, IEEE Trans. Speech Audio Process. 9(5), 2001): in each frequency
    bin the quietest tenth of 43 ms frames is what never stops; the median over bins leaves tones
    out. Corrected for the 10 % quantile of an exponential distribution, as noise power has.
    Minus infinity for silence.
    """
    power, whole = song.power
    if song.length < 4 * song.short_size or power.shape[1] == 0:
        return song.waveform.new_tensor(-math.inf)
    quietest = _kth(power.T.contiguous(), (len(power) - 1) // 10)
    steady = quietest.median() / -math.log(0.9)
    total = whole[song.noise_bins].mean() / len(power)
    return torch.where((steady > 0) & (total > 0), 10 * torch.log10(steady / total), -math.inf)


@_of_waveform
def band_limit(song: Song) -> Tensor:
    """The highest frequency, Hz, whose mean power lies within 80 dB of the strongest one's.

    Of frequencies above 100 Hz, in 43 ms frames. Infinity for silence and below one frame.
    """
    heard = song.short_hertz > 100
    power = song.power[1][heard]
    strong = power > power.amax() * 10 ** (-BAND_DB / 10)
    highest = (strong * song.short_hertz[heard]).amax()
    return torch.where(highest > 0, highest, math.inf)


@_of_waveform
def near_silence(song: Song) -> Tensor:
    """How far the highest sample lies above a song's own level, dB; 0 for silence.

    The level is the RMS that a quarter of the 50 ms frames exceed, at least -140 dBFS. A click in
    near-silence lies 60 dB above it, at any gain. Music lies 5 to 35 dB above it.
    """
    levels = (song.frame_energy / song.frame_size).clamp(min=1e-14).sort(descending=True).values
    level = levels[(len(levels) - 1) // 4]
    highest = torch.maximum(song.peak.square(), level)
    return (10 * torch.log10(highest / level)).clamp(min=0)


def mono_loss(waveform: Tensor, sample_rate: int) -> float:
    """Power that the mono mix loses in the worst 5 s of a song (C, T), dB; 0 for mono (T,).

    Models encode the mono mix. Listeners hear the channels, and sound in opposite phase too.
    """
    if waveform.ndim == 1:
        return 0.0
    channels = frames(waveform.float(), sample_rate).double()  # (C, F, size)
    mono = channels.mean(dim=0).square().sum(dim=1).tolist()
    every = channels.square().mean(dim=0).sum(dim=1).tolist()
    left = range(waveform.shape[1], 0, -sample_rate)
    counts = [min(sample_rate, samples) for samples in left]
    return worst_mono_loss(list(zip(mono, every, counts, strict=True)))


def _without_rumble(song: Song) -> Tensor:
    """`low` less its moving average over 50 ms: a drone below 20 Hz is no loop."""
    half = round(song.low_rate / HEARING_HZ[0]) // 2
    sums = F.pad(song.low, (half + 1, half)).cumsum(0, dtype=torch.float64)
    average = (sums[2 * half + 1 :] - sums[: -2 * half - 1]) / (2 * half + 1)
    return song.low - average.to(song.low.dtype)


def _kth(values: Tensor, rank: int) -> Tensor:
    """(K,) the value of that rank, from 0, in each row of (K, F); may reorder the rows."""
    if values.is_cpu and not values.requires_grad:
        values.numpy().partition(rank, axis=1)
        return values[:, rank]
    return values.kthvalue(rank + 1, dim=1).values


def _highest_near(correlation: Tensor, centre: Tensor, taps: int = 16) -> Tensor:
    """() the highest value of (L,) between the samples around `centre`.

    A loop need not be a whole number of samples long. Band-limited interpolation by a Hann-windowed
    sinc, at eighths of a sample.
    """
    offsets = torch.arange(-taps, taps + 1, device=correlation.device)
    index = centre + offsets
    inside = (index >= 0) & (index < len(correlation))
    values = correlation[index.clamp(0, len(correlation) - 1)] * inside
    steps = torch.arange(-8, 9, device=correlation.device) / 8
    distance = steps - offsets[:, None]  # (taps, steps)
    window = torch.cos(math.pi * distance / (2 * (taps + 1))).square()
    highest = (values @ (torch.sinc(distance) * window)).amax()
    # At the ends of the range the neighbours are missing, and nothing can be read between.
    return torch.where(inside.all(), highest, -math.inf)
