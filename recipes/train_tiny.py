"""Train apex-tiny, the demonstration model, from nothing but synthetic songs.

    python recipes/train_tiny.py --output out/tiny --seed 0            # 25 to 35 minutes, one core
    python recipes/train_tiny.py --output out/tiny --seed 0 --short    # seconds: does it run?
    python recipes/train_tiny.py --output out/tiny --start FOLDER      # minutes: members alone

The default settings and seed 0 made the embedded checkpoint. It runs on one thread, so that a seed
gives the same bytes again on the same kind of processor. Every training batch holds one song per
kind of damage in four versions (clean and three severities); the heads learn made-up labels that
fall with severity, and a ranking loss asks each version to score below the one before it. Along one
direction of the embedding clean songs are asked to lie at 0 and plain noise at 1, so that noise is
far from what songs are like (outlier exposure, Hendrycks et al. 2019, arXiv 1812.04606). The model
is then made an ensemble: further predictors on the finished encoder and pooling, each with a start
and a bootstrap draw of recordings of its own. No real song and no human label is used.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from apex_reward import ApexConfig, ApexReward
from apex_reward.audio import save_wav
from apex_reward.demo import DAMAGES, damage, make_song, score_damage
from apex_reward.files.tables import write_json, write_table
from apex_reward.scores.apex import HEADS, head_range
from apex_reward.train.report import fit_familiarity, fit_spread_scale
from toys.lessons import SEEDS, VERSIONS, apart, losses, make_batch, make_material

RATE = 24_000
WHOLE, MEMBERS, FAMILIAR = 1_000, 2_000, 3_000  # added to the seed for later songs


class Settings(NamedTuple):
    """What a run depends on, beside its seed."""

    steps: int = 450
    songs: int = 400
    textures: int = 64
    song_seconds: float = 10.0
    crop_seconds: float = 3.0
    segment_seconds: float = 30.0
    texture_share: float = 0.15
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    ranking: float = 1.0
    apart: float = 3.0
    whole_songs: int = 48
    whole_batches: int = 16
    whole_passes: int = 24
    members: int = 8
    member_batches: int = 40
    member_whole_batches: int = 4
    member_passes: int = 8
    familiar_songs: int = 480
    familiar_seconds: tuple[float, ...] = (4.0, 8.0, 12.0, 30.0, 60.0)
    checked_songs: int = 6
    checked_seconds: float = 20.0


SHORT = Settings(
    steps=4, songs=4, textures=2, song_seconds=4.0, crop_seconds=1.0, segment_seconds=2.0,
    whole_songs=2, whole_batches=1, whole_passes=2, member_batches=1, member_whole_batches=2,
    member_passes=1, familiar_songs=100, familiar_seconds=(0.2, 0.4, 0.6), checked_songs=1,
    checked_seconds=3.0,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--start", type=Path, help="a model that only lacks the members")
    arguments = parser.parse_args()
    settings = SHORT if arguments.short else Settings()
    torch.set_num_threads(1)  # sums in a fixed order: the same seed gives the same bytes
    started = time.perf_counter()
    start, history = arguments.start, []
    if start is None:
        model, history = train(settings, arguments.seed)
        start = arguments.output / "single"
        save(model, start)
    ensemble = add_members(ApexReward.from_pretrained(start), settings, arguments.seed, history)
    save(ensemble, arguments.output / "apex_tiny")
    report(arguments.output, settings, arguments.seed, history, started)


def train(settings: Settings, seed: int) -> tuple[ApexReward, list[dict[str, float]]]:
    """The trained model and a history row per step."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = build_model(settings.segment_seconds)
    history = train_crops(model, rng, settings, seed)
    return model, history + train_whole(model, rng, settings, seed, len(history))


def train_crops(
    model: ApexReward, rng: np.random.Generator, settings: Settings, seed: int
) -> list[dict[str, float]]:
    """First stage: the whole model, end to end, on short crops."""
    songs, textures = make_material(settings.songs, settings.textures, settings.song_seconds, seed)
    model.requires_grad_(True)
    direction = torch.nn.Linear(model.config.width, 1)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *direction.parameters()], settings.learning_rate, betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, settings.steps, pct_start=0.1
    )
    history = []
    for step in range(1, settings.steps + 1):
        batch = make_batch(rng, songs, textures, settings.crop_seconds, settings.texture_share)
        with torch.autocast("cpu", torch.bfloat16):
            layers = model.encoder(batch.waves, batch.real)
        error = apart(model.pooling(layers)[::VERSIONS], batch.textured, direction)
        penalty = settings.apart * error
        row = learn(model, optimizer, layers, batch.targets, settings.ranking, penalty)
        row["apart"] = error.item()
        schedule.step()
        history.append({"step": step, **row})
        if step % 25 == 0:
            print(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    return history


def train_whole(
    model: ApexReward, rng: np.random.Generator, settings: Settings, seed: int, done: int
) -> list[dict[str, float]]:
    """Second stage: pooling and predictor go on with whole segments, cut as in scoring."""
    seconds = model.config.segment_seconds
    songs, textures = make_material(
        settings.whole_songs, settings.whole_songs // 4 + 1, 1.3 * seconds, seed + WHOLE
    )
    batches = []
    for _ in range(settings.whole_batches):
        batch = make_batch(rng, songs, textures, seconds, settings.texture_share)
        with torch.no_grad():
            layers = model.encode_segments(batch.waves, batch.real)
        batches.append((layers, batch.targets))
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [*model.pooling.parameters(), *model.predictor.parameters()], settings.learning_rate / 3
    )
    history = []
    for _ in range(settings.whole_passes):
        for number in rng.permutation(len(batches)):
            row = learn(model, optimizer, *batches[number], settings.ranking)
            history.append({"step": done + len(history) + 1, **row})
    return history


def add_members(
    single: ApexReward, settings: Settings, seed: int, history: list[dict[str, float]]
) -> ApexReward:
    """Third stage: the model as an ensemble whose first member is its own predictor."""
    crops = member_material(single, settings, seed, whole=False)
    whole = member_material(single, settings, seed, whole=True)
    held = len(whole[0]) // settings.member_whole_batches  # recordings, for the spread's scale
    members = [single.predictor]
    for number in range(1, settings.members):
        torch.manual_seed(seed + number)
        rng = np.random.default_rng([seed, number])
        members.append(type(single)(single.config).predictor)
        stages = ((crops, 1.0, 1), (tuple(part[held:] for part in whole), 1 / 3, 2))
        for (embeddings, targets), pace, times in stages:
            drawn = rng.integers(len(embeddings), size=len(embeddings))
            optimizer = torch.optim.AdamW(members[-1].parameters(), pace * settings.learning_rate)
            passes = range(times * settings.member_passes)
            for batch in [b for _ in passes for b in batches_of(rng.permutation(drawn))]:
                logits = members[-1].train().logits(embeddings[batch].flatten(0, 1))
                loss, row = losses(logits, targets[batch].flatten(0, 1), settings.ranking)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(members[-1].parameters(), 1.0)
                optimizer.step()
                history.append({"step": len(history) + 1, **row})
    return assembled(single, members, settings, seed, tuple(part[:held] for part in whole))


def member_material(
    model: ApexReward, settings: Settings, seed: int, whole: bool
) -> tuple[Tensor, Tensor]:
    """Embeddings (N, 4, W) and targets (N, 4, 7) of recordings in four versions each."""
    seconds = model.config.segment_seconds if whole else settings.crop_seconds
    batches = settings.member_whole_batches if whole else settings.member_batches
    rng = np.random.default_rng([seed, MEMBERS, int(whole)])
    count = max(2, 3 * batches if whole else batches)
    length = 1.3 * seconds if whole else settings.song_seconds
    songs, textures = make_material(count, count // 4 + 1, length, seed + MEMBERS + int(whole))
    encode = model.encode_segments if whole else model.encoder
    found = []
    for _ in range(batches):
        batch = make_batch(rng, songs, textures, seconds, settings.texture_share)
        with torch.no_grad():
            found.append((model.pool(encode(batch.waves, batch.real)), batch.targets))
    embeddings, targets = map(torch.cat, zip(*found, strict=True))
    return embeddings.unflatten(0, (-1, VERSIONS)), targets.unflatten(0, (-1, VERSIONS))


def batches_of(rows: np.ndarray) -> list[np.ndarray]:
    """Rows in batches of eight recordings, as in the other stages."""
    return np.array_split(rows, max(1, len(rows) // len(DAMAGES)))


@torch.no_grad()
def assembled(
    single: ApexReward, members: list[torch.nn.Module], settings: Settings, seed: int,
    held_out: tuple[Tensor, Tensor],
) -> ApexReward:  # fmt: skip
    """The ensemble, with its spread's scale and the statistics of familiar songs."""
    config = ApexConfig.from_dict(single.config.to_dict())
    config.members = len(members)
    embeddings, targets = (part.flatten(0, 1) for part in held_out)
    said = torch.stack([member.eval()(embeddings) for member in members], dim=1)
    low, high = np.array([head_range(head) for head in HEADS]).T
    config.spread_scale = fit_spread_scale(said.numpy(), low + (high - low) * targets.numpy())
    songs = []
    for number in range(settings.familiar_songs):
        seconds = settings.familiar_seconds[number % len(settings.familiar_seconds)]
        song = make_song((seed + FAMILIAR) * SEEDS + number, seconds)
        songs.append(single.embed(torch.from_numpy(song)[None], RATE)[0].numpy())
    familiar = fit_familiarity(np.stack(songs))
    config.familiar = familiar is not None
    model = ApexReward(config)
    model.encoder.load_state_dict(single.encoder.state_dict())
    model.pooling.load_state_dict(single.pooling.state_dict())
    for ours, theirs in zip(model.predictor.members, members, strict=True):
        ours.load_state_dict(theirs.state_dict())
    if familiar is not None:
        model.familiar.load_state_dict(familiar.state_dict())
    return model


def learn(
    model: ApexReward, optimizer: torch.optim.Optimizer, layers: Tensor, targets: Tensor,
    ranking: float, penalty: Tensor | float = 0.0,
) -> dict[str, float]:  # fmt: skip
    """One step from layer embeddings (N, 4, W), with batch statistics in the predictor.

    Args:
        penalty: what is added to the loss.
    """
    model.predictor.train()
    logits = model.predictor.logits(model.pooling(layers))
    model.predictor.eval()
    loss, row = losses(logits, targets, ranking)
    optimizer.zero_grad()
    (loss + penalty).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return row


def build_model(segment_seconds: float) -> ApexReward:
    """APEX's architecture, narrower in every part."""
    encoder = {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "conv_dim": [32, 32, 48, 64, 96, 96, 96],
        "num_conv_pos_embeddings": 32,
        "num_conv_pos_embedding_groups": 8,
    }
    return ApexReward(
        ApexConfig(
            encoder=encoder, encoder_name="apex-tiny", layers=(1, 2, 3, 4), trunk_widths=(64, 48),
            head_widths=(32, 16), trunk_dropout=0.1, head_dropout=0.05,
            segment_seconds=segment_seconds, segment_tail="mask", demonstration=True,
        )
    )  # fmt: skip


def save(model: ApexReward, folder: Path) -> None:
    """Half-precision weights, half the size; they are loaded as float32."""
    model.to(torch.float16).save_pretrained(folder)


def report(
    folder: Path, settings: Settings, seed: int, history: list[dict[str, float]], started: float
) -> None:
    """Check the saved model on unseen synthetic songs; write tables, curves and audio."""
    model = ApexReward.from_pretrained(folder / "apex_tiny")
    songs = [make_song(2**40 + i, settings.checked_seconds) for i in range(settings.checked_songs)]
    table = score_damage(model, songs).table()
    margins = [row["reward"] for row in history]
    write_table(folder / "history.jsonl", history)
    write_table(folder / "damage.csv", table)
    write_json(
        folder / "summary.json",
        {
            "model": "apex-tiny, a demonstration model (not the published APEX)",
            "reward": "clean minus damaged, mean of the aesthetic heads, training batches",
            "reward_before": float(np.mean(margins[:10])),
            "reward_after": float(np.mean(margins[-10:])),
            "reward_std_before": float(np.std(margins[:10])),
            "pairs_won": table[-1]["pairs_won"],
            "series_falling": table[-1]["series_falling"],
            "seconds": round(time.perf_counter() - started, 1),
            "seed": seed,
            "settings": settings._asdict(),
        },
    )
    plot(folder / "curves.png", history)
    save_wav(folder / "clean.wav", songs[0], RATE)
    for name in DAMAGES:
        save_wav(folder / f"{name.replace(' ', '-')}.wav", damage(songs[0], name, 2, 0), RATE)
    for row in table:
        print(
            "{damage:14} pairs won {pairs_won:.0%}, series falling {series_falling:.0%}".format(
                **row
            )
        )


def plot(path: Path, history: list[dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    window = max(1, len(history) // 40)
    titles = {"reward": "clean minus damaged", "pairs_won": "share of pairs won",
              "regression": "regression loss", "ranking": "ranking loss"}  # fmt: skip
    for axes, (name, title) in zip(figure.subplots(1, 4), titles.items(), strict=True):
        values = np.array([row[name] for row in history])
        axes.plot(values, color="0.8", linewidth=0.6)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(np.arange(smooth.size) + window / 2, smooth, color="tab:blue")
        axes.set(title=title, xlabel="step")
    figure.suptitle("apex-tiny (demonstration model): training on synthetic songs")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
