"""Guards: measures of the ways a policy games a music reward, and what to do when one trips.

A measure is a pure function of one waveform; a `Guard` is a measure with limits in its units and
an action; `Guards` holds several. The reward model hears silence, loops or noise as readily as
music, so a policy that finds them will use them.

Shape key: T = samples, F = frames, K = frequency bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from apex_reward.audio.loudness import integrated_loudness
from apex_reward.errors import UsageError

Action = Literal["flag", "penalty", "veto"]
Measure = Callable[[Tensor, int], float]

SILENCE_DBFS = -60.0
FULL_SCALE = 0.99
HEARING_HZ = (20.0, 16_000.0)
LOOP_SECONDS = 0.4


def silent_share(waveform: Tensor, sample_rate: int) -> float:
    """Share of 50 ms frames below -60 dBFS RMS, in [0, 1]."""
    frames = _frames(waveform, max(1, round(0.05 * sample_rate)))
    level = frames.square().mean(dim=1)
    return float((level < 10 ** (SILENCE_DBFS / 10)).float().mean())


def clipped_share(waveform: Tensor, sample_rate: int) -> float:
    """Share of samples in flat tops, in [0, 1].

    A flat top is three or more samples in a row, of one sign, within 1 % of full scale or beyond;
    a master that only touches full scale has few, whatever its loudness.
    """
    hot = torch.stack([waveform >= FULL_SCALE, waveform <= -FULL_SCALE])
    if hot.shape[1] < 3:
        return 0.0
    middle = hot[:, :-2] & hot[:, 1:-1] & hot[:, 2:]
    flat = torch.zeros_like(hot)
    for shift in range(3):
        flat[:, shift : shift + middle.shape[1]] |= middle
    return float(flat.any(dim=0).float().mean())


def dc_offset(waveform: Tensor, sample_rate: int) -> float:
    """Absolute mean of the samples, full scale = 1."""
    return abs(float(waveform.mean()))


def inaudible_share(waveform: Tensor, sample_rate: int) -> float:
    """Share of the energy below 20 Hz (without DC) or above 16 kHz, in [0, 1]; 0 for silence."""
    centred = waveform - waveform.mean()
    power = torch.fft.rfft(centred).abs().square()
    frequency = torch.arange(len(power), device=power.device) * (sample_rate / len(waveform))
    outside = (frequency < HEARING_HZ[0]) | (frequency > HEARING_HZ[1])
    total = float(power.sum())
    return float(power[outside].sum()) / total if total > 0 else 0.0


def loudness(waveform: Tensor, sample_rate: int) -> float:
    """Integrated loudness, LUFS (BS.1770-4); minus infinity for silence."""
    return float(integrated_loudness(waveform.unsqueeze(0), sample_rate))


def duration(waveform: Tensor, sample_rate: int) -> float:
    """Length, seconds."""
    return len(waveform) / sample_rate


def loop_correlation(waveform: Tensor, sample_rate: int) -> float:
    """How exactly the song repeats itself: the highest autocorrelation, in [-1, 1].

    Over lags from 0.4 s to half of the song, each normalised by the energy of the two overlapping
    parts. A segment that is copied to the end gives 1, and so does a held tone; music that repeats
    a bar with other notes, words or timing stays well below. 0 below 0.8 s and for silence.
    """
    size = len(waveform)
    first, last = max(1, round(LOOP_SECONDS * sample_rate)), size // 2
    if last < first:
        return 0.0
    centred = waveform - waveform.mean()
    spectrum = torch.fft.rfft(centred, 2 * size)
    correlation = torch.fft.irfft(spectrum.abs().square(), 2 * size)[first : last + 1]
    energy = torch.nn.functional.pad(centred.double().square().cumsum(0), (1, 0))
    lags = torch.arange(first, last + 1, device=waveform.device)
    head, tail = energy[size - lags], energy[-1] - energy[lags]
    floor = energy[-1] * 1e-3
    audible = (head > floor) & (tail > floor)
    if not bool(audible.any()):
        return 0.0
    return float((correlation / (head * tail).clamp(min=1e-30).sqrt())[audible].max().clamp(-1, 1))


def noise_floor(waveform: Tensor, sample_rate: int) -> float:
    """Level of the steady broadband part against the whole song, dB; about 0 for white noise.

    Minimum statistics (R. Martin, IEEE Trans. Speech Audio Process. 9(5), 2001): in each frequency
    bin the quietest tenth of 43 ms frames is what never stops; the median over bins leaves tones
    out. Corrected for the 10 % quantile of an exponential distribution, as noise power has.
    Minus infinity for silence.
    """
    size = 1 << max(5, round(math.log2(sample_rate * 0.043)))
    if len(waveform) < 4 * size:
        return -math.inf
    window = torch.hann_window(size, device=waveform.device)
    power = torch.stft(waveform, size, size // 2, window=window, return_complex=True).abs().square()
    frequency = torch.arange(power.shape[0], device=power.device) * (sample_rate / size)
    # Above 10 kHz lossy codecs leave nothing, and the encoder hears little.
    power = power[(frequency > 100) & (frequency < min(10_000, 0.45 * sample_rate))]  # (K, F)
    total = float(power.mean())
    # The 10 % quantile; torch.quantile refuses songs of some minutes.
    quietest = power.kthvalue(1 + (power.shape[1] - 1) // 10, dim=1).values
    steady = float(quietest.median()) / -math.log(0.9)
    return 10 * math.log10(steady / total) if steady > 0 and total > 0 else -math.inf


@dataclass(frozen=True)
class Guard:
    """One measure with limits, and what happens outside them.

    Args:
        name: what is wrong when it trips; the flag's name.
        measure: pure function of a mono waveform (T,) and its sample rate in Hz.
        unit: of the measure and its limits.
        low, high: it trips below `low` or above `high`.
        action: `flag` only reports; `penalty` subtracts `penalty` from the reward; `veto` replaces
            the reward by the lowest one (`Guards.veto_reward`).
        penalty: in units of the reward.
    """

    name: str
    measure: Measure
    unit: str
    low: float = -math.inf
    high: float = math.inf
    action: Action = "flag"
    penalty: float = 0.5

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise UsageError(
                f"action of guard {self.name} is {self.action!r}; "
                f"expected {', '.join(get_args(Action))}"
            )
        if math.isnan(self.low) or math.isnan(self.high) or self.low > self.high:
            raise UsageError(f"guard {self.name} has limits {self.low} to {self.high}; swap them?")

    def trips(self, value: float) -> bool:
        """Whether a measured value lies outside the limits; NaN does."""
        return not self.low <= value <= self.high


DEFAULT_GUARDS: dict[str, Guard] = {
    guard.name: guard
    for guard in (
        Guard("silence", silent_share, "share of frames", high=0.3),
        Guard("clipping", clipped_share, "share of samples", high=0.01),
        Guard("dc", dc_offset, "full scale", high=0.02),
        Guard("inaudible", inaudible_share, "share of energy", high=0.2),
        Guard("loudness", loudness, "LUFS", low=-50.0, high=-5.0),
        Guard("duration", duration, "s", low=5.0, high=600.0),
        Guard("looping", loop_correlation, "correlation", high=0.9),
        Guard("noise", noise_floor, "dB", high=-3.0),
    )
}


@dataclass(frozen=True)
class Guards:
    """Several guards, applied together.

    Args:
        guards: any number of them, each name once. None of them: nothing is measured.
        veto_reward: reward of a vetoed song; None takes the lowest that the mix can give
            (`RewardMix.lowest`), so that a policy learns to stay away from it.
    """

    guards: tuple[Guard, ...] = tuple(DEFAULT_GUARDS.values())
    veto_reward: float | None = None

    def __post_init__(self) -> None:
        names = [guard.name for guard in self.guards]
        if len(set(names)) < len(names):
            raise UsageError(f"the guards {', '.join(names)} have a name twice")

    @classmethod
    def default(cls, action: Action = "flag", penalty: float = 0.5) -> Guards:
        """All of `DEFAULT_GUARDS` with one action."""
        return cls.of(DEFAULT_GUARDS, action, penalty)

    @classmethod
    def of(cls, names: Iterable[str], action: Action = "flag", penalty: float = 0.5) -> Guards:
        """The default guards of these names, with one action.

        Raises:
            UsageError: no default guard has that name.
        """
        chosen = list(names)
        unknown = [name for name in chosen if name not in DEFAULT_GUARDS]
        if unknown:
            raise UsageError(
                f"no guard {', '.join(unknown)}; the guards are {', '.join(DEFAULT_GUARDS)}"
            )
        return cls(
            tuple(replace(DEFAULT_GUARDS[name], action=action, penalty=penalty) for name in chosen)
        )

    def limit(self, name: str, low: float | None = None, high: float | None = None) -> Guards:
        """The same guards with other limits for one of them; None keeps a limit.

        Raises:
            UsageError: no guard of that name here.
        """
        if name not in self.names:
            raise UsageError(f"no guard {name!r} to limit; here are {', '.join(self.names)}")
        return replace(
            self,
            guards=tuple(
                replace(
                    guard,
                    low=guard.low if low is None else low,
                    high=guard.high if high is None else high,
                )
                if guard.name == name
                else guard
                for guard in self.guards
            ),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the guards, in order."""
        return tuple(guard.name for guard in self.guards)

    def measure(self, waveform: Tensor, sample_rate: int) -> dict[str, float]:
        """Every guard's measure of one song (T,) or (C, T); channels are averaged.

        Returns:
            The measured values by guard name, in the guards' units.
        """
        mono = waveform.detach().float()
        if mono.ndim == 2:
            mono = mono.mean(dim=0)
        if mono.ndim != 1 or len(mono) == 0:
            raise UsageError(
                f"a song has shape {tuple(waveform.shape)}; expected (T,) or (C, T), T >= 1"
            )
        with torch.no_grad():
            return {guard.name: guard.measure(mono, sample_rate) for guard in self.guards}

    def to_dict(self) -> dict[str, object]:
        """Plain values, read by `from_dict`."""
        return {"veto_reward": self.veto_reward, "guards": [
            {**vars(g), "measure": None} for g in self.guards]}  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Guards:
        """Rebuild what `to_dict` wrote."""
        return cls(tuple(Guard(**{**v, "measure": DEFAULT_GUARDS[v["name"]].measure})
                         for v in values["guards"]), values["veto_reward"])  # fmt: skip

    def flags(self, measured: dict[str, float]) -> list[str]:
        """Names of the guards whose measured value lies outside their limits."""
        return [guard.name for guard in self.guards if guard.trips(measured[guard.name])]

    def adjust(self, reward: float, flags: Sequence[str], lowest: float) -> float:
        """The reward after penalties and vetoes.

        Penalties of several guards add up; `lowest` is the reward of a vetoed song unless
        `veto_reward` says otherwise.
        """
        tripped = [guard for guard in self.guards if guard.name in flags]
        if any(guard.action == "veto" for guard in tripped):
            return lowest if self.veto_reward is None else self.veto_reward
        return reward - sum(guard.penalty for guard in tripped if guard.action == "penalty")


def as_guards(guards: Guards | Iterable[Guard] | Action | None) -> Guards:
    """Guards from themselves, from single ones, from an action (all defaults) or None (none)."""
    if guards is None:
        return Guards(())
    if isinstance(guards, str):
        return Guards.default(guards)
    return guards if isinstance(guards, Guards) else Guards(tuple(guards))


def _frames(waveform: Tensor, size: int) -> Tensor:
    """(F, size) frames without overlap; the last one zero-padded."""
    missing = -len(waveform) % size
    return torch.nn.functional.pad(waveform, (0, missing)).reshape(-1, size)
