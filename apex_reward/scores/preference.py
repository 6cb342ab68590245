"""`PreferenceHead`: a reward fitted to human votes, linear in the heads and in song embeddings.

    reward(song)   = sum over heads of weight * score  +  embedding . embedding_weights
    P(a preferred) = sigmoid(reward(a) - reward(b))          (Bradley and Terry 1952)

A reward of one song that is subtracted in pairs cannot depend on which song is called A: swapping
the two gives one minus the probability, by construction. Rewards are in log-odds; only their
differences mean something, so there is no constant. `apex-reward arena calibrate` fits one.

Shape key: B = batch of songs, W = embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import read_json
from apex_reward.scores.head import Head
from apex_reward.scores.mix import RewardMix, check_names
from apex_reward.scores.scores import Scores

_FIELDS = {"weights", "embedding_weights", "fitted"}


@dataclass(frozen=True)
class PreferenceHead:
    """Heads and, optionally, song embeddings to one scalar reward in log-odds.

    Args:
        weights: log-odds per unit of each head; on a model's scores every name must be a head.
        embedding_weights: (W,) log-odds per unit of each embedding dimension, or None.
        fitted: what it was fitted on and how well it does (battles, prior, held-out accuracy);
            kept for the reader, never used.

    Raises:
        UsageError: no weight at all, or one that is not finite.

    >>> head = PreferenceHead({"musicality": 1.5})
    >>> PreferenceHead.from_dict(head.to_dict()) == head
    True
    """

    weights: Mapping[str, float]
    embedding_weights: tuple[float, ...] | None = None
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weights and not self.embedding_weights:
            raise UsageError("a preference head needs a weight for a head or for the embedding")
        named = [*self.weights.items(), *enumerate(self.embedding_weights or ())]
        if broken := [str(name) for name, weight in named if not math.isfinite(weight)]:
            raise UsageError(f"weights of a preference head must be finite: {', '.join(broken)}")

    def __call__(
        self, scores: Scores, embeddings: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        """(B,) rewards on the autograd graph of `scores` and of `embeddings` (B, W).

        Raises UsageError where a head is absent, or embeddings are absent or of another width.
        `groups` are not read; a `RewardMix` may read them.
        """
        terms = [weight * scores[head] for head, weight in self.weights.items()]
        if self.embedding_weights is not None:
            width = len(self.embedding_weights)
            if embeddings is None or embeddings.ndim != 2 or embeddings.shape[1] != width:
                given = "none given"
                if embeddings is not None:
                    given = f"given: shape {tuple(embeddings.shape)}; expected (B, {width})"
                raise UsageError(
                    f"this preference head needs (B, {width}) song embeddings; {given}"
                )
            terms.append(embeddings @ embeddings.new_tensor(self.embedding_weights))
        return sum(terms[1:], start=terms[0])

    def check(self, heads: Sequence[Head]) -> None:
        """Whether a model of these heads can serve it; raises UsageError where it cannot."""
        check_names(self.weights, heads)

    def bounds(self, heads: Sequence[Head], songs: int | None = None) -> tuple[float, float]:
        """The lowest and the highest reward; infinite with embeddings. See `RewardMix.bounds`."""
        if self.embedding_weights is not None:
            return -math.inf, math.inf
        return RewardMix(self.weights, "none").bounds(heads, songs)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what `config.preference` of a model holds."""
        vector = self.embedding_weights
        return {
            "weights": {name: float(weight) for name, weight in self.weights.items()},
            "embedding_weights": None if vector is None else list(map(float, vector)),
            "fitted": dict(self.fitted),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PreferenceHead:
        """Inverse of `to_dict`; raises DataError for another layout."""
        weights, vector = value.get("weights"), value.get("embedding_weights")
        if set(value) - _FIELDS or not isinstance(weights, Mapping):
            raise DataError(
                f"a preference head has the keys {', '.join(sorted(_FIELDS))}, 'weights' being a "
                f"map of names to numbers; given: {', '.join(map(str, value)) or 'nothing'}"
            )
        return cls(
            weights={str(name): float(weight) for name, weight in weights.items()},
            embedding_weights=None if vector is None else tuple(map(float, vector)),
            fitted=dict(value.get("fitted") or {}),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> PreferenceHead:
        """Read the `preference.json` that `apex-reward arena calibrate` writes."""
        return cls.from_dict(read_json(path))
