"""The tour behind `apex-reward demo`: offline, on synthetic songs, with the model apex-tiny."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_reward.demo.climb import Climb, climb
from apex_reward.demo.damage import DAMAGES, SAMPLE_RATE, SEVERITIES, damage
from apex_reward.demo.evaluate import DamageScores
from apex_reward.demo.songs import make_song
from apex_reward.files.tables import write_json, write_table
from apex_reward.scores.apex import AESTHETIC_HEADS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apex_reward.model import ApexReward

MODEL = "apex-tiny"
NOTE = (
    "apex-tiny is a demonstration model: small, trained on synthetic songs with made-up labels. "
    "It is not the published APEX, and its scores say nothing about real music."
)
SONG_SEEDS = (11, 23, 42)
SONG_SECONDS = 15.0
CLIMBED = ("noise", 2)  # the damaged version that the gradient steps start from
CLEAN = "clean"


@dataclass(frozen=True)
class Section:
    """A part of the tour for a person to read: a text and, below it, a table."""

    title: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()


def run_demo(
    output: str | Path, on_scored: Callable[[int, int], None] | None = None
) -> Iterator[Section]:
    """Go through the tour, yielding each section when its work is done.

    Leaves in `output`: `audio/` (songs, damaged versions, the climbed song), `scores.jsonl` (a row
    per file as `apex-reward score` writes it, with `prompt_id` (the song), `damage`, `severity` and
    `model`),
    `damage.csv`, `damage.png`, `gradient.png`, `summary.json`, and what the later steps write
    (`gold.png`, `pairs/`, `arena/`).

    Args:
        output: a folder; made where it is not there, files of an earlier tour are replaced.
        on_scored: called after every scored file with the numbers done and to do.
    """
    from apex_reward.demo.steps import STEPS
    from apex_reward.model import ApexReward

    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    versions = make_audio(folder / "audio")
    yield Section(
        "Songs",
        f"{NOTE}\n\n{len(SONG_SEEDS)} synthetic songs of {SONG_SECONDS:.0f} s and "
        f"{len(versions) - len(SONG_SEEDS)} damaged versions are in {folder / 'audio'}.",
    )
    model = ApexReward.from_pretrained(MODEL)
    rows = []
    for row in score_versions(model, versions):
        rows.append(row)
        if on_scored:
            on_scored(len(rows), len(versions))
    write_table(folder / "scores.jsonl", rows)
    scores = damage_scores(rows)
    yield _damage_section(folder, scores)
    yield _gradient_section(folder, model)
    paths = [Path(str(row["path"])) for row in rows]
    for title, step in STEPS:
        yield Section(title, step(folder, paths, rows))
    table = scores.table()
    seconds = round(time.perf_counter() - started, 1)
    write_json(
        folder / "summary.json",
        {
            "model": MODEL,
            "note": NOTE,
            "pairs_won": table[-1]["pairs_won"],
            "series_falling": table[-1]["series_falling"],
            "seconds": seconds,
        },
    )
    yield Section("Done", f"{seconds:.0f} s. Everything is in {folder}. Reminder: {NOTE}")


def make_audio(folder: Path) -> list[dict[str, Any]]:
    """Write songs and damaged versions as FLAC; rows `path`, `prompt_id`, `damage`, `severity`."""
    versions = []
    for number, seed in enumerate(SONG_SEEDS, start=1):
        song = make_song(seed, SONG_SECONDS, SAMPLE_RATE)
        for name, severity in [(CLEAN, 0), *((d, s) for d in DAMAGES for s in SEVERITIES)]:
            stem = f"{name.replace(' ', '-')}-{severity}" if severity else CLEAN
            path = folder / f"song-{number}" / f"{stem}.flac"
            wave = damage(song, name, severity, seed, SAMPLE_RATE) if severity else song
            _write_flac(path, wave)
            version = {"prompt_id": f"song-{number}", "damage": name, "severity": severity}
            versions.append({"path": str(path), **version})
    return versions


def score_versions(model: ApexReward, versions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of `score --mix aesthetics --members` with what each file is, and the model's name."""
    from apex_reward.rewards.reward import Reward
    from apex_reward.scoring import ScoreSettings, score_songs

    paths = [str(version["path"]) for version in versions]
    reward = Reward(model, "aesthetics")
    scored = score_songs(reward, paths, settings=ScoreSettings(rewarded=True, members=True))
    named = {"model": f"{MODEL} (demonstration)"}
    for row, version in zip(scored, versions, strict=True):
        yield {**row, **version, **named}


def damage_scores(rows: list[dict[str, Any]]) -> DamageScores:
    """The mean of the aesthetic heads by song, damage and severity."""
    mean = {
        (row["prompt_id"], row["damage"], row["severity"]): np.mean(
            [row[h] for h in AESTHETIC_HEADS]
        )
        for row in rows
    }
    songs = list(dict.fromkeys(row["prompt_id"] for row in rows))
    values = [
        [[mean[song, CLEAN, 0], *(mean[song, name, s] for s in SEVERITIES)] for name in DAMAGES]
        for song in songs
    ]
    return DamageScores(np.array(values))


def _damage_section(folder: Path, scores: DamageScores) -> Section:
    from apex_reward.demo.plots import plot_damage

    table = scores.table()
    write_table(folder / "damage.csv", table)
    plot_damage(folder / "damage.png", scores)
    rows = [
        [row["damage"], f"{row['pairs_won']:.0%}", f"{row['series_falling']:.0%}"]
        + [float(row[f"drop_{s}"]) for s in SEVERITIES]
        for row in table
    ]
    return Section(
        "Scores: does damage lower them?",
        f"Every file was scored as by `apex-reward score --model {MODEL} --mix aesthetics`. Below: "
        "how often the clean version won, how often the score falls at every step, and how far the "
        "mean of the aesthetic heads (1 to 5) drops at severity 1, 2 and 3.",
        ["damage", "clean won", "falls", "drop 1", "drop 2", "drop 3"],
        rows,
    )


def _gradient_section(folder: Path, model: ApexReward) -> Section:
    from apex_reward.demo.plots import plot_climb

    song = make_song(SONG_SEEDS[0], SONG_SECONDS, SAMPLE_RATE)
    name, severity = CLIMBED
    start = damage(song, name, severity, SONG_SEEDS[0], SAMPLE_RATE)
    result = climb(model, start, SAMPLE_RATE)
    _write_flac(folder / "audio" / "climbed.flac", result.song)
    plot_climb(folder / "gradient.png", start, result, SAMPLE_RATE)
    rises = np.diff(result.rewards)
    rows = [
        [step, reward, float(rises[step - 1]) if step else None]
        for step, reward in enumerate(result.rewards)
    ]
    return Section(
        "Gradient: raising a score through the waveform",
        f"Gradient steps on the samples of song-1 with {name}, each 50 dB below the song. For "
        f"the first step the gradient promised {result.predicted:+.4f} and {rises[0]:+.4f} came. "
        f"The sum of all steps lies {_below(start, result):.0f} dB below the song. A reward that "
        f"is followed blindly gets gamed: the clean song's share of the sound was "
        f"{_share(song, start):.2%} and is {_share(song, result.song):.2%}.",
        ["step", "reward", "rise"],
        rows,
    )


def _below(start: NDArray[np.float32], result: Climb) -> float:
    change = np.square(result.song - start).mean()
    return float(10 * np.log10(np.square(start).mean() / max(float(change), 1e-20)))


def _share(clean: NDArray[np.float32], wave: NDArray[np.float32]) -> float:
    """The part of a sound's energy that the clean song explains, in [0, 1]."""
    return float(np.corrcoef(clean, wave)[0, 1] ** 2)


def _write_flac(path: Path, wave: NDArray[np.float32]) -> None:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, SAMPLE_RATE, "PCM_16")
