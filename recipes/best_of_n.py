"""Best of N: the reward, and the distance from reference songs, as N grows.

    python recipes/best_of_n.py --output runs/best_of_n
    python recipes/best_of_n.py --output runs/best_of_n --reward recipes/panel.yaml

Scores N candidates of every prompt and keeps the best. For each N it reports the reward, the share
of songs with a guard that trips, the KL bound log N - (N - 1) / N of best-of-N sampling (arXiv
2401.01879), the Frechet distance of the kept songs' embeddings from those of reference songs, and
the spread over the members of an ensemble. A reward that rises together with the distance is being
gamed. Without other arguments it uses synthetic songs, most of them with known damage, and
apex-tiny; this takes a minute or two on two CPU cores. With a generator, or with songs:

    python recipes/best_of_n.py --output runs/best_of_n --generator facebook/musicgen-small \
        --prompts FILE.txt --reference-songs DIR --reward-model amaai-lab/apex
    python recipes/best_of_n.py --output runs/best_of_n --candidates DIR --reference-songs DIR

The folder of candidates has a sub-folder of songs for every prompt, named after the prompt.
Writes history.jsonl (a row per N; `step` is N), summary.json, curves.png, candidates.jsonl and
audio/ of the first candidate and of the best one of some prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed

from apex_reward.audio import Waveform, load_audio
from apex_reward.demo import DAMAGES, damage, make_song
from apex_reward.files.tables import write_table
from apex_reward.rewards.distance import embedding_spread, frechet_distance
from apex_reward.rewards.judge import Judge
from apex_reward.runs.interrupt import Interrupt
from apex_reward.runs.log import RunLog
from apex_reward.runs.settings import (
    RewardSettings,
    build_judge,
    option,
    output_field,
    parse_settings,
    read_prompts,
)
from apex_reward.scoring import find_audio

SAMPLE_RATE = 24_000
TOY_PROMPTS, TOY_REFERENCES, TOY_SECONDS = 10, 32, 6.0
PANELS = {
    "reward of the best of N": ["reward"],
    "distance from the reference": ["distance"],
    "spread within a prompt": ["embedding_spread"],
    "share flagged": ["guard_rate"],
}
Song = dict[str, Any]


@dataclass
class Settings:
    """The candidates."""

    output_dir: str = output_field("runs/best_of_n")
    seed: int = option(0, "random seed of songs and draws")
    num_generations: int = option(16, "candidates of a prompt")
    repeats: int = option(20, "random splits to average over")
    generator: str | None = option(None, "hub id of a text-to-audio model of transformers")
    prompts: str | None = option(None, "text file with a prompt a line")
    candidates: str | None = option(None, "folder with a sub-folder of songs for every prompt")


def main(arguments: Sequence[str] | None = None) -> None:
    settings, own = parse_settings(RewardSettings, Settings, arguments=arguments)
    toy = own.generator is None and own.candidates is None
    if not toy and settings.reference_songs is None:
        raise SystemExit(
            "--generator and --candidates need --reference-songs, a folder of reference songs"
        )
    set_seed(own.seed)
    judge = build_judge(
        settings, SAMPLE_RATE, *((toy_references, TOY_SECONDS) if toy else ()), guards="flag"
    )
    log = RunLog(
        own.output_dir, PANELS, formats=settings.formats, xlabel="N (candidates per prompt)"
    )
    groups: list[list[Song]] = []
    with Interrupt() as interrupt:
        for prompt, songs in candidates(own):
            groups.append([score(judge, prompt, song) for song in songs])
            write_table(log.output / "candidates.jsonl", rows_of(groups))
            if interrupt.asked():
                print(f"ended early: the figures are of {len(groups)} prompts")
                break
    largest = min(own.num_generations, *(len(group) for group in groups))
    rng = np.random.default_rng(own.seed)
    for n in (2**k for k in range(int(math.log2(largest)) + 1)):
        log.append(best_of(n, groups, judge.reference, own.repeats, rng))
    write_results(log, groups, judge.reward.demonstration, (own, settings))


def best_of(
    n: int, groups: list[list[Song]], reference: Tensor, repeats: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Figures of keeping the best of n, averaged over random splits of each prompt's candidates.

    A split has as many draws of n candidates as there are; its draws share no candidate. The spread
    compares the songs that two draws of one split keep, so it needs n <= half of the candidates.
    """
    splits = [[best_of_draws(group, n, rng) for group in groups] for _ in range(repeats)]
    every = [song for split in splits for draws in split for song in draws]
    firsts = [vectors(draws[0] for draws in split) for split in splits]
    rewards = [song["reward"] for song in every]
    spreads = [song["reward_spread"] for song in every if song["reward_spread"] is not None]
    two_draws = all(len(group) >= 2 * n for group in groups)
    return {
        "step": n,
        "reward": float(np.mean(rewards)),
        "reward_std": float(np.std(rewards)),
        "reward_spread": float(np.mean(spreads)) if spreads else None,
        "guard_rate": float(np.mean([bool(song["flags"]) for song in every])),
        "kl_bound": math.log(n) - (n - 1) / n,
        "distance": float(np.mean([frechet_distance(kept, reference) for kept in firsts]))
        if len(groups) >= 2
        else None,
        "embedding_spread": float(np.mean([spread_of(split) for split in splits]))
        if two_draws
        else None,
    }


def best_of_draws(group: list[Song], n: int, rng: np.random.Generator) -> list[Song]:
    """The best song of each of the draws of n into which a random order cuts the candidates."""
    order = rng.permutation(len(group))
    draws = [order[start : start + n] for start in range(0, len(group) - n + 1, n)]
    return [max((group[i] for i in draw), key=lambda song: song["reward"]) for draw in draws]


def vectors(songs: Iterable[Song]) -> Tensor:
    """Embeddings (N, W)."""
    return torch.stack([song["embedding"] for song in songs])


def spread_of(split: list[list[Song]]) -> float:
    """Mean cosine distance of two songs that are kept for the same prompt."""
    prompts = [number for number, draws in enumerate(split) for _ in draws]
    return embedding_spread(vectors(song for draws in split for song in draws), prompts)


def score(judge: Judge, prompt: str, song: Waveform) -> Song:
    """A candidate with its embedding (W,), scores, reward and flags."""
    judged = judge([song], [prompt])
    row, embedding = judged.rows[0], judged.vectors[0]
    if row is None or embedding is None:
        raise SystemExit(f"a candidate of the prompt {prompt!r} has no score; leave it out")
    return {
        **row,
        "flags": ";".join(row["flags"]),
        "prompt": prompt,
        "song": song,
        "reward": judged.rewards[0],
        "reward_spread": judged.spread[0] if judged.spread else None,
        "embedding": embedding,
    }


def candidates(own: Settings) -> Iterator[tuple[str, Iterator[Waveform]]]:
    """Each prompt and its candidates."""
    if own.candidates is not None:
        for folder in sorted(path for path in Path(own.candidates).iterdir() if path.is_dir()):
            yield folder.name, map(load_audio, find_audio([str(folder)]))
    elif own.generator is not None:
        yield from generated(own)
    else:
        rng = np.random.default_rng(own.seed)
        for number in range(TOY_PROMPTS):
            count = range(own.num_generations)
            yield f"song {number}", (toy_candidate(number, i, own.seed, rng) for i in count)


def generated(own: Settings) -> Iterator[tuple[str, Iterator[Waveform]]]:
    """Songs of a text-to-audio model of transformers."""
    from transformers import pipeline

    prompts = read_prompts(own.prompts)
    generator = pipeline("text-to-audio", model=own.generator)

    def one(prompt: str) -> Waveform:
        made = generator(prompt, forward_params={"do_sample": True})
        samples = np.asarray(made["audio"], dtype=np.float32).reshape(-1, made["audio"].shape[-1])
        return Waveform(samples, made["sampling_rate"])

    for prompt in prompts:
        yield prompt, (one(prompt) for _ in range(own.num_generations))


def toy_candidate(prompt: int, number: int, seed: int, rng: np.random.Generator) -> Waveform:
    """A synthetic song; three in four are damaged, by a random kind and severity."""
    of_song = 1_000_000 * (seed + 1) + 1_000 * prompt + number
    song = make_song(of_song, TOY_SECONDS, SAMPLE_RATE)
    if rng.random() < 0.75:
        kind, severity = str(rng.choice(DAMAGES)), int(rng.integers(1, 4))
        song = damage(song, kind, severity, of_song, SAMPLE_RATE)
    return Waveform(song[None], SAMPLE_RATE)


def toy_references() -> Iterator[Waveform]:
    """Undamaged songs, as the reference of the distance."""
    for seed in range(TOY_REFERENCES):
        yield Waveform(make_song(seed, TOY_SECONDS, SAMPLE_RATE)[None], SAMPLE_RATE)


def rows_of(groups: list[list[Song]]) -> list[dict[str, Any]]:
    """A row per candidate."""
    return [
        {"prompt": number, "candidate": i, "text": song["prompt"]}
        | {name: value for name, value in song.items()
           if name not in ("song", "embedding", "prompt")}
        for number, group in enumerate(groups)
        for i, song in enumerate(group)
    ]  # fmt: skip


def write_results(
    log: RunLog, groups: list[list[Song]], demonstration: bool, settings: tuple[Any, ...]
) -> None:
    """Curves over N, the figures at both ends, and songs of some prompts."""
    for number, group in enumerate(groups[:3]):
        best = max(group, key=lambda song: song["reward"])
        for name, chosen in (("first", group[0]), ("best", best)):
            log.song(f"{number}_{name}", chosen["song"], SAMPLE_RATE)
    for row in log.rows:
        print({name: round(value, 3) for name, value in row.items()})
    first, last = log.rows[0], log.rows[-1]
    log.finish(
        {
            "reward_before": first["reward"],
            "reward_after": last["reward"],
            "reward_std_before": first["reward_std"],
            "distance_before": first.get("distance"),
            "distance_after": last.get("distance"),
            "demonstration": demonstration,
        },
        *settings,
    )


if __name__ == "__main__":
    main()
