"""What optimising a learned reward does to the truth: gold against proxy.

    python benchmarks/overoptimisation.py --output benchmarks/results/overoptimisation.md \
        --figures docs/guides/figures

The protocol of Gao et al. (2022, arXiv 2210.10760) on synthetic recordings. The gold reward is a
wide predictor trained on many recordings with clean labels; it is never optimised. A proxy is
trained on few recordings with gold labels and noise: one member, the mean of eight, or the mean
less k spreads (Coste et al. 2023, arXiv 2310.02743). Everything hears through apex-tiny's encoder.

- best of N: N up to 1,000 of a pool of recordings that nobody trained on, damaged twice over; the
  expected gold of the proxy's favourite by the unbiased estimator, against log N.
- waveform gradient: steps on the samples of some of those recordings, each of 1/100 of their
  level. With guards, a recording stays as it was before the step that trips one anew.
- GRPO: the toy language model of notes of `recipes/grpo_codec_lm.py`, against KL from its start.
  Guards cost what they cost in best of N.

Rewards are the mean of the five aesthetic heads in standard deviations of the pool's gold, from its
mean on. Five seeds draw the proxies' recordings, noise and starts; intervals are t's, 95%.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gold_proxy import RATE, Predictor, Recordings, few_noisy, hear, trained
from grpo_toy import grpo
from numpy.typing import NDArray
from overoptimisation_report import PENALTY, PROXIES, SIZES, TUNED, Array, Found, report
from scipy.special import gammaln
from scipy.stats import spearmanr
from torch import Tensor

from apex_reward import ApexReward, Guards
from apex_reward.model.predictor import Familiarity
from apex_reward.scores.apex import APEX_MIXES, HEADS, known_heads
from apex_reward.scores.mix import RewardMix
from apex_reward.scores.resolve import mix_scores
from apex_reward.scores.scores import Scores
from apex_reward.train.report import fit_familiarity
from toys.lessons import make_material  # gold_proxy has put it on the path
from toys.notes import note_policy

APEX = known_heads(HEADS)
MIX = RewardMix(APEX_MIXES["aesthetics"])
CAUTION = {"k = 0.5": 0.5, "k = 1": 1.0, "k = 2": 2.0}


class Sizes(NamedTuple):
    """How much is heard; the quick sizes only show that it runs."""

    songs: int = 48
    seconds: float = 2.0
    gold_batches: int = 40  # of 32 recordings
    pool_batches: int = 32
    few: int = 64
    starts: int = 4
    steps: int = 20
    grpo_steps: int = 48
    seeds: int = 5


QUICK = Sizes(6, 1.0, 4, 3, 32, 2, 3, 8, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--figures", type=Path, help="folder for the plots")
    parser.add_argument("--quick", action="store_true", help="seconds: does it run?")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = QUICK if arguments.quick else Sizes()
    model = ApexReward.from_pretrained("apex-tiny", segment_seconds=sizes.seconds)
    material = make_material(sizes.songs, sizes.songs // 4 + 1, 10.0, 77)
    rng = np.random.default_rng(0)
    many = hear(model, rng, material, sizes.gold_batches, sizes.seconds, twice=False)
    pool = hear(model, rng, material, sizes.pool_batches, sizes.seconds, twice=True)
    gold = trained(model, many.embeddings, many.labels, 1, 0, wide=True)
    unit = Unit.of(reward_of(gold, pool.embeddings))
    familiar = fit_familiarity(many.embeddings.numpy())
    tripped = guarded(pool.waves, pool.lengths, pool.embeddings, familiar)
    best, climbs, tunes, spreads = [], [], [], []
    for seed in range(sizes.seeds):
        members = few_noisy(model, gold, many, sizes.few, seed)
        spreads.append(spread_ranks(gold, members, many, pool))
        best.append(best_of_n(gold, members, pool, unit, tripped))
        climbs.append(climb(model, gold, members, pool, unit, familiar, sizes, seed))
        tunes.append(tune(model, gold, members, unit, familiar, sizes, seed))
        print(f"seed {seed}: spread against error {spreads[-1]}", flush=True)
    found = Found(np.array(best), np.array(climbs), np.array(tunes), np.array(spreads))
    report(arguments, found, float(tripped.any(axis=1).mean()))


def reward_of(predictor: Predictor, embeddings: Tensor, proxy: str = "mean of 8") -> Tensor:
    """Rewards (B,) of embeddings by one of the proxies."""
    values = predictor(embeddings)
    values = values[:1] if proxy == "one member" else values
    scores = Scores.from_members(values, APEX)
    return mix_scores(MIX, scores, caution=CAUTION.get(proxy, 0.0))


class Unit(NamedTuple):
    """Mean and standard deviation of the pool's gold: what rewards are told in."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, gold: Tensor) -> Unit:
        return cls(gold.mean().item(), gold.std().item())

    def of_values(self, values: Tensor) -> Array:
        return ((values.detach() - self.mean) / self.deviation).double().numpy()


def guarded(
    waves: Tensor, lengths: Tensor, embeddings: Tensor, familiar: Familiarity | None
) -> NDArray[np.bool_]:
    """(N, guards) which default guards recordings trip, and whether they are unfamiliar."""
    guards = Guards.default("flag").limit("duration", low=0.0)
    songs = (wave[: int(length)] for wave, length in zip(waves, lengths, strict=True))
    flags = [guards.flags(guards.measure(song, RATE)) for song in songs]
    tripped = np.array([[name in found for name in guards.names] for found in flags])
    strange = np.zeros(len(waves), bool)
    if familiar is not None:
        strange = (familiar(embeddings) > 1).numpy()
    return np.column_stack([tripped, strange])


def spread_ranks(
    gold: Predictor, members: Predictor, many: Recordings, pool: Recordings
) -> list[float]:
    """Rank correlation of an ensemble's spread with its error: in distribution, and out of it."""
    ranks = []
    for part in (many, pool):
        with torch.no_grad():
            truth = reward_of(gold, part.embeddings)
            own = torch.stack([MIX(Scores.from_stack(v, APEX)) for v in members(part.embeddings)])
        error = (own.mean(dim=0) - truth).abs()
        ranks.append(float(spearmanr(own.std(dim=0), error).statistic))
    return ranks


@torch.no_grad()
def best_of_n(
    gold: Predictor,
    members: Predictor,
    pool: Recordings,
    unit: Unit,
    tripped: NDArray[np.bool_],
) -> list[Any]:
    """(proxies, guards off and on, gold and proxy, sizes) expected values of the favourite."""
    truth = unit.of_values(reward_of(gold, pool.embeddings))
    found = []
    for proxy in PROXIES:
        rewards = unit.of_values(reward_of(members, pool.embeddings, proxy))
        rows = []
        for asked in (rewards, rewards - PENALTY * tripped.any(axis=1)):
            order = np.argsort(asked)
            rows.append([expected(values[order]) for values in (truth, rewards)])
        found.append(rows)
    return found


def expected(values: Array) -> list[float]:
    """Of values (n,) in rising order of the proxy: the mean value of the best of N, for all sizes.

    The i-th is the best of a random subset of N with probability C(i - 1, N - 1) / C(n, N)
    (Nakano et al. 2021, arXiv 2112.09332).
    """
    n = len(values)
    below = np.arange(n)
    means = []
    for size in SIZES:
        size = min(size, n)
        enough = below >= size - 1
        i = below[enough]
        log = gammaln(i + 1) - gammaln(size) - gammaln(i - size + 2)
        log -= gammaln(n + 1) - gammaln(size + 1) - gammaln(n - size + 1)
        means.append(float(np.sum(np.exp(log) * values[enough])))
    return means


def climb(
    model: ApexReward,
    gold: Predictor,
    members: Predictor,
    pool: Recordings,
    unit: Unit,
    familiar: Familiarity | None,
    sizes: Sizes,
    seed: int,
) -> list[Any]:
    """(proxies, guards off and on, gold and proxy, steps + 1) means over the starts."""
    chosen = np.random.default_rng([seed, 2]).choice(len(pool.waves), sizes.starts, replace=False)
    start, lengths = pool.waves[torch.from_numpy(chosen)], pool.lengths[torch.from_numpy(chosen)]
    size = 0.01 * start.square().mean(dim=1, keepdim=True).sqrt()
    found = []
    for proxy in PROXIES:
        waves = start.clone()
        values, flags = [], []
        for _ in range(sizes.steps + 1):
            waves.requires_grad_(True)
            embeddings = model.embed(waves, RATE, lengths)
            rewards = reward_of(members, embeddings, proxy)
            (gradient,) = torch.autograd.grad(rewards.sum(), waves)
            with torch.no_grad():
                both = (reward_of(gold, embeddings), rewards)
                values.append([unit.of_values(one) for one in both])
                flags.append(guarded(waves, lengths, embeddings, familiar))
                level = gradient.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-20)
                waves = (waves + size * gradient / level).clamp(-1, 1)
        free = np.array(values)  # (steps + 1, gold and proxy, starts)
        found.append([each.mean(axis=2).T for each in (free, stopped(free, np.array(flags)))])
    return found


def stopped(values: Array, flags: NDArray[np.bool_]) -> Array:
    """Values (steps + 1, 2, starts) of songs that stay where the next step trips a guard anew.

    Args:
        flags: (steps + 1, starts, guards).
    """
    anew = (flags & ~flags[:1]).any(axis=2)
    held = np.where(anew.any(axis=0), anew.argmax(axis=0) - 1, len(values) - 1)
    steps = np.minimum(np.arange(len(values))[:, None], held)
    return np.take_along_axis(values, steps[:, None, :], axis=0)


def tune(
    model: ApexReward,
    gold: Predictor,
    members: Predictor,
    unit: Unit,
    familiar: Familiarity | None,
    sizes: Sizes,
    seed: int,
) -> list[Any]:
    """(proxies; guards off and on; gold, proxy and KL; points) of GRPO."""
    policy = note_policy(seed)

    def judged(proxy: str, price: float) -> Array:
        def judge(waves: Tensor, lengths: Tensor, embeddings: Tensor) -> Array:
            both = (reward_of(gold, embeddings), reward_of(members, embeddings, proxy))
            truth, rewards = (unit.of_values(values) for values in both)
            tripped = guarded(waves, lengths, embeddings, familiar).any(axis=1)
            return np.array([truth, rewards, rewards - price * tripped])

        return grpo(model, policy, judge, sizes.grpo_steps, seed)

    return [[judged(proxy, price) for price in (0.0, PENALTY)] for proxy in TUNED]


if __name__ == "__main__":
    main()
