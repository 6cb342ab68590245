"""Guards: measures with limits, and what happens to the reward outside them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pkgutil import resolve_name
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.rewards.guards import measures
from apex_reward.rewards.guards.blocks import BLOCK_SECONDS, TAIL_SECONDS, regrouped
from apex_reward.rewards.guards.measures import OF_SONG, Measure
from apex_reward.rewards.guards.songs import Song

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
        for what, value, known in (
            ("action", self.action, get_args(Action)),
            ("combine", self.combine, get_args(Combine)),
        ):
            if value not in known:
                raise UsageError(
                    f"{what} of guard {self.name} is {value!r}; expected {', '.join(known)}"
                )
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

    @classmethod
    def from_dict(cls, saved_guards: Mapping[str, Any]) -> Guards:
        """Guards from what `to_dict` gave.

        Raises:
            UsageError: an unknown guard or key, or a measure that cannot be imported.
        """
        entries = _entries(saved_guards)
        return cls(tuple(map(_guard_of, entries)), saved_guards.get("veto_reward"))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and lists, for JSON and YAML; None is "no limit".

        A guard with a default guard's name and measure is saved by its name; another one with its
        measure as `package.module:NAME`.

        Raises:
            UsageError: a measure that cannot be imported by such a name (a lambda, a function
                inside another one, one of the main script).
        """
        return {
            "guards": [_entry(guard) for guard in self.guards],
            "veto_reward": self.veto_reward,
        }

    def limit(self, name: str, low: float | None = None, high: float | None = None) -> Guards:
        """The same guards with other limits for one of them; None keeps a limit.

        Raises:
            UsageError: no guard of that name here.
        """
        if name not in self.names:
            raise UsageError(f"no guard {name!r} to limit; here are {', '.join(self.names)}")
        limits = {key: value for key, value in (("low", low), ("high", high)) if value is not None}
        return replace(
            self,
            guards=tuple(
                replace(guard, **limits) if guard.name == name else guard  # type: ignore[arg-type]
                for guard in self.guards
            ),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the guards, in order."""
        return tuple(guard.name for guard in self.guards)

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

    def measure_batch(
        self, waveforms: Tensor, lengths: Tensor | Sequence[int] | None, sample_rate: int
    ) -> list[dict[str, float]]:
        """As `measure`, of every song of a batch, on its device.

        Args:
            waveforms: (B, T) or (B, C, T); what lies beyond the lengths is not heard.
            lengths: B samples, each in [1, T]; None: all of T.
            sample_rate: Hz.

        Returns:
            B times the measured values by guard name.

        Raises:
            UsageError: another shape, or lengths outside [1, T].
        """
        if waveforms.ndim not in (2, 3) or waveforms.shape[-1] == 0:
            raise UsageError(
                f"songs have shape {tuple(waveforms.shape)}; expected (B, T) or (B, C, T), T >= 1"
            )
        count, size = len(waveforms), waveforms.shape[-1]
        ends = [size] * count if lengths is None else [int(length) for length in lengths]
        if len(ends) != count or any(not 1 <= end <= size for end in ends):
            raise UsageError(f"lengths are {ends}; expected {count} values in [1, {size}] samples")
        return [
            self.measure(song[..., :end], sample_rate)
            for song, end in zip(waveforms, ends, strict=True)
        ]

    def measure_blocks(self, blocks: Iterable[Tensor], sample_rate: int) -> dict[str, float]:
        """As `measure`, of a long song that arrives in parts, in bounded memory.

        The song is measured in blocks of 300 s, whatever the parts' sizes, and each guard combines
        its values (`Guard.combine`). A rest below 30 s is measured with the block before it. A song
        of one block gives what `measure` gives.

        Args:
            blocks: mono parts (n,) in order.
            sample_rate: Hz.

        Raises:
            UsageError: a part of another shape, or no samples at all.
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
    """One guard as a dictionary; limits at infinity are None."""
    known = DEFAULT_GUARDS.get(guard.name)
    own: dict[str, Any] = {}
    if known is None or (known.measure, known.unit, known.combine) != (
        guard.measure,
        guard.unit,
        guard.combine,
    ):
        address = None if guard.measure is None else _address(guard.name, guard.measure)
        own = {"measure": address, "unit": guard.unit, "combine": guard.combine}
    return {
        "name": guard.name,
        **own,
        "low": guard.low if math.isfinite(guard.low) else None,
        "high": guard.high if math.isfinite(guard.high) else None,
        "action": guard.action,
        "penalty": guard.penalty,
    }


def _entries(saved: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The guards of a saved dictionary, its form checked."""
    unknown = sorted(set(saved) - {"guards", "veto_reward"})
    found = saved.get("guards")
    if unknown or not isinstance(found, Sequence) or isinstance(found, str):
        raise UsageError(
            "saved guards have the keys "
            f"{', '.join(map(str, saved)) or 'none'}; expected guards (a list) and veto_reward"
        )
    for one in found:
        if not isinstance(one, Mapping) or "name" not in one:
            raise UsageError(f"a saved guard is {one!r}; expected a mapping with a name")
    return found


def _guard_of(saved: Mapping[str, Any]) -> Guard:
    """A guard from one saved dictionary; what is missing comes from the default guard."""
    name = saved["name"]
    names = [field.name for field in fields(Guard)]
    unknown = sorted(set(saved) - set(names))
    if unknown:
        raise UsageError(
            f"saved guard {name} has {', '.join(unknown)}; expected {', '.join(names)}"
        )
    if name not in DEFAULT_GUARDS and not {"measure", "unit"} <= set(saved):
        raise UsageError(
            f"no guard {name}; the guards are {', '.join(DEFAULT_GUARDS)}; another one needs a "
            "measure (package.module:NAME, or null) and a unit"
        )
    known = vars(DEFAULT_GUARDS[name]) if name in DEFAULT_GUARDS else {}
    arguments = {**known, **saved}
    if isinstance(arguments["measure"], str):
        try:
            arguments["measure"] = resolve_name(arguments["measure"])
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(
                f"the measure of guard {name} is {arguments['measure']!r}, expected "
                f"package.module:NAME of a function that can be imported here: {error}"
            ) from error
    for key, none in (("low", -math.inf), ("high", math.inf)):
        if arguments.get(key) is None:
            arguments[key] = none
    return Guard(**arguments)


def _address(name: str, measure: Measure) -> str:
    """`package.module:NAME` of a function, checked to lead back to it."""
    module = getattr(measure, "__module__", None)
    function = getattr(measure, "__qualname__", None)
    found = getattr(sys.modules.get(module or ""), function or "", None)
    if module == "__main__" or found is not measure:
        raise UsageError(
            f"the measure of guard {name} is {function or measure!r} of {module}, which cannot be "
            "imported by that name; define it at the top level of a module of its own"
        )
    return f"{module}:{function}"
