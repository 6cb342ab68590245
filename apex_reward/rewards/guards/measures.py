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
from apex_reward.audio.loudness import integrated_loudness
from apex_reward.rewards.guards.songs import Songs, autocorrelation, frames, within, zero_beyond

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
    level = songs.frame_energy / songs.frame_size
    counts = [-(-length // songs.frame_size) for length in songs.lengths]
    silent = (level < 10 ** (SILENCE_DBFS / 10)) & within(counts, level.shape[1], level.device)
    return silent.sum(dim=1) / level.new_tensor(counts)


@_of_one_song
def clipped_share(songs: Songs) -> Tensor:
    """Share of samples in flat tops, in [0, 1].

    A flat top is three or more samples in a row, of one sign, within 1 % of full scale or beyond;
    a master that only touches full scale has few, whatever its loudness.
    """
    lowest, highest = torch.aminmax(songs.waveforms)
    if max(-lowest, highest) < FULL_SCALE or songs.waveforms.shape[1] < 3:
        return songs.waveforms.new_zeros(len(songs.lengths))
    flat = torch.zeros_like(songs.waveforms, dtype=torch.bool)
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
    means = frames(songs.waveforms, size).mean(dim=2)  # (B, F)
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
    whole = songs.whole_power
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
    return torch.stack(
        [_best_lag(song[:n], first) for song, n in zip(heard, songs.low_lengths, strict=True)]
    )


def _best_lag(song: Tensor, first: int) -> Tensor:
    """() the highest normalised autocorrelation of (t,) from lag `first` to half of the song."""
    count = len(song)
    last = count // 2
    if last < first:
        return song.new_zeros(())
    correlation = autocorrelation(song, last + 1)[first:]
    energy = song.square().cumsum(0, dtype=torch.float64)
    total = energy[-1]
    head = energy[count - 1 - last : count - first].flip(0)  # of all but the last `lag` samples
    head, tail = head.to(song.dtype), (total - energy[first - 1 : last]).to(song.dtype)
    audible = torch.minimum(head, tail) > 1e-3 * total
    scale = (head * tail).clamp(min=1e-30).sqrt()
    value = torch.where(audible, correlation / scale, -math.inf)
    best, at = value.max(dim=0)
    between = _highest_near(correlation, at) / scale[at]
    result = torch.maximum(best, between).clamp(-1, 1)
    return torch.where(torch.isfinite(best), result, 0.0)


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
    first, last = int(bins.int().argmax()), int(bins.sum() + bins.int().argmax())
    values = []
    for song, whole, length in zip(songs.power, songs.whole_power, songs.lengths, strict=True):
        count = songs.short_frames(length)
        if length < 4 * songs.short_size or first == last:
            values.append(song.new_tensor(-math.inf))
            continue
        quietest = _kth(song[:count, first:last].T.contiguous(), (count - 1) // 10)
        steady, total = quietest.median() / -math.log(0.9), whole[first:last].mean() / count
        level = 10 * torch.log10(steady / total)
        values.append(torch.where((steady > 0) & (total > 0), level, -math.inf))
    return torch.stack(values)


@_of_one_song
def band_limit(songs: Songs) -> Tensor:
    """The highest frequency, Hz, whose mean power lies within 80 dB of the strongest one's.

    Of frequencies above 100 Hz, in 43 ms frames. Infinity for silence and below one frame.
    """
    heard = songs.short_hertz > 100
    power = songs.whole_power[:, heard]
    strong = power > power.amax(dim=1, keepdim=True) * 10 ** (-BAND_DB / 10)
    highest = (strong * songs.short_hertz[heard]).amax(dim=1)
    return torch.where(highest > 0, highest, math.inf)


@_of_one_song
def near_silence(songs: Songs) -> Tensor:
    """How far the highest sample lies above a song's own level, dB; 0 for silence.

    The level is the RMS that a quarter of the 50 ms frames exceed, at least -100 dBFS. A click in
    near-silence lies 60 dB above it, at any gain. Music lies 5 to 35 dB above it.
    """
    levels = (songs.frame_energy / songs.frame_size).clamp(min=1e-10)
    values = []
    for song, level, length in zip(songs.waveforms, levels, songs.lengths, strict=True):
        count = -(-length // songs.frame_size)
        quarter = level[:count].sort(descending=True).values[(count - 1) // 4]
        peak = torch.maximum(song.amax(), -song.amin()).square()
        values.append(torch.where(peak > quarter, 10 * torch.log10(peak / quarter), 0.0))
    return torch.stack(values)


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


def _without_rumble(songs: Songs) -> Tensor:
    """`low` less its moving average over 50 ms: a drone below 20 Hz is no loop."""
    low = songs.low
    half = round(songs.low_rate / HEARING_HZ[0]) // 2
    sums = torch.nn.functional.pad(low, (half + 1, half)).cumsum(1, dtype=torch.float64)
    average = (sums[:, 2 * half + 1 :] - sums[:, : -2 * half - 1]) / (2 * half + 1)
    return zero_beyond(low - average.to(low.dtype), songs.low_lengths)


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
