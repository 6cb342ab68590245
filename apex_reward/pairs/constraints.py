"""Constraints: which candidates may be in a pair, and which of them may be paired.

Bounds are inclusive. Audio files that are not there (scored on another machine, say) are left
alone: nothing is known of them.

Shape key: N = candidates, P = prompts, n = candidates of a prompt, ... = any shape of pairs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from apex_reward.audio.decoding import SoundFacts, sound_facts
from apex_reward.audio.load import load_audio
from apex_reward.errors import AudioError
from apex_reward.pairs.candidates import UNREADABLE, Candidates, Floats, Integers, split_flags
from apex_reward.pairs.options import PairOptions, parse_bound
from apex_reward.rewards.load import default_workers

Mask = npt.NDArray[np.bool_]
THREADS = 8


class Ledger:
    """Reasons of `size` things; those without a reason are still in.

    A reason reads `category` or `category: detail`; counts are by category.
    """

    def __init__(self, size: int) -> None:
        self._number = {"": 0}
        self.codes = np.zeros(size, np.int32)
        """Number of each reason, in order of first use; 0 for what is still in."""

    @property
    def open(self) -> Mask:
        """True for what has not been dropped."""
        return self.codes == 0

    @property
    def texts(self) -> list[str]:
        """The reasons by number."""
        return [*self._number]

    def reasons(self, which: Any) -> list[str]:
        """The reason of each of some positions, "" for what is still in."""
        texts = self.texts
        return [texts[code] for code in self.codes[which].tolist()]

    def drop(self, which: Any, reason: str) -> None:
        """Drop those of a mask, an array of positions or one position that are still in."""
        code = self._number.setdefault(reason, len(self._number))
        self.codes[which] = np.where(self.codes[which] == 0, code, self.codes[which])

    def counts(self) -> dict[str, int]:
        """How many were dropped, by category, in the order in which categories first applied."""
        numbers = np.bincount(self.codes, minlength=len(self._number)).tolist()
        counts: Counter[str] = Counter()
        for text, number in zip(self.texts[1:], numbers[1:], strict=True):
            if number:
                counts[text.partition(": ")[0]] += number
        return dict(counts)


def check_candidates(
    candidates: Candidates, options: PairOptions, ledger: Ledger, folder: Path | None
) -> Candidates:
    """Drop the candidates that can be in no pair, and fill in what the audio files know.

    Args:
        candidates: in canonical order; of equal songs of one prompt the first stays.
        ledger: gets the drops.
        folder: where relative paths are tried next to the working directory.

    Returns:
        The candidates with `duration`, `loudness` and `sample_rate` filled in as far as they are
        known; loudness is measured only where an option needs it.
    """
    ledger.drop(candidates.table["prompt_id"].is_null().to_numpy(), "no prompt")
    _drop_values(candidates, UNREADABLE, ledger, lambda reason: reason or "")
    _drop_values(candidates, "audio", ledger, lambda audio: "" if audio else "no audio path")
    _drop_values(candidates, "error", ledger, lambda e: f"not scored: {e}" if e else "")
    for axis in options.involved:
        ledger.drop(~np.isfinite(candidates.axes[axis]), f"no {axis}")
    unwanted = set(options.drop_flags)
    if unwanted:
        _drop_values(candidates, "flags", ledger, lambda f: _flag_reason(f, unwanted))
    _drop_repeats(candidates, ledger)
    candidates = _check_audio(candidates, options, ledger, folder)
    if options.match_duration is not None:
        ledger.drop(~np.isfinite(candidates.duration), "no duration")
    measured = candidates.measured()
    needed = [*["loudness"] * (options.match_loudness is not None), *options.ruler_names]
    for name in needed:
        ledger.drop(~np.isfinite(measured[name]), f"no {name}")
    usable = np.bincount(candidates.prompt[ledger.open], minlength=len(candidates))
    ledger.drop(usable[candidates.prompt] == 1, "only usable candidate of its prompt")
    return candidates


def _drop_values(
    candidates: Candidates, name: str, ledger: Ledger, reason: Callable[[Any], str]
) -> None:
    """Drop where `reason` of the column's value is not empty."""
    for position, value in enumerate(candidates.column(name) or []):
        text = reason(value)
        if text:
            ledger.drop(position, text)


def _flag_reason(flags: Any, unwanted: set[str]) -> str:
    return next((f"flag {flag}" for flag in split_flags(flags) if flag in unwanted), "")


def _drop_repeats(candidates: Candidates, ledger: Ledger) -> None:
    """Drop what lists the same file twice for one prompt, keeping the first."""
    audio, prompt = candidates.table["audio"].to_pylist(), candidates.prompt.tolist()
    previous = None
    for position in np.flatnonzero(ledger.open).tolist():
        song = prompt[position], audio[position]
        if song == previous:
            ledger.drop(position, "duplicate audio: the same file is listed twice")
        previous = song


def song_file(audio: str, folder: Path | None) -> Path | None:
    """The file of a candidate, from the working directory or else from `folder`; None if absent."""
    if os.path.isfile(audio):
        return Path(audio)
    if folder is not None and os.path.isfile(os.path.join(folder, audio)):
        return folder / audio
    return None


def _check_audio(
    candidates: Candidates, options: PairOptions, ledger: Ledger, folder: Path | None
) -> Candidates:
    """Drop unreadable and duplicate audio; fill in what the files know."""
    audio = candidates.column("audio") or []
    files = {i: song_file(audio[i], folder) for i in np.flatnonzero(ledger.open).tolist()}
    present = [(i, path) for i, path in files.items() if path is not None]
    # Length, rate and channels, from the header or else by decoding.
    facts = dict(in_threads(_header, present))
    for i, sound in _sounds([(i, path) for i, path in present if facts[i] is None]):
        if sound.facts is None:
            ledger.drop(i, f"unreadable audio: {sound.error}")
        else:
            found = sound.facts
            facts[i] = (found.samples, found.sample_rate, found.channels)
    known = {i: fact for i, fact in facts.items() if fact is not None}
    _drop_same_sound(candidates, ledger, [(i, p) for i, p in present if i in known], known)
    seconds, rate = candidates.duration.copy(), candidates.sample_rate.copy()
    for i, (frames, hertz, _) in known.items():
        rate[i] = hertz
        seconds[i] = frames / hertz if np.isnan(seconds[i]) else seconds[i]
    loudness = candidates.loudness.copy()
    if options.match_loudness is not None or "loudness" in options.ruler_names:
        loudness = candidates.measured()["loudness"].copy()
        missing = [(i, p) for i, p in present if np.isnan(loudness[i]) and ledger.open[i]]
        for i, value in in_threads(measured_loudness, missing):
            if isinstance(value, str):
                ledger.drop(i, f"unreadable audio: {value}")
            else:
                loudness[i] = value
    names = [os.path.normpath(path or "") for path in audio]
    for i, path in present:
        names[i] = os.path.realpath(path)
    return replace(candidates, duration=seconds, loudness=loudness, sample_rate=rate, files=names)


def _header(path: Path) -> tuple[int, int, int] | None:
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError):
        return None
    known = 0 < info.frames < 1 << 40
    return (info.frames, info.samplerate, info.channels) if known else None


def _sounds(files: Sequence[tuple[int, Path]]) -> Iterator[tuple[int, SoundFacts]]:
    """(position, facts) in the order of `files`, decoded in processes of their own."""
    workers = min(default_workers(), len(files))
    decoded = sound_facts([str(path) for _, path in files], workers)
    yield from zip((i for i, _ in files), decoded, strict=True)


def _drop_same_sound(
    candidates: Candidates,
    ledger: Ledger,
    readable: Sequence[tuple[int, Path]],
    facts: dict[int, tuple[int, int, int]],
) -> None:
    """Decode and compare only songs of one prompt with the same length, rate and channels."""
    audio = candidates.table["audio"]
    alike: dict[Any, list[tuple[int, Path]]] = {}
    for i, path in readable:
        alike.setdefault((int(candidates.prompt[i]), facts[i]), []).append((i, path))
    first: dict[Any, int] = {}
    for i, sound in _sounds([file for files in alike.values() if len(files) > 1 for file in files]):
        if sound.facts is None:
            ledger.drop(i, f"unreadable audio: {sound.error}")
            continue
        same = first.setdefault((int(candidates.prompt[i]), sound.facts.digest), i)
        if same != i:
            ledger.drop(i, f"duplicate audio: sounds the same as {audio[same]}")


def measured_loudness(path: Path) -> float | str:
    """Integrated loudness in LUFS, or why the file cannot be decoded."""
    import torch

    from apex_reward.audio.loudness import integrated_loudness  # it loads torch

    try:
        waveform = load_audio(path)
    except AudioError as error:
        return str(error)
    samples = torch.from_numpy(waveform.samples)[None]
    return float(integrated_loudness(samples, waveform.sample_rate))


def in_threads(
    function: Callable[[Path], Any], files: Sequence[tuple[int, Path]]
) -> Iterator[tuple[int, Any]]:
    """(position, function(path)) in the order of `files`; decoding releases the interpreter."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(files), 1024):
            block = files[start : start + 1024]
            results = pool.map(function, [path for _, path in block])
            yield from zip((position for position, _ in block), results, strict=True)


@dataclass(frozen=True)
class Constraint:
    """Who may be paired: `allows(chosen, rejected)` of (...) positions is True where they may."""

    reason: str
    allows: Callable[[Integers, Integers], Mask]


def constraints(candidates: Candidates, options: PairOptions, usable: Mask) -> list[Constraint]:
    """The constraints that the options ask for, in the order in which they apply."""
    primary, members = candidates.axes[options.primary], candidates.members
    least = options.min_agreement
    made: list[Constraint] = []
    if least is not None and members is not None:
        reason = f"agreement below {least:g}"
        made.append(Constraint(reason, lambda w, low: agreement(members, w, low) >= least))
    if options.chosen_floor is not None:
        floor, text = bound_value(options.chosen_floor, primary[usable])
        reason = f"chosen below the floor {text}"
        made.append(Constraint(reason, lambda w, low: primary[w] >= floor))
    if options.rejected_ceiling is not None:
        ceiling, text = bound_value(options.rejected_ceiling, primary[usable])
        reason = f"rejected above the ceiling {text}"
        made.append(Constraint(reason, lambda w, low: primary[low] <= ceiling))
    made += [protected(a, candidates.axes[a], most) for a, most in options.protect.items()]
    if options.match_duration is not None:
        made.append(matched("duration", candidates.duration, options.match_duration, "s"))
    if options.match_loudness is not None:
        made.append(matched("loudness", candidates.loudness, options.match_loudness, "dB"))
    return made


def agreement(members: Floats, chosen: Integers, rejected: Integers) -> Floats:
    """(...) share of an ensemble's members that score the chosen above the rejected.

    Args:
        members: (N, members) of every candidate.

    >>> agreement(np.array([[1.0, 5.0], [2.0, 3.0]]), np.array([0, 1]), np.array([1, 0])).tolist()
    [0.5, 0.5]
    """
    shares: Floats = (members[chosen] > members[rejected]).mean(axis=-1)
    return shares


def protected(axis: str, values: Floats, tolerance: float) -> Constraint:
    """The chosen loses at most `tolerance` of an axis against the rejected."""
    return Constraint(
        f"loses more than {tolerance:g} {axis}", lambda w, low: values[low] - values[w] <= tolerance
    )


def matched(name: str, values: Floats, tolerance: float, unit: str) -> Constraint:
    """The two differ by at most `tolerance`; unknown values (NaN) match nothing."""
    return Constraint(
        f"{name} differs by more than {tolerance:g} {unit}",
        lambda w, low: np.abs(values[w] - values[low]) <= tolerance,
    )


def bound_value(bound: float | str, values: Floats) -> tuple[float, str]:
    """A floor or ceiling as a value, itself or the quantile `q0.8` of `values`; and as text."""
    value, is_quantile = parse_bound(bound)
    if not is_quantile:
        return value, f"{value:g}"
    value = float(np.quantile(values, value)) if values.size else 0.0
    return value, f"{value:g} ({bound})"


def allowed_pairs(made: Sequence[Constraint], members: Integers, ledger: Ledger) -> Mask:
    """(P, n, n) True where the row's candidate may be chosen over the column's.

    Args:
        made: the constraints, in order.
        members: (P, n) positions of the candidates of P prompts.
        ledger: gets the candidates that a constraint leaves without a partner.
    """
    may: Mask = np.broadcast_to(
        ~np.eye(members.shape[1], dtype=bool), (*members.shape, members.shape[1])
    )
    for constraint in made:
        may = may & constraint.allows(members[:, :, None], members[:, None, :])
        alone = ~(may.any(axis=2) | may.any(axis=1))
        ledger.drop(members[alone], f"no partner left ({constraint.reason})")
    return may
