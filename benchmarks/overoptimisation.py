"""What optimising a learned reward does to the truth: gold against proxy.

    python benchmarks/overoptimisation.py --output benchmarks/results/overoptimisation.md \
        --figures docs/guides/figures

The protocol of Gao et al. (2022, arXiv 2210.10760) on synthetic recordings. The gold reward is a
wide predictor trained on many recordings with clean labels; it is never optimised. A proxy is
trained on few recordings with gold labels and noise: one member, the mean of eight, or the mean
less k spreads (Coste et al. 2023, arXiv 2310.02743). Everything hears through apex-tiny's encoder.

- best of N: N up to 1,000 of a pool of recordings that nobody trained on, damaged twice over; the
  expected gold of the proxy's favourite by the unbiased estimator, against log N.
- waveform gradient: steps on the samples of other recordings, each of 1/100 of their level.

Rewards are the mean of the five aesthetic heads in standard deviations of the pool's gold, from its
mean on. Five seeds draw the proxies' recordings, noise and starts; intervals are t's, 95%.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gold_proxy import RATE, Predictor, Recordings, few_noisy, hear, trained
from matplotlib.figure import Figure
from numpy.typing import NDArray
from result_file import write_result
from scipy.special import gammaln
from scipy.stats import spearmanr, t
from torch import Tensor

from apex_reward import ApexReward, Guards
from apex_reward.demo.lessons import make_material
from apex_reward.model.familiar import Familiarity
from apex_reward.report.markdown import markdown_table
from apex_reward.scores.apex import APEX_MIXES, HEADS, known_heads
from apex_reward.scores.mix import RewardMix
from apex_reward.scores.resolve import mix_scores
from apex_reward.scores.scores import Scores
from apex_reward.train.familiar import fit_familiarity

APEX = known_heads(HEADS)
MIX = RewardMix(APEX_MIXES["aesthetics"])
SIZES = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
PROXIES = ("one member", "mean of 8", "k = 0.5", "k = 1", "k = 2")
CAUTION = {"k = 0.5": 0.5, "k = 1": 1.0, "k = 2": 2.0}
PENALTY = 1.0  # of a tripped guard, in standard deviations of the gold
Array = NDArray[np.float64]


class Sizes(NamedTuple):
    """How much is heard; the quick sizes only show that it runs."""

    songs: int = 48
    seconds: float = 2.0
    gold_batches: int = 40  # of 32 recordings
    pool_batches: int = 32
    few: int = 64
    starts: int = 3
    steps: int = 20
    seeds: int = 5


QUICK = Sizes(6, 1.0, 4, 3, 32, 2, 3, 2)


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
    tripped = guarded(pool, familiar)
    best, climbs, spreads = [], [], []
    for seed in range(sizes.seeds):
        members = few_noisy(model, gold, many, sizes.few, seed)
        spreads.append(spread_ranks(gold, members, many, pool))
        best.append(best_of_n(gold, members, pool, unit, tripped))
        climbs.append(climb(model, gold, members, pool, unit, sizes, seed))
        print(f"seed {seed}: spread against error {spreads[-1]}", flush=True)
    report(arguments, np.array(best), np.array(climbs), np.array(spreads), tripped)


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


def guarded(pool: Recordings, familiar: Familiarity | None) -> NDArray[np.bool_]:
    """(N,) recordings of the pool that trip a default guard or are unfamiliar."""
    guards = Guards.default("flag").limit("duration", low=0.0)
    measured = guards.measure_batch(pool.waves, pool.lengths, RATE)
    tripped = np.array([bool(guards.flags(one)) for one in measured])
    return tripped if familiar is None else tripped | (familiar(pool.embeddings) > 1).numpy()


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
        for asked in (rewards, rewards - PENALTY * tripped):
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
    sizes: Sizes,
    seed: int,
) -> list[Any]:
    """(proxies, gold and proxy, steps + 1) means over the starts."""
    chosen = np.random.default_rng([seed, 2]).choice(len(pool.waves), sizes.starts, replace=False)
    start, lengths = pool.waves[torch.from_numpy(chosen)], pool.lengths[torch.from_numpy(chosen)]
    size = 0.01 * start.square().mean(dim=1, keepdim=True).sqrt()
    found = []
    for proxy in PROXIES:
        waves = start.clone()
        rows = []
        for _ in range(sizes.steps + 1):
            waves.requires_grad_(True)
            embeddings = model.embed(waves, RATE, lengths)
            rewards = reward_of(members, embeddings, proxy)
            (gradient,) = torch.autograd.grad(rewards.sum(), waves)
            with torch.no_grad():
                both = (reward_of(gold, embeddings), rewards)
                rows.append([unit.of_values(values).mean() for values in both])
                level = gradient.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-20)
                waves = (waves + size * gradient / level).clamp(-1, 1)
        found.append(np.transpose(rows).tolist())
    return found


def interval(values: Array) -> tuple[Array, Array]:
    """Mean over the seeds (the first axis) and half the width of its 95% interval."""
    count = len(values)
    half = t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
    return values.mean(axis=0), half


def report(
    arguments: argparse.Namespace,
    best: Array,
    climbs: Array,
    spreads: Array,
    tripped: NDArray[np.bool_],
) -> None:
    """Tables and plots. `best` is (seeds, proxies, guards, gold and proxy, sizes)."""
    at = [SIZES.index(size) for size in (1, 16, 125, 1000)]
    rows = [
        [proxy, guards, *map(cell(best[:, p, g, 0]), at), cell(best[:, p, g, 1])(at[-1])]
        for g, guards in enumerate(("off", "on"))
        for p, proxy in enumerate(PROXIES)
    ]
    columns = ("proxy", "guards", *(f"gold, best of {SIZES[i]}" for i in at), "its proxy, 1000")
    last = climbs.shape[-1] - 1
    steps = [0, last // 3, last]
    climbed = [
        [proxy, *map(cell(climbs[:, p, 0]), steps), cell(climbs[:, p, 1])(last)]
        for p, proxy in enumerate(PROXIES)
    ]
    climb_columns = ("proxy", *(f"gold, step {i}" for i in steps), f"its proxy, step {last}")
    paired = [
        [proxy, *(cell(best[:, p, 0, 0] - best[:, 1, 0, 0])(i) for i in at[1:]),
         cell(climbs[:, p, 0] - climbs[:, 1, 0])(last)]
        for p, proxy in enumerate(PROXIES)
    ]  # fmt: skip
    pair_columns = ("proxy", *(f"best of {SIZES[i]}" for i in at[1:]), f"gradient, step {last}")
    inside, outside = (cell(spreads[:, i : i + 1])(0) for i in (0, 1))
    text = "\n\n".join(
        [
            "Rewards in standard deviations of the pool's gold; mean over the seeds and half the "
            "width of a 95% t interval.",
            "## Best of N", markdown_table(columns, rows),
            "## Waveform gradient", markdown_table(climb_columns, climbed),
            "## Gold, less the gold of the mean of 8 on the same seeds, guards off",
            markdown_table(pair_columns, paired),
            f"Spread against error, rank correlation: {inside} in distribution, {outside} on "
            f"recordings damaged twice. {tripped.mean():.0%} of the pool trip a guard; a guard "
            f"costs {PENALTY:g}.",
        ]
    )  # fmt: skip
    write_result("Over-optimisation", text, arguments.output)
    if arguments.figures:
        arguments.figures.mkdir(parents=True, exist_ok=True)
        logs = np.log(SIZES)
        plot(arguments.figures / "best-of-n.svg", best[:, :, 0], logs, "log N")
        plot(arguments.figures / "best-of-n-guarded.svg", best[:, :, 1], logs, "log N, guards on")
        plot(arguments.figures / "gradient.svg", climbs, np.arange(last + 1), "gradient steps")


def cell(values: Array) -> Callable[[int], str]:
    """A cell's text of the mean and interval of (seeds, ...) values at a position."""
    mean, half = interval(values)
    return lambda i: f"{mean[i]:+.2f} ± {half[i]:.2f}"


def plot(path: Path, values: Array, x: Array, label: str) -> None:
    """Gold (left) and proxy (right) of every proxy, (seeds, proxies, 2, x)."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for side, (axes, title) in enumerate(zip(panels, ("gold", "proxy"), strict=True)):
        for p, proxy in enumerate(PROXIES):
            mean, half = interval(values[:, p, side])
            (line,) = axes.plot(x, mean, label=proxy)
            axes.fill_between(x, mean - half, mean + half, color=line.get_color(), alpha=0.12)
        axes.set(title=title, xlabel=label, ylabel="reward (sd of gold)" if side == 0 else "")
    panels[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
