"""Teach apex-tiny-fast, a student of apex-tiny, on synthetic songs, damaged songs and junk.

    python recipes/train_tiny_fast.py --output out/fast --seed 0
    python recipes/train_tiny_fast.py --output out/fast --short          # seconds: does it run?

The teacher scores every sound once. `clips-HASH/` keeps its scores, its embedding and the log-mel:
a stopped run goes on where it was. The training loop is that of `apex-reward distill`. The clips
differ: whole songs, crops at other speeds, recordings without music and junk, each of 2 to 14 s,
and damaged as in the demonstration. The student's segments have 10 s, a third of its teacher's, so
that a short song costs little. Teacher and student run on one thread: a seed gives the same bytes
again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from apex_reward import ApexConfig, ApexReward
from apex_reward.audio import save_wav
from apex_reward.demo import DAMAGES, damage, make_song
from apex_reward.files.stamps import text_hash
from apex_reward.files.tables import read_table, write_json, write_table
from apex_reward.metrics import spearman
from apex_reward.model.encoders.student import MEL, STD, StudentConfig, mel_of
from apex_reward.rewards.saved import model_hash
from apex_reward.train.clips import Clips
from apex_reward.train.distill import StudentLoop
from apex_reward.train.settings import DistillSettings
from toys.junk import JUNK, make_junk, make_texture
from toys.lessons import SEEDS, cut

RATE, SECONDS = 24_000, 10
SEED = 5_000  # added to the seed, so that songs differ from those of train_tiny.py
CHECKED = 2**40 + 2**21  # first seed of the songs that only check the result
SHARES = {"song": 0.65, "crop": 0.23, "texture": 0.06, "junk": 0.06}
LEVEL, SILENCE = 6.0, -5.0  # random gain in dB, and the log-mel of silence
VERSIONS = 3  # damaged versions of a sound that is no junk, each of another kind


class Settings(NamedTuple):
    """What a run depends on, beside its seed."""

    shards: int = 96
    sounds: int = 16  # of a shard
    seconds: tuple[float, float] = (2.0, 14.0)
    epochs: int = 16
    inner: int = 96
    layers: int = 2
    hidden: int = 64
    held: int = 8
    checked: int = 8


SHORT = Settings(2, sounds=2, seconds=(0.3, 0.9), epochs=2, inner=16, layers=1, hidden=8,
                 held=4, checked=1)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--teacher", default="apex-tiny", help="name or folder of the teacher")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    settings, seed = SHORT if arguments.short else Settings(), arguments.seed
    torch.set_num_threads(1)  # sums in a fixed order: the same seed gives the same bytes
    started = time.perf_counter()
    teacher = ApexReward.from_pretrained(arguments.teacher)
    rows = clips(teacher, arguments.output, settings, seed)
    student, history = teach(teacher, rows, settings, seed)
    student.to(torch.float16).save_pretrained(arguments.output / "apex_tiny_fast")
    report(arguments.output, teacher, settings, seed, history, started)


def clips(teacher: ApexReward, output: Path, settings: Settings, seed: int) -> list[dict[str, Any]]:
    """A row per sound, from shards that are made where they are missing."""
    drawn = [model_hash(teacher), seed, SEED, settings.sounds, settings.seconds, SHARES, VERSIONS]
    folder = output / f"clips-{text_hash(drawn)[:12]}"
    rows = []
    for shard in range(settings.shards):
        path = folder / f"{shard:05d}.parquet"
        if not path.exists():
            numbers = range(shard * settings.sounds, (shard + 1) * settings.sounds)
            write_table(path, [row for n in numbers for row in scored(teacher, n, settings, seed)])
        rows += read_table(path).to_pylist()
    return rows


@torch.no_grad()
def scored(teacher: ApexReward, number: int, settings: Settings, seed: int) -> list[dict[str, Any]]:
    """The rows of a sound and its damaged versions, encoded by the teacher as in scoring."""
    versions = sound(number, settings.seconds, seed)
    waves = torch.from_numpy(np.stack(list(versions.values())))
    embeddings = teacher.embed(waves, RATE)
    members = teacher.predictor(embeddings).transpose(0, 1).flatten(1)
    parts = zip(versions, members, embeddings, mel_of(waves).half(), strict=True)
    return [
        {
            "song": str(number), "kind": kind, "real": waves.shape[1], "labels": labels.tolist(),
            "embedding": own.tolist(), "mel": mel.numpy().tobytes(), "samples": None,
        }
        for kind, labels, own, mel in parts
    ]  # fmt: skip


def sound(number: int, seconds: tuple[float, float], seed: int) -> dict[str, np.ndarray]:
    """A sound (T,) and its damaged versions, each under its name."""
    rng = np.random.default_rng([seed, SEED, number])
    first, length = (seed + SEED) * SEEDS + number, rng.uniform(*seconds)
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if kind == "junk":
        return {kind: make_junk(str(rng.choice(JUNK)), first, length)}
    if kind == "song":
        wave = make_song(first, length)
    else:
        maker, quietest = (make_song, -28) if kind == "crop" else (make_texture, -45)
        longer = maker(first, 1.25 * length + 0.5).astype(np.float16)
        wave = cut(rng, longer, round(length * RATE), quietest)
    found = {kind: wave}
    for name in rng.choice(DAMAGES, VERSIONS, replace=False):
        severity = int(rng.integers(1, 4))
        found[f"{name} {severity}"] = damage(wave, str(name), severity, first)
    return found


def pieces(row: dict[str, Any], least: int) -> Iterator[dict[str, Any]]:
    """Segments of a sound, each with the scores of the whole; a rest below `least` samples is left.

    A segment is padded with silence.
    """
    size, mel = SECONDS * RATE, np.frombuffer(row["mel"], np.float16).reshape(MEL.bands, -1)
    silence = mel_of(torch.zeros(1, size))[0].half().numpy()
    for start in range(0, row["real"], size):
        real = min(row["real"] - start, size)
        if start == 0 or real >= least:
            part = mel[:, start // MEL.hop :][:, : silence.shape[1]]
            padded = np.concatenate([part, silence[:, part.shape[1] :]], axis=1)
            yield {**row, "real": real, "mel": padded.tobytes()}


def teach(
    teacher: ApexReward, rows: list[dict[str, Any]], settings: Settings, seed: int
) -> tuple[ApexReward, list[dict[str, Any]]]:
    """The student of the best epoch, and a history row per epoch."""
    songs = list(dict.fromkeys(row["song"] for row in rows))
    drawn = np.random.default_rng([seed, SEED, 97]).permutation(songs)
    held_out = set(drawn[: max(1, len(songs) // settings.held)])
    sides: tuple[list[dict[str, Any]], ...] = ([], [])
    for row in rows:
        parts = pieces(row, round(settings.seconds[0] * RATE))
        sides[row["song"] in held_out].extend(parts)
    train, held = (Clips(side, len(teacher.heads)) for side in sides)
    torch.manual_seed(seed)
    sizes = StudentConfig(
        teacher.config.width, settings.inner, settings.layers, intermediate_size=2 * settings.inner
    )
    config = ApexConfig(
        encoder={"kind": "student", **asdict(sizes)}, encoder_name=None, layers=[settings.layers],
        head_widths=[settings.hidden], members=teacher.members,
        spread_scale=teacher.config.spread_scale, segment_seconds=float(SECONDS),
        segment_tail="mask", batch_segments=16, demonstration=True,
        own_heads=[[head.name, head.low, head.high] for head in teacher.heads],
        distilled={"teacher": "apex-tiny", "licences": teacher.licences, "correlation": None},
    )  # fmt: skip
    student = ApexReward(config)
    heads: Any = student.predictor
    heads.fit(train.labels.flatten(0, 1))
    loop = StudentLoop(
        student, DistillSettings(settings.epochs, seed), train, held, Accelerator(cpu=True)
    )
    mels, gains = train.mels, torch.Generator().manual_seed(seed)
    while not loop.finished:
        # The teacher's scores hardly depend on the level.
        gain = LEVEL / STD * (2 * torch.rand(len(mels), 1, 1, generator=gains) - 1)
        train.mels = torch.where(mels > SILENCE, mels + gain.half(), mels)
        loop.run_epoch()
        print(loop.history[-1], flush=True)
    loop.network.load_state_dict(loop.best)
    student.encoder.requires_grad_(False)
    found, truth = loop.predict(held)[0].mean(dim=1), held.labels.mean(dim=(1, 2))
    config.distilled["correlation"] = float(np.corrcoef(found, truth)[0, 1])
    return student, [dict(row) for row in loop.history]


@torch.no_grad()
def report(
    folder: Path, teacher: ApexReward, settings: Settings, seed: int,
    history: list[dict[str, Any]], started: float,
) -> None:  # fmt: skip
    """Rank correlation of the saved student on unseen songs, curves and a song to hear."""
    student = ApexReward.from_pretrained(folder / "apex_tiny_fast")
    songs = [make_song(CHECKED + number, 12.0) for number in range(settings.checked)]
    songs += [damage(song, "noise", severity, 0) for song in songs for severity in (1, 2, 3)]
    waves = [torch.from_numpy(song)[None] for song in songs]
    ours, theirs = (
        torch.cat([model(wave, RATE).stack() for wave in waves]) for model in (student, teacher)
    )
    rank = {head.name: spearman(ours[:, n], theirs[:, n]) for n, head in enumerate(teacher.heads)}
    curve = [row["val_spearman"] for row in history]
    write_table(folder / "history.jsonl", history)
    write_json(
        folder / "summary.json",
        {
            "model": "apex-tiny-fast, a student of a demonstration model",
            "reward": "rank correlation with the teacher on held-out clips, mean over the heads",
            "reward_before": curve[0], "reward_after": max(curve), "reward_std_before": 0.0,
            "unseen": rank, "seed": seed, "seconds": round(time.perf_counter() - started, 1),
            "settings": settings._asdict(),
        },
    )  # fmt: skip
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve)
    axes.set(title="apex-tiny-fast: rank correlation with apex-tiny", xlabel="epoch")
    figure.savefig(folder / "curves.png", dpi=110)
    save_wav(folder / "clean.wav", songs[0], RATE)
    print("rank correlation on unseen songs:", rank)


if __name__ == "__main__":
    main()
