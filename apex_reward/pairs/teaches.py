"""What a set of pairs teaches beside its axis: rulers, and how its songs were delivered.

Shape key: N = candidates, M = pairs.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import stats

from apex_reward.pairs.candidates import Candidates, Floats, Integers
from apex_reward.pairs.constraints import in_threads, measured_loudness
from apex_reward.report.cells import counted

WARN_SHARE = 0.65
"""A set is biased in a ruler when the chosen song has more, or less, of it in more pairs."""
LEVEL_PAIRS = 20
"""Pairs whose loudness is measured for the warning about levels, where the table has none."""
LEVEL_LU = 1.0
RulerShare = tuple[str, float, float, float, int]


def ruler_shares(candidates: Candidates, chosen: Integers, rejected: Integers) -> list[RulerShare]:
    """How often the chosen song has more of each ruler, the most one-sided ruler first.

    Args:
        chosen, rejected: (M,) positions of the pairs.

    Returns:
        (name, share, lower, upper, pairs): the share in [0, 1], an equal pair counts one half; its
        95% Jeffreys interval with as many draws as there are prompts, as pairs of one prompt are
        not independent; and the number of pairs in which both values are known.
    """
    found = []
    for name, values in candidates.rulers().items():
        lead = values[chosen] - values[rejected]
        known = np.isfinite(lead)
        if known.any():
            share = float((0.5 + 0.5 * np.sign(lead[known])).mean())
            prompts = len(np.unique(candidates.prompt[chosen[known]]))
            low, high = stats.beta.ppf(
                (0.025, 0.975), share * prompts + 0.5, (1 - share) * prompts + 0.5
            ).tolist()
            found.append((name, share, min(low, share), max(high, share), int(known.sum())))
    return sorted(found, key=lambda row: (-abs(row[1] - 0.5), row[0]))


def warnings_of(
    candidates: Candidates, chosen: Integers, rejected: Integers, shares: list[RulerShare]
) -> list[str]:
    """Sentences about what a model learns from these pairs beside the axis.

    Args:
        chosen, rejected: (M,) positions of the pairs.
        shares: of `ruler_shares`.
    """
    warnings = [
        f"the chosen song has {'more' if share > 0.5 else 'less'} {name} in "
        f"{max(share, 1 - share):.0%} of {counted(n, 'pair')} (95% interval of the share with "
        f"more: {low:.0%} to {high:.0%}); a model trained on this set learns {name} too; "
        f"--balance {name} makes the set neutral"
        for name, share, low, high, n in shares
        if max(share, 1 - share) > WARN_SHARE
    ]
    rates = [None if np.isnan(hz) else f"{hz:g} Hz" for hz in candidates.numbers["sample_rate"]]
    endings = [Path(path or "").suffix.lower() or "none" for path in candidates.column("audio")]
    pairs = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    for name, kinds in (("container", endings), ("sample rate", rates)):
        both = ((kinds[a], kinds[b]) for a, b in pairs)
        mixed = Counter(f"{a} over {b}" for a, b in both if None not in (a, b) and a != b)
        if mixed:
            warnings.append(
                f"chosen and rejected differ in {name} in {mixed.total()} of {len(pairs)} pairs, "
                f"most often {mixed.most_common(1)[0][0]}; deliver all songs in one {name}"
            )
    lead = _levels(candidates, chosen, rejected)
    louder, quieter = int((lead > LEVEL_LU).sum()), int((lead < -LEVEL_LU).sum())
    if louder + quieter > 0.1 * len(lead):
        warnings.append(
            f"chosen and rejected differ in level by more than {LEVEL_LU:g} LU in "
            f"{louder + quieter} of {counted(len(lead), 'measured pair')}: the chosen is louder in "
            f"{louder} and quieter in {quieter}; --match-loudness {LEVEL_LU:g}, or scores at one "
            "--loudness"
        )
    return warnings


def _levels(candidates: Candidates, chosen: Integers, rejected: Integers) -> Floats:
    """Loudness of the chosen less that of the rejected in LU, where known or measured here."""
    loudness = np.asarray(candidates.rulers()["loudness"]).copy()
    if not np.isfinite(loudness[chosen] - loudness[rejected]).any():
        spread = np.linspace(0, len(chosen) - 1, min(len(chosen), LEVEL_PAIRS)).astype(int)
        songs = np.union1d(chosen[spread], rejected[spread]).tolist()
        files = [
            (i, Path(candidates.files[i])) for i in songs if os.path.isfile(candidates.files[i])
        ]
        for position, value in in_threads(measured_loudness, files):
            loudness[position] = value if isinstance(value, float) else np.nan
    lead = loudness[chosen] - loudness[rejected]
    return lead[np.isfinite(lead)]
