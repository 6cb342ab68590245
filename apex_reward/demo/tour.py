"""The tour behind `apex-reward demo`: offline, on synthetic songs, with the model apex-tiny.

Shape key: T = samples, K = steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from numpy.typing import NDArray

from apex_reward.arena.agreement import evaluate_battles
from apex_reward.arena.battles import battles_of
from apex_reward.arena.report import evaluation_report
from apex_reward.arena.words import findings
from apex_reward.demo.damage import DAMAGES, SAMPLE_RATE, SEVERITIES, DamageScores, damage
from apex_reward.demo.songs import make_song
from apex_reward.files.tables import write_json, write_table
from apex_reward.model import ApexReward
from apex_reward.pairs.build import build, pair_rows
from apex_reward.pairs.candidates import read_candidates
from apex_reward.pairs.export import write_folder
from apex_reward.pairs.forms import SIDES
from apex_reward.pairs.options import PairOptions
from apex_reward.pairs.report import write_report
from apex_reward.report.charts import draw_curves
from apex_reward.rewards.reward import Reward
from apex_reward.scores.apex import AESTHETIC_HEADS
from apex_reward.scoring import ScoreSettings, score_songs

MODEL = "apex-tiny"
SUFFIX = "apex-tiny, a demonstration model"  # every picture names the model so
NOTE = (
    "apex-tiny is a demonstration model: small, trained on synthetic songs with made-up labels. "
    "It is not the published APEX, and its scores say nothing about real music."
)
SONG_SEEDS = (11, 23, 42)
SONG_SECONDS = 15.0
CLIMBED, CLIMB_SECONDS = ("noise", 2), 6.0  # the gradient steps start from this damage
STEP_SIZES = (0.003, *[0.2] * 16)  # RMS of the steps, as multiples of the RMS of the song
CLEAN = "clean"
BATTLES, SLOPE, SCORE = 400, 2.0, "musicality"
# Called with the name of a piece of work, and its numbers of finished and of all steps.
Update = Callable[[str, float, float], None]
Wave = NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the tour for a person to read: a text, and a table below it."""

    title: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()


def run_demo(output: str | Path, update: Update = lambda *_: None) -> Iterator[Section]:
    """Run the tour; each section is yielded when its work is done.

    The folder then has `audio/` (songs, damaged versions, the climbed song), `scores.jsonl` (a row
    per file as `apex-reward score` writes it, with `prompt_id` (the song), `damage`, `severity` and
    `model`), `damage.csv`, `damage.png`, `gold.png`, `gradient.csv`, `pairs/`, `arena/` and
    `summary.json`.

    Args:
        output: a folder; it is made if needed. Files of an earlier tour are replaced.
        update: called at the start of each piece of work and after each of its steps.
    """
    folder, started = Path(output), time.perf_counter()
    versions = make_audio(folder / "audio", update)
    yield Section(
        "Songs",
        f"{NOTE}\n\n{len(SONG_SEEDS)} synthetic songs of {SONG_SECONDS:.0f} s and "
        f"{len(versions) - len(SONG_SEEDS)} damaged versions are in {folder / 'audio'}.",
    )
    update("scoring", 0, len(versions))
    model = ApexReward.from_pretrained(MODEL)
    paths = [str(version["path"]) for version in versions]
    scored = score_songs(Reward(model, "aesthetics"), paths, settings=ScoreSettings(True))
    rows: list[Row] = []
    for row, version in zip(scored, versions, strict=True):
        rows.append({**row, **version, "model": f"{MODEL} (demonstration)"})
        update("scoring", len(rows), len(versions))
    write_table(folder / "scores.jsonl", rows)
    # The files are in the order of songs, damages and severities.
    means = np.array([np.mean([row[head] for head in AESTHETIC_HEADS]) for row in rows])
    scores = DamageScores.of_versions(means.reshape(len(SONG_SEEDS), -1))
    yield damage_section(folder, scores)
    yield gradient_section(folder, model, update)
    yield pairs_section(folder, rows)
    yield arena_section(folder, rows)
    overall = scores.table()[-1]
    seconds = round(time.perf_counter() - started, 1)
    figures = {name: overall[name] for name in ("pairs_won", "series_falling")}
    write_json(
        folder / "summary.json", {"model": MODEL, "note": NOTE, **figures, "seconds": seconds}
    )
    yield Section("Done", f"{seconds:.0f} s. Everything is in {folder}. Reminder: {NOTE}")


def make_audio(folder: Path, update: Update) -> list[Row]:
    """Write songs and damaged versions as FLAC; rows `path`, `prompt_id`, `damage`, `severity`."""
    kinds = [(CLEAN, 0), *((name, severity) for name in DAMAGES for severity in SEVERITIES)]
    versions: list[Row] = []
    for number, seed in enumerate(SONG_SEEDS, start=1):
        song = make_song(seed, SONG_SECONDS, SAMPLE_RATE)
        for name, severity in kinds:
            update("making songs", len(versions), len(SONG_SEEDS) * len(kinds))
            stem = f"{name.replace(' ', '-')}-{severity}" if severity else CLEAN
            path = folder / f"song-{number}" / f"{stem}.flac"
            write_flac(path, damage(song, name, severity, seed) if severity else song)
            version = {"prompt_id": f"song-{number}", "damage": name, "severity": severity}
            versions.append({"path": str(path), **version})
    update("making songs", len(versions), len(versions))
    return versions


def write_flac(path: Path, wave: Wave) -> None:
    """Write (T,) samples as 16-bit FLAC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, SAMPLE_RATE, "PCM_16")


def damage_section(folder: Path, scores: DamageScores) -> Section:
    """Does damage lower the scores? Writes `damage.csv` and `damage.png`."""
    table = scores.table()
    write_table(folder / "damage.csv", table)
    means = scores.values.mean(axis=0).T.tolist()  # versions by damages
    draw_curves(
        [{"step": step, **dict(zip(DAMAGES, row, strict=True))} for step, row in enumerate(means)],
        {"Damage lowers the score": DAMAGES[:4], "Four other kinds": DAMAGES[4:]},
        folder / "damage", f"mean of the aesthetic heads, 1 to 5 ({SUFFIX})", xlabel="severity",
    )  # fmt: skip
    return Section(
        "Scores: does damage lower them?",
        f"Every file is scored as by `apex-reward score --model {MODEL} --mix aesthetics`. The "
        "table shows how often the clean version wins, how often the score falls at every step of "
        "severity, and how far the mean of the aesthetic heads (1 to 5) drops at each severity.",
        ["damage", "clean won", "falls", "drop 1", "drop 2", "drop 3"],
        [
            [name, f"{won:.0%}", f"{falling:.0%}", *drops]
            for name, won, falling, *drops in (row.values() for row in table)
        ],
    )


@dataclass(frozen=True)
class Climb:
    """Gradient steps on the samples of a song.

    Attributes:
        song: (T,) after the last step.
        rewards: K + 1 rewards (the proxy), before the first step and after each one.
        gold: K + 1 shares in [0, 1] of the sound's energy that the clean song explains.
        predicted: rise of the first step by the gradient alone (gradient times change).
    """

    song: Wave
    rewards: list[float]
    gold: list[float]
    predicted: float


def climb(
    model: ApexReward,
    start: Wave,
    clean: Wave,
    sizes: Sequence[float] = STEP_SIZES,
    update: Update = lambda *_: None,
) -> Climb:
    """Raise the reward `aesthetics` of a song by normalised gradient steps on its samples.

    Args:
        start: (T,) samples in [-1, 1] at `SAMPLE_RATE`.
        clean: (T,) the song without damage. No step sees it.
        sizes: K lengths of steps: the RMS of each as a multiple of the RMS of `start`.
    """
    wave = torch.from_numpy(np.array(start, dtype=np.float32))[None]
    level = float(wave.square().mean().sqrt())
    rewards, gold, predicted = [], [], 0.0
    for step, size in enumerate([*sizes, 0.0]):
        update("gradient steps", step, len(sizes))
        wave.requires_grad_(True)
        reward = model.reward(wave, SAMPLE_RATE, mix="aesthetics").sum()
        (gradient,) = torch.autograd.grad(reward, wave)
        wave = wave.detach()
        rewards.append(reward.item())
        gold.append(float(np.corrcoef(clean, wave[0].numpy())[0, 1] ** 2))
        change = size * level * gradient / gradient.square().mean().sqrt().clamp_min(1e-20)
        moved = (wave + change).clamp(-1, 1)
        if step == 0:
            predicted = float((gradient * (moved - wave)).sum())
        wave = moved
    return Climb(wave[0].numpy(), rewards, gold, predicted)


def gradient_section(folder: Path, model: ApexReward, update: Update) -> Section:
    """Raise a score too far. Writes `gradient.csv`, `gold.png` and the sound."""
    song = make_song(SONG_SEEDS[0], min(CLIMB_SECONDS, SONG_SECONDS), SAMPLE_RATE)
    name, severity = CLIMBED
    start = damage(song, name, severity, SONG_SEEDS[0])
    result = climb(model, start, song, update=update)
    with torch.no_grad():
        clean = float(model.reward(torch.from_numpy(song)[None], SAMPLE_RATE, mix="aesthetics"))
    write_flac(folder / "audio" / "climbed.flac", result.song)
    steps = zip(result.rewards, result.gold, strict=True)
    rows = [{"step": n, "reward": reward, "gold": gold} for n, (reward, gold) in enumerate(steps)]
    write_table(folder / "gradient.csv", rows)
    draw_curves(
        [row | {"reward of the clean song": clean} for row in rows],
        {"The reward rises, the gold falls": ("reward", "gold", "reward of the clean song")},
        folder / "gold", f"gold: the clean song's share of the sound ({SUFFIX})",
        xlabel="gradient step",
    )  # fmt: skip
    return Section(
        "Gradient: raising a score too far",
        f"Gradient steps change the samples of song-1 with {name}. The first step is small: the "
        f"gradient predicts a rise of {result.predicted:+.4f}, and the reward rises by "
        f"{result.rewards[1] - result.rewards[0]:+.4f}. Each later step has {STEP_SIZES[-1]:.0%} "
        f"of the song's level. The reward (the proxy) rises from {result.rewards[0]:.2f} to "
        f"{result.rewards[-1]:.2f}; the clean song itself has {clean:.2f}. The clean song's share "
        f"of the sound (the gold, which no step sees) falls from {result.gold[0]:.0%} to "
        f"{result.gold[-1]:.0%}. The steps remove no noise: they add a sound that raises the "
        f"score. Listen to {folder / 'audio' / 'climbed.flac'}, and see {folder / 'gold.png'}.",
        ["step", "reward", "clean song's share"],
        [[row["step"], row["reward"], f"{row['gold']:.1%}"] for row in [rows[0], *rows[1::4]]],
    )


def pairs_section(folder: Path, rows: Sequence[Row]) -> Section:
    """Pair the versions of each song by `musicality`, and write `folder/pairs`."""
    candidates = [{**row, "audio": row["path"]} for row in rows]
    options = PairOptions("top-bottom", "musicality", top_k=3, max_pairs_per_candidate=1)
    result = build(read_candidates(candidates), options)
    counts = write_folder(result, folder / "pairs")
    write_report(result, folder / "pairs")
    widest = sorted(pair_rows(result), key=lambda pair: -pair["margin"])[:3]
    return Section(
        "Preference pairs from the scores",
        f"{counts['n_candidates']} versions of {counts['n_prompts']} songs -> {counts['n_pairs']} "
        "preference pairs on musicality: the best three versions of each song against its worst "
        "three. The table shows the widest margins. Listen to all pairs: "
        f"{folder / 'pairs' / 'report.html'}",
        ["song", "chosen", "rejected", "margin"],
        [
            [pair["prompt_id"], *(Path(pair[side]).name for side in SIDES), pair["margin"]]
            for pair in widest
        ],
    )


def arena_section(folder: Path, rows: Sequence[Row]) -> Section:
    """Simulate votes that follow a score with a known slope, and measure the agreement."""
    battles, best = simulated_votes(rows)
    metrics = evaluate_battles(battles_of(battles, scores=(SCORE, "coin")), bootstrap=500)
    target = folder / "arena"
    write_table(target / "battles.csv", battles)
    write_json(target / "metrics.json", metrics)
    evaluation_report(metrics, target)
    overall = metrics["scores"][SCORE]["overall"]
    low, high = overall["accuracy_ci95"]
    words = "\n".join(f"  {finding.text}" for finding in findings(metrics))
    return Section(
        "Arena: agreement with votes",
        f"{len(battles)} simulated votes follow {SCORE}; a coin is measured beside it.\n{words}\n"
        f"Known answer: {SCORE} is right on {best:.1%} of such votes. Measured: "
        f"{overall['accuracy']:.1%}, 95% interval {low:.1%} to {high:.1%}.\n"
        f"The report: {target / 'report.html'}",
    )


def simulated_votes(rows: Sequence[Row]) -> tuple[list[Row], float]:
    """Battles between random pairs of songs, and the expected accuracy of the score.

    P(A wins) = sigmoid(SLOPE * difference of the standardised scores); `coin` is random.
    """
    rng = np.random.default_rng(0)
    usable = [row for row in rows if row.get(SCORE) is not None]
    value = np.array([float(row[SCORE]) for row in usable])
    names = np.array([Path(row["path"]).name for row in usable])
    pairs = np.array([rng.choice(len(usable), 2, replace=False) for _ in range(BATTLES)])
    difference = SLOPE * (value[pairs[:, 0]] - value[pairs[:, 1]]) / (value.std() or 1.0)
    chance = 1 / (1 + np.exp(-difference))
    battles = pd.DataFrame({"battle_uuid": [f"simulated-{n:03d}" for n in range(BATTLES)]})
    battles["preference"] = np.where(rng.random(BATTLES) < chance, "A", "B")
    coin = rng.random((BATTLES, 2))
    for side, at, tossed in zip("ab", pairs.T, coin.T, strict=True):
        battles[f"audio_{side}"] = names[at]
        battles[f"{SCORE}_{side}"], battles[f"coin_{side}"] = value[at], tossed
    right = np.where(difference == 0, 0.5, np.maximum(chance, 1 - chance)).mean()
    return battles.to_dict("records"), float(right)
