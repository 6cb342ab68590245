"""Best of N: more candidates per prompt buy reward; what do they cost in likeness?

    python recipes/best_of_n.py --output runs/best_of_n

Scores N candidates of every prompt, keeps the best, and reports, as N grows, the reward, the share
that trips a guard, the KL bound log N - (N - 1) / N of best-of-N sampling (arXiv 2401.01879), and
the Frechet distance of the kept songs' embeddings from those of reference songs. A reward that
rises while the distance grows too is being gamed. With no other argument: synthetic songs, most of
them damaged in a known way, and apex-tiny; a minute or two on two CPU cores. For the real thing:

    python recipes/best_of_n.py --output runs/best_of_n --generator facebook/musicgen-small \
        --prompts FILE.txt --reference-dir DIR --reward-model amaai-lab/apex
    python recipes/best_of_n.py --output runs/best_of_n --candidates DIR --reference-dir DIR

DIR of candidates holds a folder of songs for every prompt.
Leaves history.jsonl (a row per N; `step` is N), summary.json, curves.png, candidates.jsonl and
audio/ of the first candidate and of the best one of some prompts.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed

from apex_reward import ApexReward
from apex_reward.audio import Waveform, load_audio, save_wav
from apex_reward.demo import DAMAGES, damage, make_song
from apex_reward.files.tables import write_table
from apex_reward.report.run import write_run
from apex_reward.rewards import Guards
from apex_reward.scores.mix import as_mix
from apex_reward.scoring import find_audio

SAMPLE_RATE = 24_000
TOY_PROMPTS, TOY_REFERENCES, TOY_SECONDS = 10, 32, 6.0


def main() -> None:
    args = parse_arguments()
    started = time.time()
    set_seed(args.seed)
    toy = args.generator is None and args.candidates is None
    settings = {"segment_seconds": TOY_SECONDS} if toy else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = Judge(ApexReward.from_pretrained(args.reward_model, **settings).to(device), args)

    groups = [[judge.hear(song) for song in songs] for songs in candidates(args)]
    reference = torch.stack([judge.hear(song)["embedding"] for song in references(args)])
    largest = min(args.largest, *(len(group) for group in groups))
    sizes = [2**k for k in range(int(math.log2(largest)) + 1)]
    rng = np.random.default_rng(args.seed)
    history = [best_of(n, groups, reference, args.repeats, rng) for n in sizes]
    write_results(args, judge, groups, history, time.time() - started)


def best_of(
    n: int,
    groups: list[list[dict[str, Any]]],
    reference: Tensor,
    repeats: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Figures of keeping the best of n, averaged over random draws of n candidates a prompt."""
    rewards, flagged, distances = [], [], []
    for _ in range(repeats):
        kept = []
        for group in groups:
            drawn = [group[i] for i in rng.choice(len(group), n, replace=False)]
            kept.append(max(drawn, key=lambda song: song["reward"]))
        rewards += [song["reward"] for song in kept]
        flagged += [bool(song["flags"]) for song in kept]
        distances.append(frechet(torch.stack([song["embedding"] for song in kept]), reference))
    return {
        "step": n,
        "reward": float(np.mean(rewards)),
        "reward_std": float(np.std(rewards)),
        "guard_rate": float(np.mean(flagged)),
        "kl_bound": math.log(n) - (n - 1) / n,
        "distance": float(np.mean(distances)),
    }


def frechet(songs: Tensor, reference: Tensor) -> float:
    """Frechet distance of two sets of embeddings (N, W) as Gaussians of diagonal covariance.

    Full covariances would need more songs than dimensions. Each dimension is measured in standard
    deviations of the reference.
    """
    mean, std = reference.mean(0), reference.std(0).clamp(min=1e-6)
    songs = (songs - mean) / std
    return float((songs.mean(0).square() + (songs.std(0, correction=0) - 1).square()).sum().sqrt())


class Judge:
    """Scores songs one by one."""

    def __init__(self, model: ApexReward, args: argparse.Namespace) -> None:
        self.model, self.mix, self.guards = model, as_mix(args.mix), Guards()

    @torch.no_grad()
    def hear(self, song: Waveform) -> dict[str, Any]:
        """The song with its embedding (W,), scores, reward and flags."""
        samples = torch.tensor(song.samples)
        embedding = self.model.embed(samples[None].to(self.model.device), song.sample_rate)
        scores = self.model.score_embeddings(embedding)
        flags = self.guards.flags(self.guards.measure(samples, song.sample_rate))
        return {
            "song": song,
            "embedding": embedding[0].float().cpu(),
            "scores": scores.rows()[0],
            "reward": self.mix(scores).item(),
            "flags": flags,
        }


def candidates(args: argparse.Namespace) -> Iterator[Iterator[Waveform]]:
    """The candidates of each prompt."""
    if args.candidates is not None:
        for folder in sorted(path for path in args.candidates.iterdir() if path.is_dir()):
            yield map(load_audio, find_audio([str(folder)]))
    elif args.generator is not None:
        yield from generated(args)
    else:
        rng = np.random.default_rng(args.seed)
        for prompt in range(TOY_PROMPTS):
            yield (toy_candidate(prompt, i, args, rng) for i in range(args.largest))


def generated(args: argparse.Namespace) -> Iterator[Iterator[Waveform]]:
    """Songs of a text-to-audio model of transformers."""
    from transformers import pipeline

    generator = pipeline("text-to-audio", model=args.generator)

    def one(prompt: str) -> Waveform:
        made = generator(prompt, forward_params={"do_sample": True})
        samples = np.asarray(made["audio"], dtype=np.float32).reshape(-1, made["audio"].shape[-1])
        return Waveform(samples, made["sampling_rate"])

    for prompt in args.prompts.read_text(encoding="utf-8").splitlines():
        yield (one(prompt) for _ in range(args.largest))


def toy_candidate(
    prompt: int, number: int, args: argparse.Namespace, rng: np.random.Generator
) -> Waveform:
    """A synthetic song; three in four are damaged, by a random kind and severity."""
    seed = 1_000_000 * (args.seed + 1) + 1_000 * prompt + number
    song = make_song(seed, TOY_SECONDS, SAMPLE_RATE)
    if rng.random() < 0.75:
        kind, severity = str(rng.choice(DAMAGES)), int(rng.integers(1, 4))
        song = damage(song, kind, severity, seed, SAMPLE_RATE)
    return Waveform(song[None], SAMPLE_RATE)


def references(args: argparse.Namespace) -> Iterator[Waveform]:
    """Songs that the kept ones should be like."""
    if args.reference_dir is not None:
        yield from map(load_audio, find_audio([str(args.reference_dir)]))
    else:
        for seed in range(TOY_REFERENCES):
            yield Waveform(make_song(seed, TOY_SECONDS, SAMPLE_RATE)[None], SAMPLE_RATE)


def write_results(
    args: argparse.Namespace,
    judge: Judge,
    groups: list[list[dict[str, Any]]],
    history: list[dict[str, Any]],
    seconds: float,
) -> None:
    rows = [
        {"prompt": p, "candidate": i, "reward": c["reward"], **c["scores"], "flags": c["flags"]}
        for p, group in enumerate(groups)
        for i, c in enumerate(group)
    ]
    write_table(args.output / "candidates.jsonl", rows)
    summary = {
        "reward_before": history[0]["reward"],
        "reward_after": history[-1]["reward"],
        "reward_std_before": history[0]["reward_std"],
        "distance_before": history[0]["distance"],
        "distance_after": history[-1]["distance"],
        "seconds": seconds,
        "demonstration": judge.model.config.demonstration,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
    }
    panels = {
        "reward of the best of N": ["reward"],
        "distance from the reference": ["distance"],
        "share flagged": ["guard_rate"],
    }
    write_run(args.output, history, summary, panels, xlabel="N (candidates per prompt)")
    folder = args.output / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    for prompt, group in enumerate(groups[:3]):
        best = max(group, key=lambda song: song["reward"])
        for name, chosen in (("first", group[0]), ("best", best)):
            song = chosen["song"]
            save_wav(folder / f"{prompt}_{name}.wav", song.samples, song.sample_rate)
    for row in history:
        print({name: round(value, 3) for name, value in row.items()})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/best_of_n"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--largest", type=int, default=16, help="candidates of a prompt")
    parser.add_argument("--repeats", type=int, default=20, help="random draws to average over")
    parser.add_argument("--mix", default="aesthetics")
    parser.add_argument("--reward-model", default="apex-tiny", help="hub id or folder")
    real = parser.add_argument_group("real candidates")
    real.add_argument("--generator", help="hub id of a text-to-audio model of transformers")
    real.add_argument("--prompts", type=Path, help="a text file, a prompt a line")
    real.add_argument("--candidates", type=Path, help="a folder of songs for every prompt")
    real.add_argument("--reference-dir", type=Path, help="songs the kept ones should be like")
    args = parser.parse_args()
    if (args.generator or args.candidates) and not args.reference_dir:
        parser.error("real candidates need --reference-dir")
    if args.generator and not args.prompts:
        parser.error("--generator needs --prompts")
    return args


if __name__ == "__main__":
    main()
