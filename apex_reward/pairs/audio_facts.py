"""What only the audio files know: whether they can be read, how long and loud, which are the same.

Files that are not there (scored on another machine, say) are left alone: nothing is known of them.

Shape key: N = candidates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from apex_reward.audio.decoding import SoundFacts, sound_facts
from apex_reward.audio.load import load_audio
from apex_reward.errors import AudioError
from apex_reward.pairs.axes import Floats
from apex_reward.pairs.candidates import Candidates
from apex_reward.pairs.ledger import Ledger
from apex_reward.rewards.load import default_workers

THREADS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FileFacts:
    """Length of one readable file: frames, rate in Hz, channels; or why it cannot be read."""

    frames: int = 0
    sample_rate: int = 1
    channels: int = 0
    error: str = ""


def song_file(audio: str, folder: Path | None) -> Path | None:
    """The file of a candidate, from the working directory or else from `folder`; None if absent."""
    if os.path.isfile(audio):
        return Path(audio)
    if folder is not None and os.path.isfile(os.path.join(folder, audio)):
        return folder / audio
    return None


def check_audio(
    candidates: Candidates, ledger: Ledger, folder: Path | None, *, loudness: bool, duration: bool
) -> Candidates:
    """Drop unreadable and duplicate audio; fill in what is missing of durations and loudness.

    Args:
        candidates: in canonical order; of equal songs of one prompt the first stays.
        ledger: gets the drops; candidates already dropped are not looked at.
        folder: where relative paths are tried next to the working directory.
        loudness: whether loudness is needed; where the table has none it is measured, and a
            candidate that cannot be measured is dropped.
        duration: whether durations are needed; a candidate without one is dropped.

    Returns:
        The candidates with `duration` and `loudness` filled in as far as they are known.
    """
    audio = candidates.table["audio"].to_pylist()
    files = [(i, song_file(audio[i], folder)) for i in np.flatnonzero(ledger.open).tolist()]
    present = [(i, path) for i, path in files if path is not None]
    facts = _facts_of(present)
    for position, fact in facts.items():
        if fact.error:
            ledger.drop_one(position, f"unreadable audio: {fact.error}")
    readable = [(i, path) for i, path in present if not facts[i].error]
    _drop_same_sound(candidates, ledger, readable, facts, audio)

    seconds = candidates.duration.copy()
    for i, _ in readable:
        if np.isnan(seconds[i]):
            seconds[i] = facts[i].frames / facts[i].sample_rate
    if duration:
        ledger.drop(~np.isfinite(seconds), "no duration")
    loud = candidates.loudness
    if loudness:
        loud = _measured(candidates, ledger, readable)
        ledger.drop(~np.isfinite(loud), "no loudness")
    return replace(candidates, duration=seconds, loudness=loud)


def _facts_of(files: list[tuple[int, Path]]) -> dict[int, FileFacts]:
    """From the headers where libsndfile knows the format, else by decoding."""
    facts = dict(_in_threads(_header_facts, files))
    unknown = [(i, path) for i, path in files if facts[i] is None]
    heard = {
        i: FileFacts(error=sound.error or "")
        if sound.facts is None
        else FileFacts(sound.facts.samples, sound.facts.sample_rate, sound.facts.channels)
        for i, sound in _sounds(unknown)
    }
    return {i: heard[i] if fact is None else fact for i, fact in facts.items()}


def _header_facts(path: Path) -> FileFacts | None:
    import soundfile

    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError):
        return None
    known = 0 < info.frames < 1 << 40
    return FileFacts(info.frames, info.samplerate, info.channels) if known else None


def _sounds(files: list[tuple[int, Path]]) -> Iterator[tuple[int, SoundFacts]]:
    """(position, what was heard) in the order of `files`, decoded in processes of their own."""
    workers = min(default_workers(), len(files))
    heard = sound_facts([str(path) for _, path in files], workers)
    yield from zip((i for i, _ in files), heard, strict=True)


def _drop_same_sound(
    candidates: Candidates,
    ledger: Ledger,
    readable: list[tuple[int, Path]],
    facts: dict[int, FileFacts],
    audio: list[str],
) -> None:
    """Decode and compare only songs of one prompt with the same length, rate and channels."""
    alike: dict[tuple[int, FileFacts], list[tuple[int, Path]]] = {}
    for i, path in readable:
        alike.setdefault((int(candidates.prompt[i]), facts[i]), []).append((i, path))
    suspects = [file for files in alike.values() if len(files) > 1 for file in files]
    first: dict[tuple[int, str], int] = {}
    for i, sound in _sounds(suspects):
        if sound.facts is None:
            ledger.drop_one(i, f"unreadable audio: {sound.error}")
            continue
        same = first.setdefault((int(candidates.prompt[i]), sound.facts.digest), i)
        if same != i:
            ledger.drop_one(i, f"duplicate audio: sounds the same as {audio[same]}")


def _measured(candidates: Candidates, ledger: Ledger, readable: list[tuple[int, Path]]) -> Floats:
    loud, still = candidates.loudness.copy(), ledger.open
    missing = [(i, path) for i, path in readable if np.isnan(loud[i]) and still[i]]
    for i, value in _in_threads(_loudness, missing):
        if isinstance(value, str):
            ledger.drop_one(i, f"unreadable audio: {value}")
        else:
            loud[i] = value
    return loud


def _loudness(path: Path) -> float | str:
    """Integrated loudness in LUFS, or why the file cannot be decoded."""
    import torch

    from apex_reward.audio.loudness import integrated_loudness

    try:
        waveform = load_audio(path)
    except AudioError as error:
        return str(error)
    return float(
        integrated_loudness(torch.from_numpy(waveform.samples)[None], waveform.sample_rate)
    )


def _in_threads(
    function: Callable[[Path], Result], files: Iterable[tuple[int, Path]]
) -> Iterator[tuple[int, Result]]:
    """(position, function(path)) in the order of `files`; decoding releases the interpreter."""
    items = list(files)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(items), 1024):
            block = items[start : start + 1024]
            for (position, _), result in zip(
                block, pool.map(function, [path for _, path in block]), strict=True
            ):
                yield position, result
