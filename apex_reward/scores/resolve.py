"""Which mix is meant, and what it makes of scores: the one place for every command and stack.

Shape key: B = songs, M = members of an ensemble, W = embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apex_reward.errors import UsageError
from apex_reward.scores.mix import RewardMix, as_mix
from apex_reward.scores.preference import PreferenceHead
from apex_reward.scores.scores import Scores

if TYPE_CHECKING:
    from torch import Tensor

Mix = str | Mapping[str, Any] | RewardMix | PreferenceHead
PREFERENCE = "preference"


def resolve_mix(mix: Mix | None, model: Any) -> RewardMix | PreferenceHead:
    """The mix that is meant for a model, checked against its heads.

    Args:
        mix: a `RewardMix` or its saved form, a text (`HEAD=WEIGHT,...`), a name, `preference` where
            the model holds a calibrated head, or a `PreferenceHead`. None takes the mix saved with
            the model, else its default, else the mean of all heads.
        model: has `heads`, and may have `mixes` (weights by name), `default_mix`, `saved_mix` and
            `preference` (a saved `PreferenceHead`).

    Raises:
        UsageError: unknown, or not for these heads.
    """
    if mix == PREFERENCE:
        mix = _preference(model)
    if isinstance(mix, PreferenceHead):
        if absent := [name for name in mix.weights if name not in _names(model)]:
            raise UsageError(
                f"the preference head weighs {', '.join(absent)}, which this model has not; "
                f"its heads are {', '.join(_names(model))}"
            )
        return mix
    meant: Any = mix
    if mix is None:
        meant = getattr(model, "saved_mix", None) or getattr(model, "default_mix", "overall")
    if isinstance(meant, Mapping) and "embedding_weights" in meant:
        return resolve_mix(PreferenceHead.from_dict(meant), model)
    found = as_mix(meant, named_mixes(model))
    found.check(model.heads)
    return found


def named_mixes(model: Any) -> dict[str, dict[str, float]]:
    """The weights of a model's named mixes; every model has `overall`, the mean of its heads."""
    names = _names(model)
    return {"overall": dict.fromkeys(names, 1 / len(names)), **getattr(model, "mixes", {})}


def mix_scores(
    mix: RewardMix | PreferenceHead,
    scores: Scores,
    embeddings: Tensor | None = None,
    groups: Tensor | None = None,
    caution: float = 0.0,
) -> Tensor:
    """Rewards (B,) of scores: their mix, less `caution` spreads over an ensemble's members.

    With members every one's scores are mixed; the reward is the mean of those rewards minus
    `caution` times their population standard deviation (a lower confidence bound; Coste et al.
    2023, arXiv 2310.02743). Without members there is no spread to subtract.

    Args:
        embeddings: (B, W), for a preference head that was fitted on embeddings too.
        groups: (B,) prompt of each song, for a mix normalised within groups.
    """
    if scores.members is None:
        return _mixed(mix, scores, embeddings, groups)
    import torch

    rewards = torch.stack(
        [
            _mixed(mix, scores.member(index), embeddings, groups)
            for index in range(len(scores.members))
        ]
    )
    mean = rewards.mean(dim=0)
    return mean - caution * spread(rewards) if caution else mean


def spread(rewards: Tensor) -> Tensor:
    """Population standard deviation over the members of (M, B) rewards, with a gradient at 0."""
    import torch

    variance = rewards.var(dim=0, correction=0)
    varies = variance > 0
    return torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0)


def _mixed(
    mix: RewardMix | PreferenceHead,
    scores: Scores,
    embeddings: Tensor | None,
    groups: Tensor | None,
) -> Tensor:
    if isinstance(mix, PreferenceHead):
        return mix(scores, embeddings)
    return mix(scores, groups)


def _preference(model: Any) -> PreferenceHead:
    saved = getattr(model, "preference", None)
    if not saved:
        raise UsageError(
            "mix 'preference' needs a calibrated head, and this model holds none; "
            "`apex-reward arena calibrate` makes one"
        )
    return PreferenceHead.from_dict(saved)


def _names(model: Any) -> list[str]:
    return [head.name for head in model.heads]
