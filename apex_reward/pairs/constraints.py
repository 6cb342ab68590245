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
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

from apex_reward.audio.decoding import sound_facts
from apex_reward.audio.load import load_audio
from apex_reward.errors import AudioError
from apex_reward.pairs.candidates import (
    RULERS,
    UNREADABLE,
    Candidates,
    Floats,
    Integers,
    split_flags,
)
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
            counts[text.partition(": ")[0]] += number
        return {text: number for text, number in counts.items() if number}


def check_candidates(
    candidates: Candidates, options: PairOptions, ledger: Ledger, folder: Path | None
) -> Candidates:
    """Drop the candidates that can be in no pair, and fill in what the audio files know.

    Args:
        candidates: in canonical order; of equal songs of one prompt the first stays.
        ledger: gets the drops.
        folder: where relative paths are tried next to the working directory.

    Returns:
        The candidates with `duration`, `rulers.loudness` and `sample_rate` filled in as far as
        they are known; loudness is measured only where an option needs it.
    """
    ledger.drop(candidates.table["prompt_id"].is_null().to_numpy(), "no prompt")
    audio = candidates.table["audio"].combine_chunks().dictionary_encode("encode")
    unnamed = np.array([not name for name in audio.dictionary.to_pylist()])
    codes = audio.indices.to_numpy()
    for name, words in ((UNREADABLE, ""), ("error", "not scored: ")):
        for position, reason in enumerate(candidates.column(name)):
            if reason:
                ledger.drop(position, f"{words}{reason}")
    ledger.drop(unnamed[codes], "no audio path")
    for axis in options.involved:
        ledger.drop(~np.isfinite(candidates.numbers[axis]), f"no {axis}")
    for position, flags in enumerate(candidates.column("flags") if options.drop_flags else ()):
        unwanted = [flag for flag in split_flags(flags) if flag in options.drop_flags]
        if unwanted:
            ledger.drop(position, f"flag {unwanted[0]}")
    left = np.flatnonzero(ledger.open)
    first = np.unique(candidates.prompt[left] * len(unnamed) + codes[left], return_index=True)[1]
    repeated = np.delete(left, first)
    ledger.drop(repeated, "duplicate audio: the same file is listed twice")
    candidates = _check_audio(candidates, options, ledger, folder)
    rulers = candidates.rulers() | {"duration": candidates.numbers["duration"]}
    matched = {"duration": options.match_duration, "loudness": options.match_loudness}
    for name in (*(n for n, most in matched.items() if most is not None), *options.ruler_names):
        ledger.drop(~np.isfinite(rulers[name]), f"no {name}")
    usable = np.bincount(candidates.prompt[ledger.open], minlength=len(candidates))
    ledger.drop(usable[candidates.prompt] == 1, "only usable candidate of its prompt")
    return candidates


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
    audio = candidates.column("audio")
    found = ((i, song_file(audio[i], folder)) for i in np.flatnonzero(ledger.open).tolist())
    present = {i: path for i, path in found if path is not None}
    facts = dict(in_threads(_header, [*present.items()]))
    _drop_same_sound(candidates, ledger, present, facts)
    numbers = candidates.numbers | {name: candidates.numbers[name].copy()
                                    for name in ("duration", "sample_rate")}  # fmt: skip
    for i, known in facts.items():
        if known is not None:
            frames, numbers["sample_rate"][i], _ = known
            if np.isnan(numbers["duration"][i]):
                numbers["duration"][i] = frames / numbers["sample_rate"][i]
    if options.match_loudness is not None or "loudness" in options.ruler_names:
        loudness = candidates.rulers()["loudness"].copy()
        unknown = np.isnan(loudness) & ledger.open
        missing = [(i, path) for i, path in present.items() if unknown[i]]
        for i, value in in_threads(measured_loudness, missing):
            if isinstance(value, str):
                ledger.drop(i, f"unreadable audio: {value}")
            else:
                loudness[i] = value
        numbers[RULERS + "loudness"] = loudness
    names = [os.path.normpath(path or "") for path in audio]
    for i, path in present.items():
        names[i] = os.path.realpath(path)
    return replace(candidates, numbers=numbers, files=names)


def _header(path: Path) -> tuple[int, int, int] | None:
    """Samples, rate and channels; None where the header does not say."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError):
        return None
    known = 0 < info.frames < 1 << 40
    return (info.frames, info.samplerate, info.channels) if known else None


def _drop_same_sound(
    candidates: Candidates,
    ledger: Ledger,
    present: dict[int, Path],
    facts: dict[int, tuple[int, int, int] | None],
) -> None:
    """Decode songs without facts, and of one prompt those of equal length, rate and channels.

    Args:
        present: the files by position.
        facts: what their headers say; gets what decoding finds.
    """
    audio, prompt = candidates.table["audio"], candidates.prompt.tolist()
    unknown = {prompt[i] for i, known in facts.items() if known is None}
    kinds = {i: (prompt[i], None if prompt[i] in unknown else facts[i]) for i in present}
    times = Counter(kinds.values())
    todo = [i for i, kind in kinds.items() if times[kind] > 1 or facts[i] is None]
    workers = min(default_workers(), len(todo))
    first: dict[Any, int] = {}
    for i, sound in zip(todo, sound_facts([str(present[i]) for i in todo], workers), strict=True):
        if sound.facts is None:
            ledger.drop(i, f"unreadable audio: {sound.error}")
            continue
        facts[i] = sound.facts.samples, sound.facts.sample_rate, sound.facts.channels
        same = first.setdefault((prompt[i], sound.facts.digest), i)
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


class Constraint(NamedTuple):
    """Who may be paired: `allows(chosen, rejected)` of (...) positions is True where they may."""

    reason: str
    allows: Callable[[Integers, Integers], Mask]


def constraints(candidates: Candidates, options: PairOptions, usable: Mask) -> list[Constraint]:
    """The constraints that the options ask for, in the order in which they apply."""
    primary, members = candidates.numbers[options.primary], candidates.members
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
    made += [protected(a, candidates.numbers[a], most) for a, most in options.protect.items()]
    if options.match_duration is not None:
        seconds = candidates.numbers["duration"]
        made.append(matched("duration", seconds, options.match_duration, "s"))
    if options.match_loudness is not None:
        loudness = candidates.rulers()["loudness"]
        made.append(matched("loudness", loudness, options.match_loudness, "dB"))
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
    size = members.shape[1]
    may: Mask = np.broadcast_to(~np.eye(size, dtype=bool), (*members.shape, size))
    for constraint in made:
        may = may & constraint.allows(members[:, :, None], members[:, None, :])
        alone = ~(may.any(axis=2) | may.any(axis=1))
        ledger.drop(members[alone], f"no partner left ({constraint.reason})")
    return may
