"""Figures of two sets of songs, paired by prompt, and a verdict in words.

The songs of a prompt are averaged. Each figure has the mean of both sides over the prompts, a
bootstrap interval of the difference over prompts, and the p-value of a paired t-test over prompts,
adjusted by Holm's method over all figures. A figure `rose` or `fell` if this p-value is below 0.05,
the interval excludes 0, and there are at least 4 prompts; else it is `undetermined`.

Shape key: P = prompts, N = figures, W = width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from apex_reward.compare.songs import Group, Name, Song, paired
from apex_reward.metrics import FloatArray, bootstrap, holm, stretched_interval
from apex_reward.report.cells import counted
from apex_reward.rewards.distance import (
    frechet_distance,
    kernel_bandwidth,
    kernel_distance,
    vendi_diversity,
)

SIGNIFICANT, FEWEST_PROMPTS = 0.05, 4
KINDS = ("heads", "holdout", "rulers", "guards")
RULER_WORDS = {
    "length": ("longer", "shorter", " s"),
    "loudness": ("louder", "quieter", " dB"),
    "crest": ("less compressed", "more compressed", " dB"),
    "loudness_range": ("wider in loudness range", "narrower in loudness range", " LU"),
    "centroid": ("brighter", "darker", " Hz"),
    "bandwidth": ("broader in spectrum", "narrower in spectrum", " Hz"),
    "high_share": ("richer in energy above 4 kHz", "poorer in energy above 4 kHz", ""),
    "width": ("wider in stereo", "narrower in stereo", ""),
    "onset_rate": ("denser in onsets", "sparser in onsets", " per second"),
    "tempo_stability": ("steadier in tempo", "less steady in tempo", ""),
    "repetition": ("more repetitive", "less repetitive", ""),
    "silence": ("richer in silence", "poorer in silence", ""),
    "contrast": ("richer in contrast", "poorer in contrast", " dB"),
}
VARIED = 0.01  # p-value from which the diversity of a prompt's songs is worth a word


def compare_songs(
    before: Sequence[Song],
    after: Sequence[Song],
    reference: Tensor | None = None,
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The content of `metrics.json`; it does not depend on the order of songs.

    Args:
        before, after: songs with the same figures; those of prompts on one side only are left out.
        reference: (M, W) embeddings of a reference set, for the distances.
        rounds, seed: of the bootstrap over prompts.

    Returns:
        `n_prompts`, `n_songs`, `reward`, `heads`, `holdout`, `rulers`, `guards`, `diversity`,
        `verdict`, and with a reference `distances`. Diversity is `vendi_diversity` with the
        bandwidth of the songs before: `within` of equally many songs of each prompt (the mean over
        prompts that have two or more on both sides), `between` of the prompts' mean embeddings.

    Raises:
        DataError: no prompt has songs on both sides.
    """
    groups = paired(before, after)
    sides = [[song for _, both in groups for song in both[side]] for side in (0, 1)]
    names = list(sides[0][0].values)
    means = [np.array([_values(both[side]).mean(axis=0) for _, both in groups]) for side in (0, 1)]
    entries = _entries(names, means[0], means[1], rounds, seed)
    metrics: dict[str, Any] = {
        "n_prompts": len(groups),
        "n_songs": _sides(*map(len, sides)),
        "reward": entries.pop(("reward", ""), None),
        **{kind: {n: entry for (k, n), entry in entries.items() if k == kind} for kind in KINDS},
        "diversity": _diversity(groups),
    }
    if reference is not None:
        vectors = [_vectors(side) for side in sides]
        measures = {"frechet": frechet_distance, "kernel": kernel_distance}
        metrics["distances"] = {
            name: _sides(*(measure(v, reference) if len(v) > 1 else None for v in vectors))
            for name, measure in measures.items()
        }
    spread = dict(zip(names, _values(sides[0]).std(axis=0).tolist(), strict=True))
    metrics["verdict"] = " ".join(verdict(metrics, spread.get(("reward", ""), 0.0)))
    return metrics


def _entries(
    names: Sequence[Name], before: FloatArray, after: FloatArray, rounds: int, seed: int
) -> dict[Name, dict[str, Any]]:
    """An entry per figure from (P, N) means of the prompts."""
    changes, count = after - before, len(before)
    drawn = bootstrap(lambda counts: counts @ changes / count, count, rounds=rounds, seed=seed)
    p_values = holm([paired_p_value(column) for column in changes.T])
    found = {}
    for at, name in enumerate(names):
        change, p_value = float(changes[:, at].mean()), float(p_values[at])
        low, high = stretched_interval(drawn[:, at], change, count)
        if math.isnan(low) and count > 1:  # all prompts changed alike
            low = high = change
        sure = count >= FEWEST_PROMPTS and p_value < SIGNIFICANT and low * high > 0
        found[name] = {
            **_sides(float(before[:, at].mean()), float(after[:, at].mean())),
            "difference": change,
            "ci95": None if math.isnan(low) else [low, high],
            "p_value": None if math.isnan(p_value) else p_value,
            "claim": ("rose" if change > 0 else "fell") if sure else "undetermined",
        }
    return found


def paired_p_value(changes: FloatArray) -> float:
    """Two-sided paired t-test of (P,) changes; NaN with one prompt.

    Changes without spread have no t statistic: the exact sign-flip test of P equal changes gives
    2^(1 - P).

    >>> paired_p_value(np.array([0.0, 0.0])), paired_p_value(np.array([2.0, 2.0, 2.0]))
    (1.0, 0.25)
    """
    if len(changes) < 2:
        return math.nan
    error = float(np.std(changes, ddof=1)) / math.sqrt(len(changes))
    if error <= 1e-12 * float(np.abs(changes).max()):
        return 2.0 ** (1 - len(changes)) if changes.any() else 1.0
    return float(2 * stats.t.sf(abs(float(changes.mean())) / error, len(changes) - 1))


def _diversity(groups: Sequence[Group]) -> dict[str, Any]:
    first = _vectors([song for _, both in groups for song in both[0]])
    if not len(first):
        return {"within": {**_sides(None, None), "p_value": None}, "between": _sides(None, None)}
    width = kernel_bandwidth(first)
    within, between = [], []
    for _, both in groups:
        vectors = [_vectors(side) for side in both]
        between.append([vector.mean(dim=0) for vector in vectors])
        if (count := min(map(len, vectors))) > 1:
            within.append([vendi_diversity(vector[:count], width) for vector in vectors])
    inside = np.array(within).reshape(-1, 2)
    means = inside.mean(axis=0).tolist() if within else (None, None)
    p_value = paired_p_value(inside[:, 1] - inside[:, 0]) if len(within) > 1 else None
    apart = (vendi_diversity(torch.stack(side), width) for side in zip(*between, strict=True))
    return {"within": {**_sides(*means), "p_value": p_value}, "between": _sides(*apart)}


def _sides(before: float | None, after: float | None) -> dict[str, float | None]:
    return {"before": before, "after": after}


def _values(songs: Sequence[Song]) -> FloatArray:
    return np.array([list(song.values.values()) for song in songs])


def _vectors(songs: Sequence[Song]) -> Tensor:
    known = [song.vector for song in songs if song.vector is not None]
    return torch.stack(known) if known else torch.empty(0)


def verdict(metrics: Mapping[str, Any], spread: float) -> Iterator[str]:
    """Sentences on what changed and what it cost; only what the figures claim.

    Args:
        spread: standard deviation of the reward of the songs before.
    """
    yield _reward(metrics, spread)
    for kind, what in (("heads", "head"), ("holdout", "held-out reward")):
        moved = {claim: len(_claims(metrics[kind], claim)) for claim in ("rose", "fell")}
        changed = " and ".join(f"{number} {claim}" for claim, number in moved.items() if number)
        if metrics[kind]:
            words = changed or "none changed for certain"
            yield f"Of {counted(len(metrics[kind]), what)}, {words}."
    if rulers := list(_rulers(metrics["rulers"])):
        others = [", ".join(rulers[:-1])] if rulers[1:] else []
        yield f"The songs became {' and '.join([*others, rulers[-1]])}."
    for claim, direction in (("rose", "more"), ("fell", "fewer")):
        if names := _claims(metrics["guards"], claim):
            yield f"Guards that trip on {direction} songs: {', '.join(names)}."
    within = metrics["diversity"]["within"]
    if within["p_value"] is not None and within["p_value"] < VARIED:
        alike = within["after"] < within["before"]
        yield (
            f"Songs of one prompt became more {'alike' if alike else 'varied'} "
            f"(diversity {within['before']:.2f} before, {within['after']:.2f} after)."
        )


def _rulers(entries: Mapping[str, Any]) -> Iterator[str]:
    for name in _claims(entries, "rose", "fell"):
        more, less, unit = RULER_WORDS[name]
        change = entries[name]["difference"]
        yield f"{abs(change):.3g}{unit} {more if change > 0 else less}"


def _reward(metrics: Mapping[str, Any], spread: float) -> str:
    entry, prompts = metrics["reward"], counted(metrics["n_prompts"], "prompt")
    if entry is None:
        sure = sum(len(_claims(metrics[kind], "rose", "fell")) for kind in KINDS)
        return f"On {prompts}, {counted(sure, 'figure')} changed for certain."
    if entry["claim"] == "undetermined":
        return f"On {prompts}, no change of the reward is certain."
    size = abs(entry["difference"])
    by = f" by {size / spread:.2g} deviations of the songs before" if spread else ""
    return f"On {prompts}, the reward {entry['claim']}{by}."


def _claims(entries: Mapping[str, Any], *claims: str) -> list[str]:
    return [name for name, entry in entries.items() if entry["claim"] in claims]
