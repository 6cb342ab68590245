"""Guards: measures with limits, and what happens to the reward outside them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from apex_reward.errors import UsageError, expect_one_of, named
from apex_reward.rewards.guards import measures
from apex_reward.rewards.guards.measures import OF_SONG, Measure
from apex_reward.rewards.guards.songs import BLOCK_SECONDS, TAIL_SECONDS, Song, regrouped

Action = Literal["flag", "penalty", "veto"]
Combine = Literal["worst", "sum"]
UNFAMILIAR = "unfamiliar"
"""Guard and flag of songs far from a model's training songs; the model gives the value."""


@dataclass(frozen=True)
class Guard:
    """One measure with limits, and what happens outside them.

    Args:
        name: what is wrong when it trips; the flag's name.
        measure: pure function of a mono waveform (T,) and its sample rate in Hz (`mono_loss` also
            takes channels); None where the
            value comes from elsewhere (the model) and is put among the measured ones by the caller.
        unit: of the measure and its limits.
        low, high: it trips below `low` or above `high`.
        action: `flag` only reports; `penalty` subtracts `penalty` from the reward; `veto` replaces
            the reward by `Reward.floor`.
        penalty: in units of the reward.
        combine: what the blocks of a long song give together: `worst`, the value farthest outside
            the limits (or nearest to them), or `sum`.
    """

    name: str
    measure: Measure | None
    unit: str
    low: float = -math.inf
    high: float = math.inf
    action: Action = "flag"
    penalty: float = 0.5
    combine: Combine = "worst"

    def __post_init__(self) -> None:
        for what, value, kind in (
            ("action", self.action, Action),
            ("combine", self.combine, Combine),
        ):
            expect_one_of(f"{what} of guard {self.name}", value, get_args(kind))
        if math.isnan(self.low) or math.isnan(self.high) or self.low > self.high:
            raise UsageError(f"guard {self.name} has limits {self.low} to {self.high}; swap them?")

    def trips(self, value: float) -> bool:
        """Whether a measured value lies outside the limits; NaN does."""
        return not self.low <= value <= self.high

    def combined(self, values: Sequence[float]) -> float:
        """The value of a song from those of its blocks; NaN in one is NaN."""
        if any(math.isnan(value) for value in values):
            return math.nan
        return sum(values) if self.combine == "sum" else max(values, key=self._excess)

    def _excess(self, value: float) -> float:
        """How far outside the limits; below 0 inside them."""
        below = -math.inf if self.low == -math.inf else self.low - value
        above = -math.inf if self.high == math.inf else value - self.high
        return max(below, above)


DEFAULT_GUARDS: dict[str, Guard] = {
    guard.name: guard
    for guard in (
        Guard("silence", measures.silent_share, "share of frames", high=0.15),
        Guard("clipping", measures.clipped_share, "share of samples", high=0.005),
        Guard("dc", measures.dc_offset, "full scale", high=0.05),
        Guard("inaudible", measures.inaudible_share, "share of energy", high=0.55),
        Guard("loudness", measures.loudness, "LUFS", low=-35.0, high=-5.0),
        Guard("duration", measures.duration, "s", low=5.0, high=600.0, combine="sum"),
        Guard("looping", measures.loop_correlation, "correlation", high=0.9),
        Guard("noise", measures.noise_floor, "dB", high=-11.0),
        Guard("band", measures.band_limit, "Hz", low=3_500.0),
        Guard("mono-trap", measures.mono_loss, "dB", high=6.0),
        Guard("near-silence", measures.near_silence, "dB", high=45.0),
    )
}


@dataclass(frozen=True)
class Guards:
    """Several guards, applied together.

    Args:
        guards: any number of them, each name once. None of them: nothing is measured.
        veto_reward: reward of a vetoed song for mixes without a lowest value; elsewhere it replaces
            `Reward.floor` where it is lower.
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
        guards = DEFAULT_GUARDS.values()
        return cls(tuple(replace(guard, action=action, penalty=penalty) for guard in guards))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Guards:
        """Guards from what `to_dict` gave; a default guard's own values may be left out.

        Raises:
            UsageError: an unknown guard or key, or a measure that cannot be imported.
        """
        try:
            return cls(**{**saved, "guards": tuple(map(_guard_of, saved["guards"]))})
        except (KeyError, TypeError) as error:
            raise UsageError(f"the guards {saved!r} cannot be read: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and lists, for JSON and YAML; None is "no limit".

        A guard with a default guard's name and measure is saved by its name; another one with its
        measure as `package.module:NAME`.

        Raises:
            UsageError: a measure that cannot be imported by such a name (a lambda, a function
                inside another one, one of the main script).
        """
        return {"guards": [_entry(guard) for guard in self.guards], "veto_reward": self.veto_reward}

    def limit(self, name: str, **limits: float) -> Guards:
        """The same guards with another `low` or `high` for one of them.

        Raises:
            UsageError: no guard of that name here.
        """
        expect_one_of("guard to limit", name, self.names)
        changed = (replace(one, **limits) if one.name == name else one for one in self.guards)  # type: ignore[arg-type]
        return replace(self, guards=tuple(changed))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the guards, in order."""
        return tuple(guard.name for guard in self.guards)

    @property
    def vetoes(self) -> bool:
        """Whether any guard vetoes."""
        return any(guard.action == "veto" for guard in self.guards)

    @property
    def penalties(self) -> float:
        """The sum of the penalties of all guards that penalise."""
        return sum(guard.penalty for guard in self.guards if guard.action == "penalty")

    def measure(self, waveform: Tensor, sample_rate: int) -> dict[str, float]:
        """Every guard's measure of one song (T,) or (C, T).

        Channels are averaged, except for `mono-trap`.

        A song of 330 s or more is measured in parts, as by `measure_blocks`.

        Returns:
            The measured values by guard name, in the guards' units; guards without a measure are
            left out.
        """
        channels = waveform.detach()
        mono = channels.float().mean(dim=0) if waveform.ndim == 2 else channels.float()
        if mono.ndim != 1 or len(mono) == 0:
            raise UsageError(
                f"a song has shape {tuple(waveform.shape)}; expected (T,) or (C, T), T >= 1"
            )
        measured = self.measure_blocks([mono], sample_rate)
        return self.with_mono_loss(measured, measures.mono_loss(channels, sample_rate))

    def measure_blocks(self, blocks: Iterable[Tensor], sample_rate: int) -> dict[str, float]:
        """As `measure`, of a long song that arrives in parts, in bounded memory.

        The song is measured in blocks of 300 s, whatever the parts' sizes, and each guard combines
        its values (`Guard.combine`). A rest below 30 s is measured with the block before it. A song
        of one block gives what `measure` gives.

        Args:
            blocks: mono parts (n,) in order.
            sample_rate: Hz.

        Raises:
            UsageError: no samples at all.
        """
        values = [self._measured(block, sample_rate) for block in regrouped(blocks, sample_rate)]
        if not values:
            raise UsageError("a song of no samples; expected at least one block with one sample")
        return {
            guard.name: guard.combined([value[guard.name] for value in values])
            for guard in self.guards
            if guard.measure is not None
        }

    def whole_loudness(
        self, measured: Mapping[str, float], samples: int, sample_rate: int
    ) -> float | None:
        """The integrated loudness among a song's values, LUFS; None where it is not there.

        A song that was measured in several blocks has the worst block's loudness only.
        """
        if samples >= (BLOCK_SECONDS + TAIL_SECONDS) * sample_rate:
            return None
        names = [guard.name for guard in self.guards if guard.measure is measures.loudness]
        return measured.get(names[0]) if names else None

    def with_mono_loss(self, measured: Mapping[str, float], loss: float) -> dict[str, float]:
        """The measured values of a mono mix, with what the mix lost of the channels in dB."""
        traps = {guard.name for guard in self.guards if guard.measure is measures.mono_loss}
        return {name: loss if name in traps else value for name, value in measured.items()}

    def flags(self, measured: Mapping[str, float]) -> list[str]:
        """Names of the guards whose measured value lies outside their limits.

        A guard without a value among them (one that the model fills in, say) does not trip.
        """
        return [
            guard.name
            for guard in self.guards
            if guard.name in measured and guard.trips(measured[guard.name])
        ]

    def adjust(self, reward: float, flags: Sequence[str], floor: float) -> float:
        """The reward after penalties and vetoes.

        Penalties of several guards add up; a vetoed song gets `floor` (`Reward.floor`).
        """
        tripped = [guard for guard in self.guards if guard.name in flags]
        if any(guard.action == "veto" for guard in tripped):
            return floor
        return reward - sum(guard.penalty for guard in tripped if guard.action == "penalty")

    @torch.no_grad()
    def _measured(self, mono: Tensor, sample_rate: int) -> dict[str, float]:
        """Measures of (T,): the built-in ones share a `Song`."""
        song = Song(mono, sample_rate)
        values = {
            guard.name: OF_SONG[guard.measure](song)
            if guard.measure in OF_SONG
            else torch.tensor(float(guard.measure(mono, sample_rate)), dtype=torch.float64)
            for guard in self.guards
            if guard.measure is not None
        }
        if not values:
            return {}
        # One copy from the device for all of them.
        stacked = torch.stack([value.double().to(mono.device) for value in values.values()])
        return dict(zip(values, stacked.tolist(), strict=True))


def as_guards(guards: Guards | Iterable[Guard] | Action | None) -> Guards:
    """Guards from themselves, from single ones, from an action (all defaults) or None (none)."""
    if guards is None:
        return Guards(())
    if isinstance(guards, str):
        return Guards.default(guards)
    return guards if isinstance(guards, Guards) else Guards(tuple(guards))


def _entry(guard: Guard) -> dict[str, Any]:
    """One guard as plain values: what a default guard of its name has too is left out."""
    known, entry = DEFAULT_GUARDS.get(guard.name), dict(vars(guard))
    shared = ("measure", "unit", "combine")
    if known is not None and all(entry[key] == getattr(known, key) for key in shared):
        entry = {key: value for key, value in entry.items() if key not in shared}
    elif guard.measure is not None:
        entry["measure"] = _address(guard.name, guard.measure)
    return {key: None if value in (-math.inf, math.inf) else value for key, value in entry.items()}


def _guard_of(saved: Mapping[str, Any]) -> Guard:
    """A guard from one saved entry; what is missing comes from the default guard."""
    known = DEFAULT_GUARDS.get(saved["name"])
    values = {**(vars(known) if known else {}), **saved}
    if isinstance(values.get("measure"), str):
        values["measure"] = named(values["measure"], "function")
    ends = {"low": -math.inf, "high": math.inf}
    return Guard(**{**values, **{k: end for k, end in ends.items() if values.get(k) is None}})


def _address(name: str, measure: Measure) -> str:
    """`package.module:NAME` of a function, checked to lead back to it."""
    module, function = measure.__module__, measure.__qualname__
    if module == "__main__" or getattr(sys.modules.get(module), function, None) is not measure:
        raise UsageError(
            f"the measure of guard {name} is {function} of {module}, which cannot be imported by "
            "that name; define it at the top level of a module of its own"
        )
    return f"{module}:{function}"
