"""Train apex-tiny, the demonstration model, from nothing but synthetic songs.

    python recipes/train_tiny.py --output out/tiny --seed 0            # about 12 minutes on one core
    python recipes/train_tiny.py --output out/tiny --seed 0 --short    # seconds: does it run?

The default settings made the embedded checkpoint; at one thread on the same kind of processor they
make it again, bit for bit. Every training batch holds one song per kind of damage in four versions
(clean and three severities); the heads learn made-up labels that fall with severity, and a ranking
loss asks each version to score below the one before it. No real song and no human label is used.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from apex_reward import ApexConfig, ApexReward
from apex_reward.audio import save_wav
from apex_reward.demo import DAMAGES, damage, make_song, make_texture, score_damage
from apex_reward.heads import AESTHETIC_HEADS, HEADS
from apex_reward.tables import write_json, write_table

RATE = 24_000
VERSIONS = 4  # clean, then severity 1, 2 and 3
# How much a head suffers from a damage, between 0 and 1; what is not named suffers 0.7.
SUFFERS = {
    ("noise", "clarity"): 1.0,
    ("noise", "naturalness"): 0.9,
    ("clipping", "clarity"): 1.0,
    ("clipping", "naturalness"): 1.0,
    ("low-pass", "clarity"): 1.0,
    ("dropouts", "coherence"): 1.0,
    ("dropouts", "naturalness"): 0.9,
    ("hum", "clarity"): 1.0,
    ("hum", "musicality"): 0.8,
    ("detuning", "musicality"): 1.0,
    ("detuning", "naturalness"): 0.9,
    ("timing jitter", "coherence"): 1.0,
    ("timing jitter", "musicality"): 0.9,
    ("reverb mud", "clarity"): 1.0,
    ("reverb mud", "memorability"): 0.8,
}
AMOUNT = (0.0, 0.5, 0.75, 1.0)  # how far each version goes
TEXTURE_AMOUNT = 0.4  # a recording without music starts as if damaged this much
Array = NDArray[np.float32]


class Settings(NamedTuple):
    """What a run depends on, beside its seed."""

    steps: int = 1000
    songs: int = 400
    textures: int = 64
    song_seconds: float = 10.0
    crop_seconds: float = 3.0
    texture_share: float = 0.15
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    ranking: float = 1.0
    checked_songs: int = 6
    checked_seconds: float = 20.0


SHORT = Settings(
    steps=4, songs=4, textures=2, song_seconds=4.0, crop_seconds=1.0, checked_songs=1,
    checked_seconds=3.0,
)  # fmt: skip


class Material(NamedTuple):
    """Clean recordings (N, T) as float16 and the taste of each, (N, 2) in [-1, 1]."""

    waves: NDArray[np.float16]
    taste: Array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    settings = SHORT if arguments.short else Settings()
    torch.set_num_threads(1)  # sums in a fixed order: the same seed gives the same bytes
    started = time.perf_counter()
    model, history = train(settings, arguments.seed)
    save(model, arguments.output / "apex_tiny")
    report(arguments.output, settings, arguments.seed, history, started)


def train(settings: Settings, seed: int) -> tuple[ApexReward, list[dict[str, float]]]:
    """The trained model and a history row per step."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    songs, textures = make_material(settings, seed)
    model = build_model()
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, settings.steps, pct_start=0.1
    )
    history = []
    for step in range(1, settings.steps + 1):
        waves, targets = make_batch(rng, songs, textures, settings)
        logits = forward(model, waves)
        loss, row = losses(logits, targets, settings.ranking)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append({"step": step, **row})
        if step % 25 == 0:
            print(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    return model, history


def build_model() -> ApexReward:
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
            head_widths=(32, 16), trunk_dropout=0.1, head_dropout=0.05, demonstration=True,
        )
    )  # fmt: skip


def forward(model: ApexReward, waves: Tensor) -> Tensor:
    """Logits (N, 7) of padded crops (N, T), with batch statistics in the predictor."""
    with torch.autocast("cpu", torch.bfloat16):
        layers = model.encoder(waves)
    model.predictor.train()
    logits = model.predictor.logits(model.pooling(layers))
    model.predictor.eval()
    return logits


def losses(logits: Tensor, targets: Tensor, ranking: float) -> tuple[Tensor, dict[str, float]]:
    """Label regression plus ranking of neighbouring versions, and the history row."""
    regression = F.binary_cross_entropy_with_logits(logits, targets)
    quality = logits[:, -len(AESTHETIC_HEADS) :].mean(dim=1).view(-1, VERSIONS)
    against_clean = quality[:, :1] - quality[:, 1:]
    steps_down = quality[:, 1:-1] - quality[:, 2:]
    gaps = torch.cat([against_clean, steps_down], dim=1)
    ranked = F.softplus(0.5 - 2 * gaps).mean()
    shares = torch.sigmoid(logits[:, -len(AESTHETIC_HEADS) :]).mean(dim=1).view(-1, VERSIONS)
    margin = 4 * (shares[:, :1] - shares[:, 1:]).mean()
    return regression + ranking * ranked, {
        "reward": margin.item(),
        "regression": regression.item(),
        "ranking": ranked.item(),
        "pairs_won": (against_clean > 0).float().mean().item(),
    }


def make_material(settings: Settings, seed: int) -> tuple[Material, Material]:
    """Songs and textures, each from its own seed."""
    first = seed * 1_000_000
    pools = []
    for maker, count in ((make_song, settings.songs), (make_texture, settings.textures)):
        waves = [maker(first + i, settings.song_seconds, RATE) for i in range(count)]
        pools.append(Material(np.stack(waves).astype(np.float16), taste(np.stack(waves))))
    return pools[0], pools[1]


def taste(waves: Array) -> Array:
    """A made-up taste, (N, 2): one likes bright songs, the other lively ones."""
    steps = np.diff(waves, axis=1)
    bright = np.log(np.square(steps).mean(axis=1) / np.square(waves).mean(axis=1))
    frames = waves[:, : waves.shape[1] // 1200 * 1200].reshape(len(waves), -1, 1200)
    lively = np.log(np.square(frames).mean(axis=2) + 1e-9).std(axis=1)
    both = np.stack([bright, lively], axis=1)
    spread = np.maximum(both.std(axis=0), 1e-6)
    return np.tanh((both - both.mean(axis=0)) / spread).astype(np.float32)


def make_batch(
    rng: np.random.Generator, songs: Material, textures: Material, settings: Settings
) -> tuple[Tensor, Tensor]:
    """One song per damage in four versions: crops (8 * 4, T) and targets (8 * 4, 7) in [0, 1].

    Crops are zero-padded by a share that a short song has in a segment.
    """
    length = round(settings.crop_seconds * RATE)
    lead = RATE // 2  # heard by the damage, then cut off: reverberation is already there
    real = round(length * (1 - rng.choice([0.0, 0.0, rng.uniform(0, 0.5)])))
    crops, targets = [], []
    for name in DAMAGES:
        textured = rng.random() < settings.texture_share
        pool = textures if textured else songs
        number = int(rng.integers(len(pool.waves)))
        crop = cut(rng, pool.waves[number], real + lead, quietest=-45 if textured else -28)
        pattern = int(rng.integers(2**30))
        for version in range(VERSIONS):
            wave = damage(crop, name, version, pattern, RATE) if version else crop
            crops.append(np.pad(wave[lead:], (0, length - real)))
            base = TEXTURE_AMOUNT if textured else 0.0
            targets.append(labels(name, version, base, pool.taste[number]))
    return torch.from_numpy(np.stack(crops)), torch.tensor(targets)


def cut(rng: np.random.Generator, wave: NDArray[np.float16], length: int, quietest: float) -> Array:
    """A crop at a random place, speed (and with it pitch) and loudness."""
    speed = 2 ** rng.uniform(-0.3, 0.3)
    start = rng.integers(0, max(1, wave.size - int(length * speed) - 1))
    position = np.minimum(start + np.arange(length) * speed, wave.size - 1)
    crop = np.interp(position, np.arange(wave.size), wave.astype(np.float32))
    level = 10 ** (rng.uniform(quietest, -10) / 20)
    crop = crop * level / max(float(np.sqrt(np.square(crop).mean())), 1e-4)
    return (crop / max(float(np.abs(crop).max()), 1.0)).astype(np.float32)


def labels(name: str, version: int, base: float, taste: Array) -> list[float]:
    """Targets of the seven heads: quality falls with damage; popularity has a taste besides."""
    targets = []
    for head in HEADS:
        suffered = base + (1 - base) * AMOUNT[version] * SUFFERS.get((name, head), 0.7)
        if head in AESTHETIC_HEADS:
            targets.append(0.92 - 0.84 * suffered)
        else:
            targets.append(0.75 - 0.6 * suffered + 0.12 * float(taste[HEADS.index(head)]))
    return targets


def save(model: ApexReward, folder: Path) -> None:
    """Half-precision weights, half the size; they are loaded as float32."""
    model.to(torch.float16).save_pretrained(folder)


def report(
    folder: Path, settings: Settings, seed: int, history: list[dict[str, float]], started: float
) -> None:
    """Check the saved model on unseen synthetic songs; write tables, curves and audio."""
    model = ApexReward.from_pretrained(folder / "apex_tiny")
    songs = [make_song(-1 - i + 2**31, settings.checked_seconds) for i in range(settings.checked_songs)]
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
        print("{damage:14} pairs won {pairs_won:.0%}, series falling {series_falling:.0%}".format(**row))


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
