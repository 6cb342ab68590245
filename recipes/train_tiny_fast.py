"""Teach apex-tiny-fast, a student of apex-tiny, on synthetic songs, damaged songs and junk.

    python recipes/train_tiny_fast.py --output out/fast --seed 0
    python recipes/train_tiny_fast.py --output out/fast --short          # seconds: does it run?

The training loop is that of `apex-reward distill`. The clips differ: songs are damaged as in the
demonstration, and there is junk. The student's segments have 10 s, a third of its teacher's, so
that a short song costs little. Longer crops are cut, and each piece has the scores of the whole.
Teacher and student run on one thread: a seed gives the same bytes again.
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
from torch import Tensor

from apex_reward import ApexConfig, ApexReward
from apex_reward.audio import save_wav
from apex_reward.demo import JUNK, damage, make_junk, make_song
from apex_reward.demo.lessons import SEEDS, make_batches
from apex_reward.files.tables import write_json, write_table
from apex_reward.metrics import spearman
from apex_reward.model.encoders.student import MEL, StudentConfig, mel_of
from apex_reward.train.clips import Clips
from apex_reward.train.distill import StudentLoop
from apex_reward.train.settings import DistillSettings

RATE, SECONDS = 24_000, 10
SEED = 4_000  # added to the seed, so that songs differ from those of train_tiny.py
CHECKED = 2**40 + 2**21  # first seed of the songs that only check the result


class Settings(NamedTuple):
    """What a run depends on, beside its seed."""

    crops: tuple[tuple[float, int], ...] = (
        (3.0, 8), (8.0, 5), (12.0, 3), (30.0, 3), (10.0, 12)
    )  # fmt: skip
    songs: int = 160
    junk: int = 12
    least_seconds: float = 2.0
    epochs: int = 18
    inner: int = 96
    layers: int = 2
    hidden: int = 64
    held: int = 8
    checked: int = 8


SHORT = Settings(((0.5, 2),), songs=2, junk=1, epochs=2, inner=16, layers=1, hidden=8, held=4,
                 checked=1)  # fmt: skip


class Group(NamedTuple):
    """Clips of one batch: embeddings (n, W), log-mels (n, 64, M) in half precision, real (n,)."""

    embeddings: Tensor
    mels: Tensor
    real: Tensor


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
    groups = [*crops(teacher, settings, seed), *whole_sounds(teacher, settings, seed)]
    student, history = teach(teacher, groups, settings, seed)
    student.to(torch.float16).save_pretrained(arguments.output / "apex_tiny_fast")
    report(arguments.output, teacher, settings, seed, history, started)


@torch.no_grad()
def group(teacher: ApexReward, waves: Tensor, real: Tensor) -> Group:
    """Sounds (n, T) of `real` samples, encoded by the teacher as in scoring."""
    return Group(teacher.embed(waves, RATE, real), mel_of(waves).half(), real)


def crops(teacher: ApexReward, settings: Settings, seed: int) -> Iterator[Group]:
    """Crops of songs and textures in four versions each: clean, and damaged at three severities."""
    for batch in make_batches(settings.crops, seed + SEED):
        yield group(teacher, batch.waves, batch.real)


def whole_sounds(teacher: ApexReward, settings: Settings, seed: int) -> Iterator[Group]:
    """Clean songs, clipped songs and other junk, each of a length of its own up to a segment."""
    rng = np.random.default_rng([seed, SEED, 98])
    first = (seed + SEED) * SEEDS + 500_000
    for number in range(settings.songs):
        seconds = rng.uniform(settings.least_seconds, SECONDS)
        waves = [make_song(first + number, seconds)]
        if number % 4 == 0:
            waves.append(make_junk("clipped song", first + number, seconds))
        yield group(teacher, *stacked(waves))
    for kind in JUNK[:-1]:
        for number in range(settings.junk):
            seconds = rng.uniform(settings.least_seconds, SECONDS)
            yield group(teacher, *stacked([make_junk(kind, first + number, seconds)]))


def stacked(waves: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Waves of one length as (n, T) and their lengths (n,)."""
    return torch.from_numpy(np.stack(waves)), torch.full((len(waves),), waves[0].size)


def rows_of(teacher: ApexReward, groups: list[Group]) -> list[dict[str, Any]]:
    """The rows of `Clips`: pieces of a segment's length; `song` is the number of the group."""
    rows: list[dict[str, Any]] = []
    size, frames = SECONDS * RATE, SECONDS * RATE // MEL.hop
    for number, (embeddings, mels, real) in enumerate(groups):
        with torch.no_grad():
            members = teacher.predictor(embeddings).transpose(0, 1).flatten(1)
        for mel, length, labels, own in zip(mels, real.tolist(), members, embeddings, strict=True):
            for start in range(0, length - RATE // 5, size):
                piece = mel[:, start // MEL.hop :][:, :frames]
                # A segment is padded with silence.
                blank = mel_of(torch.zeros(1, size))[0].half()
                blank[:, : piece.shape[1]] = piece
                rows.append({
                    "song": str(number), "kind": "crop", "real": min(length - start, size),
                    "labels": labels.tolist(), "embedding": own.tolist(),
                    "mel": blank.numpy().tobytes(), "samples": None,
                })  # fmt: skip
    return rows


def teach(
    teacher: ApexReward, groups: list[Group], settings: Settings, seed: int
) -> tuple[ApexReward, list[dict[str, Any]]]:
    """The student of the best epoch, and a history row per epoch."""
    rows = rows_of(teacher, groups)
    numbers = np.random.default_rng([seed, SEED, 97]).permutation(len(groups))
    held_out = {str(number) for number in numbers[: max(1, len(groups) // settings.held)]}
    sides: tuple[list[dict[str, Any]], ...] = ([], [])
    for row in rows:
        sides[row["song"] in held_out].append(row)
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
    while not loop.finished:
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
