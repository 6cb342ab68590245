"""What the guards measure: each of one song, and of a batch in one pass.

The single form is the batch form of one song, so both give the same number.

Shape key: B = songs, T = samples, F = frames, K = frequency bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from apex_reward.audio.flags import mono_loss as worst_mono_loss
from apex_reward.audio.loudness import fast_size, integrated_loudness
from apex_reward.rewards.guards.songs import Songs, within

Measure = Callable[[Tensor, int], float]
BatchMeasure = Callable[[Songs], Tensor]

SILENCE_DBFS = -60.0
FULL_SCALE = 0.99
HEARING_HZ = (20.0, 16_000.0)
DRIFT_HZ = 2.0
LOOP_SECONDS = 0.4
BAND_DB = 80.0

# The batch form of each measure below: (B,) values for Songs.
BATCHED: dict[Measure, BatchMeasure] = {}


def _of_one_song(batched: BatchMeasure) -> Measure:
    """A batch measure as a pure function of one waveform (T,) and its rate in Hz."""

    @wraps(batched)
    def measure(waveform: Tensor, sample_rate: int) -> float:
        return float(batched(Songs(waveform[None].float(), [len(waveform)], sample_rate)))

    BATCHED[measure] = batched
    return measure


@_of_one_song
def silent_share(songs: Songs) -> Tensor:
    """Share of 50 ms frames below -60 dBFS RMS, in [0, 1]."""
    size = max(1, round(0.05 * songs.sample_rate))
    level = _frames(songs.waveforms, size).square().mean(dim=2)  # (B, F)
    counts = [-(-length // size) for length in songs.lengths]
    silent = (level < 10 ** (SILENCE_DBFS / 10)) & within(counts, level.shape[1], level.device)
    return silent.sum(dim=1) / level.new_tensor(counts)


@_of_one_song
def clipped_share(songs: Songs) -> Tensor:
    """Share of samples in flat tops, in [0, 1].

    A flat top is three or more samples in a row, of one sign, within 1 % of full scale or beyond;
    a master that only touches full scale has few, whatever its loudness.
    """
    loud = songs.waveforms.abs() >= FULL_SCALE
    flat = torch.zeros_like(loud)
    if loud.shape[1] >= 3 and bool(loud.any()):
        for hot in (songs.waveforms >= FULL_SCALE, songs.waveforms <= -FULL_SCALE):
            middle = hot[:, :-2] & hot[:, 1:-1] & hot[:, 2:]
            for shift in range(3):
                flat[:, shift : shift + middle.shape[1]] |= middle
    return flat.sum(dim=1) / songs.waveforms.new_tensor(songs.lengths)


@_of_one_song
def dc_offset(songs: Songs) -> Tensor:
    """How far the waveform stands off zero in nine of ten seconds, full scale = 1.

    The means of 1 s frames (of the whole song below 1 s): the distance from zero that nine tenths
    of them keep, on one side. Deep bass and slow drift move single frames, to both sides.
    """
    size = songs.sample_rate
    means = _frames(songs.waveforms, size).mean(dim=2)  # (B, F)
    values = []
    for i, length in enumerate(songs.lengths):
        if length < size:
            values.append(means[i, 0].abs() * (size / length))
            continue
        ordered = means[i, : length // size].sort().values
        tenth = (len(ordered) - 1) // 10
        values.append(torch.maximum(ordered[tenth], -ordered[-1 - tenth]).clamp(min=0))
    return torch.stack(values)


@_of_one_song
def inaudible_share(songs: Songs) -> Tensor:
    """Share of the energy from 2 to 20 Hz or above 16 kHz, in [0, 1]; 0 for silence.

    What lies below 2 Hz is offset and drift, and counts as nothing.
    """
    spectrum, hertz = songs.low_spectrum()
    total = spectrum.sum(dim=1).clamp(min=1e-30)
    low_power = songs.low.square().sum(dim=1) / songs.low.new_tensor(songs.low_lengths)
    drift = low_power * spectrum[:, hertz < DRIFT_HZ].sum(dim=1) / total
    rumble = (hertz >= DRIFT_HZ) & (hertz < HEARING_HZ[0])
    below = low_power * spectrum[:, rumble].sum(dim=1) / total
    whole = (songs.power * songs.short_mask[:, None]).sum(dim=2)  # (B, K)
    high = whole[:, songs.short_hertz > HEARING_HZ[1]].sum(dim=1)
    above = songs.mean_square * high / whole.sum(dim=1).clamp(min=1e-30)
    heard = songs.mean_square - drift
    share = (below + above) / heard.clamp(min=1e-30)
    # A constant leaves rounding errors only.
    floor = 1e-6 * songs.square + 1e-30
    return torch.where(heard > floor, share, 0.0).clamp(0, 1)


@_of_one_song
def loudness(songs: Songs) -> Tensor:
    """Integrated loudness, LUFS (BS.1770-4); minus infinity for silence."""
    lengths = torch.tensor(songs.lengths, device=songs.waveforms.device)
    return integrated_loudness(songs.waveforms, songs.sample_rate, lengths)


@_of_one_song
def duration(songs: Songs) -> Tensor:
    """Length, seconds."""
    return torch.tensor(songs.lengths, dtype=torch.float64) / songs.sample_rate


@_of_one_song
def loop_correlation(songs: Songs) -> Tensor:
    """How exactly the song repeats itself: the highest autocorrelation, in [-1, 1].

    Heard from 20 Hz to at least 4 kHz, over lags from 0.4 s to half of the song, each normalised
    by the energy of the two overlapping parts. A segment that is copied to the end gives 1, and so
    does a held tone; music that repeats a bar with other notes, words or timing stays well below.
    0 below 0.8 s and for silence.
    """
    heard = _without_rumble(songs)  # (B, t)
    first = max(1, round(LOOP_SECONDS * songs.low_rate))
    last = max(songs.low_lengths) // 2
    if last < first:
        return heard.new_zeros(len(heard))
    size = fast_size(heard.shape[1] + last + 1)
    power = torch.view_as_real(torch.fft.rfft(heard, size)).square().sum(dim=-1)
    correlation = torch.fft.irfft(power, size)[:, first : last + 1].contiguous()
    energy = torch.nn.functional.pad(heard.double().square().cumsum(1), (1, 0))
    lags = torch.arange(first, last + 1, device=heard.device)
    ends = torch.tensor(songs.low_lengths, device=heard.device)[:, None]
    head, total = energy.gather(1, (ends - lags).clamp(min=0)), energy.gather(1, ends)
    tail = total - energy[:, lags.clamp(max=energy.shape[1] - 1)]
    audible = (head > 1e-3 * total) & (tail > 1e-3 * total) & (lags <= ends // 2)
    scale = (head * tail).clamp(min=1e-30).sqrt()
    value = torch.where(audible, correlation / scale, -math.inf)
    best = value.max(dim=1)
    between = (
        _highest_near(correlation, best.indices) / scale.gather(1, best.indices[:, None])[:, 0]
    )
    result = torch.maximum(best.values, between).clamp(-1, 1)
    return torch.where(audible.any(dim=1), result, 0.0)


@_of_one_song
def noise_floor(songs: Songs) -> Tensor:
    """Level of the steady broadband part against the whole song, dB; about 0 for white noise.

    Minimum statistics (R. Martin, IEEE Trans. Speech Audio Process. 9(5), 2001): in each frequency
    bin the quietest tenth of 43 ms frames is what never stops; the median over bins leaves tones
    out. Corrected for the 10 % quantile of an exponential distribution, as noise power has.
    Minus infinity for silence.
    """
    hertz = songs.short_hertz
    # Above 10 kHz lossy codecs leave nothing, and the encoder hears little.
    bins = (hertz > 100) & (hertz < min(10_000, 0.45 * songs.sample_rate))
    power = songs.power[:, bins]  # (B, K, F)
    values = []
    for song, length in zip(power, songs.lengths, strict=True):
        frames = songs.short_frames(length)
        if length < 4 * songs.short_size or len(song) == 0:
            values.append(song.new_tensor(-math.inf))
            continue
        # The 10 % quantile; torch.quantile refuses songs of some minutes.
        quietest = song[:, :frames].kthvalue(1 + (frames - 1) // 10, dim=1).values
        steady, total = quietest.median() / -math.log(0.9), song[:, :frames].mean()
        level = 10 * torch.log10(steady / total)
        values.append(torch.where((steady > 0) & (total > 0), level, -math.inf))
    return torch.stack(values)


@_of_one_song
def band_limit(songs: Songs) -> Tensor:
    """The highest frequency, Hz, whose mean power lies within 80 dB of the strongest one's.

    Of frequencies above 100 Hz, in 43 ms frames. Infinity for silence and below one frame.
    """
    heard = songs.short_hertz > 100
    mean = (songs.power * songs.short_mask[:, None]).sum(dim=2)[:, heard]  # (B, K)
    strong = mean > mean.amax(dim=1, keepdim=True) * 10 ** (-BAND_DB / 10)
    highest = (strong * songs.short_hertz[heard]).amax(dim=1)
    return torch.where(highest > 0, highest, math.inf)


def mono_loss(waveform: Tensor, sample_rate: int) -> float:
    """Power that the mono mix loses in the worst 5 s of a song (C, T), dB; 0 for mono (T,).

    Models encode the mono mix. Listeners hear the channels, and sound in opposite phase too.
    """
    if waveform.ndim == 1:
        return 0.0
    channels = _frames(waveform.float(), sample_rate).double()  # (C, F, size)
    mono = channels.mean(dim=0).square().sum(dim=1).tolist()
    every = channels.square().mean(dim=0).sum(dim=1).tolist()
    left = range(waveform.shape[1], 0, -sample_rate)
    counts = [min(sample_rate, samples) for samples in left]
    return worst_mono_loss(list(zip(mono, every, counts, strict=True)))


def _frames(waveforms: Tensor, size: int) -> Tensor:
    """(B, F, size) frames without overlap; the last one zero-padded."""
    missing = -waveforms.shape[1] % size
    padded = torch.nn.functional.pad(waveforms, (0, missing))
    return padded.reshape(len(waveforms), -1, size)


def _without_rumble(songs: Songs) -> Tensor:
    """`low` less its moving average over 50 ms: a drone below 20 Hz is no loop."""
    low = songs.low
    size = max(1, round(songs.low_rate / HEARING_HZ[0])) | 1
    sums = torch.nn.functional.pad(low.double().cumsum(1), (1, 0))
    sums = torch.nn.functional.pad(sums[:, None], (size // 2, size // 2), mode="replicate")[:, 0]
    average = ((sums[:, size:] - sums[:, :-size]) / size).to(low.dtype)
    return (low - average) * within(songs.low_lengths, low.shape[1], low.device)


def _highest_near(correlation: Tensor, centre: Tensor, taps: int = 16) -> Tensor:
    """(B,) the highest value of (B, L) between the samples around `centre` (B,).

    A loop need not be a whole number of samples long. Band-limited interpolation by a Hann-windowed
    sinc, at eighths of a sample.
    """
    offsets = torch.arange(-taps, taps + 1, device=correlation.device)
    index = centre[:, None] + offsets
    inside = (index >= 0) & (index < correlation.shape[1])
    values = correlation.gather(1, index.clamp(0, correlation.shape[1] - 1)) * inside
    steps = torch.arange(-8, 9, device=correlation.device) / 8
    distance = steps - offsets[:, None]  # (taps, steps)
    window = torch.cos(math.pi * distance / (2 * (taps + 1))).square()
    points: Tensor = values @ (torch.sinc(distance) * window)
    # At the ends of the range the neighbours are missing, and nothing can be read between.
    return torch.where(inside.all(dim=1), points.amax(dim=1), -math.inf)
