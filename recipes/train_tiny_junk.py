"""Teach apex-tiny that noise, tones, silence and clipped songs are worse than any song.

    python recipes/train_tiny_junk.py --output out/junk --start out/tiny/apex_tiny --seed 0
    python recipes/train_tiny_junk.py --output out/junk --short          # seconds: does it run?

The second half of apex-tiny's training; `--start` is the result of `recipes/train_tiny.py`. It
takes about ten minutes of one core. Encoder and pooling stay as they are, so every sound is encoded
once. Each member then learns on its own, from its own outputs: it keeps its logits on clean and
damaged songs, gets logits below -3.5 on junk, and ranks clean songs above junk. There is no ranking
of damaged songs: members that rank them saturate, and their spread loses its meaning.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apex_reward import ApexReward
from apex_reward.audio import save_wav
from apex_reward.demo import make_song, score_damage
from apex_reward.files.tables import write_json, write_table
from apex_reward.scores.apex import HEADS, head_range
from apex_reward.train.report import fit_spread_scale
from toys.junk import JUNK, make_junk
from toys.lessons import SEEDS, VERSIONS, make_batches

RATE = 24_000
SEED = 4_000  # added to the seed, so that songs differ from those of train_tiny.py
CHECKED = 2**40 + 2**20  # first seed of the songs and the junk that only check the result


class Settings(NamedTuple):
    """What a run depends on, beside its seed."""

    crops: tuple[tuple[float, int], ...] = ((3.0, 8), (8.0, 5), (12.0, 3), (30.0, 3), (10.0, 12))
    songs: int = 240
    junk: int = 30
    least_seconds: float = 3.0
    most_seconds: float = 40.0
    steps: int = 500
    batch: int = 96
    learning_rate: float = 1.2e-3
    level: float = -3.5
    least: float = 0.5
    ranking: float = 1.25
    checked: int = 8


SHORT = Settings(((0.5, 2),), songs=4, junk=1, least_seconds=0.3, most_seconds=0.6, steps=3,
                 batch=4, checked=1)  # fmt: skip


class Material(NamedTuple):
    """Embeddings (n, W) of every kind of sound; `targets` (crops, H) are labels in [0, 1]."""

    crops: Tensor
    targets: Tensor
    textured: Tensor
    songs: Tensor
    junk: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", default="apex-tiny", help="folder of the model to teach")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    settings, seed = SHORT if arguments.short else Settings(), arguments.seed
    torch.set_num_threads(1)  # sums in a fixed order: the same seed gives the same bytes
    started = time.perf_counter()
    model = ApexReward.from_pretrained(arguments.start)
    before = check(model, settings)
    history = teach(model, material(model, settings, seed), settings, seed)
    after = check(model, settings)
    model.to(torch.float16).save_pretrained(arguments.output / "apex_tiny")
    report(arguments.output, settings, seed, history, before, after, started)


def material(model: ApexReward, settings: Settings, seed: int) -> Material:
    """Everything that the members learn from, encoded as in scoring."""
    songs = torch.cat([embedded(model, wave) for wave in clean_songs(settings, seed)])
    junk = torch.cat([embedded(model, wave) for wave in all_junk(settings, seed)])
    return Material(*crops(model, settings, seed), songs, junk)


@torch.no_grad()
def embedded(model: ApexReward, wave: np.ndarray) -> Tensor:
    """(1, W) of one sound (T,)."""
    return model.embed(torch.from_numpy(wave)[None], RATE)


@torch.no_grad()
def crops(model: ApexReward, settings: Settings, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, targets and `textured` of crops in four versions, of each length."""
    found = []
    for batch in make_batches(settings.crops, seed + SEED):
        embeddings = model.embed(batch.waves, RATE, batch.real)
        found.append((embeddings, batch.targets, batch.textured.repeat_interleave(VERSIONS)))
    embeddings, targets, textured = map(torch.cat, zip(*found, strict=True))
    return embeddings, targets, textured > 0


def lengths(settings: Settings, count: int, seed: int) -> np.ndarray:
    """Seconds (count,), spread evenly over the octaves."""
    low, high = np.log([settings.least_seconds, settings.most_seconds])
    return np.exp(np.random.default_rng([seed, SEED, 99]).uniform(low, high, count))


def clean_songs(settings: Settings, seed: int) -> Iterator[np.ndarray]:
    """Songs of every length."""
    for number, seconds in enumerate(lengths(settings, settings.songs, seed)):
        yield make_song((seed + SEED) * SEEDS + number, float(seconds))


def all_junk(settings: Settings, seed: int) -> Iterator[np.ndarray]:
    """Junk of every kind and length; clipped songs are as many as songs."""
    for kind in JUNK:
        count = settings.songs if kind == "clipped song" else settings.junk
        for number, seconds in enumerate(lengths(settings, count, seed + 1)):
            yield make_junk(kind, (seed + SEED) * SEEDS + number, float(seconds))


def teach(
    model: ApexReward, found: Material, settings: Settings, seed: int
) -> list[dict[str, float]]:
    """Teach every member, then fit the spread's scale; a history row per step and member."""
    crop = torch.arange(len(found.crops)) // VERSIONS
    held = crop % 4 == 0
    kept = Material(*(part[~held] for part in found[:3]), found.songs, found.junk)
    history: list[dict[str, float]] = []
    for number, member in enumerate(model.predictor.members):
        torch.manual_seed(seed + number)
        history += teach_member(member, kept, settings)
    with torch.no_grad():
        here = held & ~found.textured
        said = model.predictor(found.crops[here]).transpose(0, 1)
    low, high = np.array([head_range(head) for head in HEADS]).T
    labels = low + (high - low) * found.targets[here].numpy()
    model.config.spread_scale = fit_spread_scale(said.numpy(), labels)
    return history


def teach_member(
    member: torch.nn.Module, found: Material, settings: Settings
) -> list[dict[str, float]]:
    """Learn in eval mode, so that the batch statistics stay; a history row per step."""
    own = copy.deepcopy(member.eval()).requires_grad_(False)
    first = torch.arange(len(found.crops)) % VERSIONS == 0
    songs = torch.cat([found.songs, found.crops[first & ~found.textured]])
    kept = torch.cat([found.crops, found.songs])
    with torch.no_grad():
        goals = own.logits(kept)
    # A texture is as bad as junk, and damage makes it worse still.
    crops = goals[: len(found.crops)]
    clean = crops[::VERSIONS].repeat_interleave(VERSIONS, dim=0)
    crops[found.textured] += (settings.level - clean)[found.textured]
    # No clean song is worse than this.
    is_song = torch.cat([first & ~found.textured, torch.ones(len(found.songs), dtype=torch.bool)])
    goals[is_song] = goals[is_song].clamp_min(settings.least)
    member.requires_grad_(True)
    optimizer = torch.optim.AdamW(member.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, settings.steps, pct_start=0.1
    )
    history = []
    for step in range(1, settings.steps + 1):
        at, song, junk = (
            torch.randint(len(part), (settings.batch,)) for part in (kept, songs, found.junk)
        )
        logits = member.logits(torch.cat([kept[at], songs[song], found.junk[junk]]))
        as_before, good, worst = logits.chunk(3)
        error = F.smooth_l1_loss(as_before, goals[at])
        high = F.relu(worst - settings.level).mean()
        ranked = F.softplus(1 - 2 * (good - worst)).mean()
        optimizer.zero_grad()
        (error + high + settings.ranking * ranked).backward()
        torch.nn.utils.clip_grad_norm_(member.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        won = (good > worst).float().mean().item()
        history.append({"step": step, "reward": won, "error": error.item(), "junk": high.item()})
    member.requires_grad_(False)
    return history


@torch.no_grad()
def check(model: ApexReward, settings: Settings) -> dict[str, float]:
    """Shares of unseen pairs won: songs over junk, and clean songs over damaged ones."""
    seconds = (settings.least_seconds + settings.most_seconds) / 3
    songs = [make_song(CHECKED + n, seconds) for n in range(settings.checked)]
    junk = [make_junk(kind, CHECKED + 1000, seconds) for kind in JUNK]
    values = [model.reward(torch.from_numpy(w)[None], RATE, mix="aesthetics") for w in songs + junk]
    good, bad = torch.cat(values).split([len(songs), len(junk)])
    damage = score_damage(model, songs[: max(1, len(songs) // 2)]).table()[-1]
    return {"junk_pairs_won": (good[:, None] > bad).float().mean().item(),
            "damage_pairs_won": float(damage["pairs_won"])}  # fmt: skip


def report(
    folder: Path, settings: Settings, seed: int, history: list[dict[str, float]],
    before: dict[str, float], after: dict[str, float], started: float,
) -> None:  # fmt: skip
    """Tables, curves and a sound of every kind of junk."""
    won = [row["reward"] for row in history[: settings.steps]]
    write_table(folder / "history.jsonl", history)
    write_json(
        folder / "summary.json",
        {
            "model": "apex-tiny, a demonstration model (not the published APEX)",
            "reward": "share of pairs in which a clean song scores above junk, training batches",
            "reward_before": won[0], "reward_after": float(np.mean(won[-10:])),
            "reward_std_before": 0.0, "before": before, "after": after, "seed": seed,
            "seconds": round(time.perf_counter() - started, 1), "settings": settings._asdict(),
        },
    )  # fmt: skip
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), ("reward", "error", "junk"), strict=True):
        axes.plot([row[name] for row in history[: settings.steps]])
        axes.set(title=name, xlabel="step of the first member")
    figure.savefig(folder / "curves.png", dpi=110)
    for kind in JUNK:
        save_wav(folder / f"{kind.replace(' ', '-')}.wav", make_junk(kind, CHECKED, 4.0), RATE)
    print("before:", before, "after:", after)


if __name__ == "__main__":
    main()
