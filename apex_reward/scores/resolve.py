"""Which mix is meant, and what it makes of scores: the one place for every command and stack.

Shape key: B = songs, M = members of an ensemble, W = embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.scores.mix import RewardMix
from apex_reward.scores.scores import Scores

Mix = str | Mapping[str, Any] | RewardMix


def resolve_mix(mix: Mix | None, model: Any) -> RewardMix:
    """The mix that is meant for a model, checked against its heads.

    Args:
        mix: a `RewardMix` or its saved form, a text (`HEAD=WEIGHT,...`), a name, or `preference`
            where the model holds a calibrated head. None takes the mix saved with the model, else
            its default, else the mean of all heads (as they are, where a head has no bounds).
        model: has `heads`, and may have `mixes` (weights by name), `default_mix`, `saved_mix` and
            `preference` (a saved mix).

    Raises:
        UsageError: unknown, or not for these heads.
    """
    mixes, meant = named_mixes(model), mix
    if meant is None:
        meant = getattr(model, "saved_mix", None) or getattr(model, "default_mix", None)
    if meant is None:
        bounded = all(head.bounded for head in model.heads)
        meant = RewardMix(mixes["overall"], "range" if bounded else "none")
    if meant == "preference":
        meant = getattr(model, "preference", None)
        if not meant:
            raise UsageError(
                "mix 'preference' needs a calibrated head, and this model holds none; "
                "`apex-reward arena calibrate` makes one"
            )
    if isinstance(meant, str):
        meant = RewardMix.parse(meant, mixes=mixes)
    elif isinstance(meant, Mapping):
        meant = RewardMix.from_dict(meant)
    assert isinstance(meant, RewardMix)
    meant.check(model.heads)
    return meant


def named_mixes(model: Any) -> dict[str, dict[str, float]]:
    """The weights of a model's named mixes; every model has `overall`, the mean of its heads."""
    names = [head.name for head in model.heads]
    return {"overall": dict.fromkeys(names, 1 / len(names)), **getattr(model, "mixes", {})}


def mix_scores(
    mix: RewardMix,
    scores: Scores,
    embeddings: Tensor | None = None,
    groups: Tensor | None = None,
    caution: float = 0.0,
) -> Tensor:
    """Rewards (B,) of scores: their mix, less `caution` spreads over the ensembles' members.

    The reward is the mean over an ensemble's members of their mixed scores, minus `caution` times
    their population standard deviation (a lower confidence bound; Coste et al. 2023, arXiv
    2310.02743). Several ensembles of a panel are independent: their variances add up.

    Args:
        embeddings: (B, W), for a preference head that was fitted on embeddings too.
        groups: (B,) prompt of each song, for a mix normalised within groups.
    """
    rewards = member_rewards(mix, scores, embeddings, groups)
    if len(rewards) == 1:
        mean = rewards[0].mean(dim=0)
    else:
        base = mix(scores, groups=groups, embeddings=embeddings)
        mean = base + sum(one.mean(dim=0) - base for one in rewards)
    return mean - caution * spread(rewards) if caution and rewards else mean


def member_rewards(
    mix: RewardMix,
    scores: Scores,
    embeddings: Tensor | None = None,
    groups: Tensor | None = None,
) -> list[Tensor]:
    """Per ensemble the rewards (M, B) with each of its members, the others at their means."""
    return [
        torch.stack(
            [
                mix(scores.member(index, number), groups=groups, embeddings=embeddings)
                for index in range(len(tensor))
            ]
        )
        for number, (_, tensor) in enumerate(scores.ensembles)
    ]


def spread(rewards: Sequence[Tensor]) -> Tensor:
    """Standard deviation (B,) over the members of independent ensembles, with a gradient at 0.

    Args:
        rewards: (M, B) rewards of the members of each ensemble, as `member_rewards` gives them.
    """
    variance = torch.stack([one.var(dim=0, correction=0) for one in rewards]).sum(dim=0)
    varies = variance > 0
    return torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0)
