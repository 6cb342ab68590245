"""`RewardMix`: the heads of a song as one scalar reward, on the autograd graph.

    reward = sum over heads of weight * normalised head

A preference head, which `apex-reward arena calibrate` fits to human votes, is a mix of heads as
they are, in log-odds, and may weigh song embeddings too:

    P(a preferred) = sigmoid(reward(a) - reward(b))          (Bradley and Terry 1952)

Swapping the two songs gives one minus the probability, by construction. Only differences of such
rewards mean something, so there is no constant.

Shape key: B = batch of songs, H = heads in the mix, G = groups (prompts), W = embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from apex_reward.errors import UsageError, expect, expect_one_of
from apex_reward.files.tables import read_rows
from apex_reward.scores.apex import APEX_MIXES
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

Normalization = Literal["range", "zscore", "group", "none"]
Value = TypeVar("Value", Tensor, float)


@dataclass(frozen=True)
class RewardMix:
    """Heads to one scalar reward; higher is better, differentiable, batched.

    Args:
        weights: weight of each head, any finite number, negative ones too. They are used as they
            are, never divided by their sum: rewards of two mixes add up to the reward of the mix
            with their summed weights.
        normalization: what happens to a head before it is weighted.
            `range`: its range is mapped to [0, 1];
            `zscore`: (score - mean) / std of `reference`;
            `group`: (score - mean) / std within the songs of one prompt, population std;
                0 where the songs of a group all have the same score (so for a lone song);
            `none`: nothing.
        reference: mean and standard deviation of each head, for `zscore`; `with_reference`
            computes them from songs.
        embedding_weights: (W,) reward per unit of each dimension of a song's embedding, or None.
        fitted: what a preference head was fitted on and how well it does (battles, prior, held-out
            accuracy); kept for the reader, never used.

    Raises:
        UsageError: no weight, or a weight or a reference that is not finite.

    >>> RewardMix.parse("musicality=1,score_likes=0.3").weights
    {'musicality': 1.0, 'score_likes': 0.3}
    """

    weights: Mapping[str, float]
    normalization: Normalization = "range"
    reference: Mapping[str, tuple[float, float]] | None = None
    embedding_weights: tuple[float, ...] | None = None
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weights and not self.embedding_weights:
            raise UsageError("the mix is empty; give at least one head, as musicality=1")
        expect_one_of("normalization", self.normalization, get_args(Normalization))
        for name, weight in [*self.weights.items(), *enumerate(self.embedding_weights or ())]:
            expect(math.isfinite(weight), f"the weight of {name}", weight, "a finite number")
        for head in self.weights if self.reference is not None else ():
            mean, std = (self.reference or {}).get(head, (math.nan, math.nan))
            if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
                raise UsageError(
                    f"the reference of {head} is mean {mean}, std {std}; "
                    "expected finite numbers and a std above 0"
                )

    @classmethod
    def parse(
        cls,
        text: str,
        normalization: Normalization = "range",
        mixes: Mapping[str, Mapping[str, float]] = APEX_MIXES,
    ) -> RewardMix:
        """Read the text form `HEAD=WEIGHT,...`, or a named mix.

        Args:
            text: any heads; whether a model has them is checked where the mix meets it.
            mixes: weights by name; a model brings its own.

        Raises:
            UsageError: for anything else, saying which part is wrong.
        """
        if text.strip() in mixes:
            return cls(dict(mixes[text.strip()]), normalization)
        weights: dict[str, float] = {}
        for part in filter(None, map(str.strip, text.split(","))):
            head, _, number = (piece.strip() for piece in part.partition("="))
            try:
                weight = float(number)
            except ValueError:
                weight = None
            if not head or weight is None or head in weights:
                raise UsageError(
                    f"{part!r} in the mix {text!r} is not HEAD=WEIGHT, each head once; "
                    f"the named mixes are {', '.join(mixes)}"
                )
            weights[head] = weight
        return cls(weights, normalization)

    def __str__(self) -> str:
        """The text form that `parse` reads (weights only)."""
        return ",".join(f"{head}={weight:g}" for head, weight in self.weights.items())

    def __call__(
        self, scores: Scores, groups: Tensor | None = None, embeddings: Tensor | None = None
    ) -> Tensor:
        """Mix the scores of a batch.

        Args:
            scores: heads of (B,) each.
            groups: (B,) integers, equal for songs of one prompt; read by `group` only. None: the
                whole batch is one group.
            embeddings: (B, W), for `embedding_weights`.

        Returns:
            (B,) rewards on the graph of `scores`. In units of weight x range, of standard
            deviations, or of the heads, by the normalisation.

        Raises:
            UsageError: a head is absent from the scores, embeddings are needed and absent, or
                `zscore` has no reference.
        """
        ranges = {head.name: head for head in scores.heads}
        terms = []
        for name, weight in self.weights.items():
            score = scores[name]
            if self.normalization == "group":
                terms.append(weight * _standardized_in_groups(score, groups))
            else:
                terms.append(weight * self._scaled(ranges[name], score))
        if self.embedding_weights is not None:
            if embeddings is None:
                raise UsageError("this mix weighs song embeddings, and none are given")
            terms.append(embeddings @ embeddings.new_tensor(self.embedding_weights))
        return sum(terms[1:], start=terms[0])

    def check(self, heads: Sequence[Head]) -> None:
        """Whether a model of these heads can serve the mix.

        Raises:
            UsageError: it weighs a head that is not there, normalises one without bounds by
                `range`, or lacks the reference of `zscore`.
        """
        known = [head.name for head in heads]
        if unknown := [name for name in self.weights if name not in known]:
            near = get_close_matches(unknown[0], known, 1)
            raise UsageError(
                f"unknown head {', '.join(unknown)}; this model has: {', '.join(known)}."
                + (f" Did you mean {near[0]}?" if near else "")
            )
        self.bounds(heads)

    def bounds(self, heads: Sequence[Head], songs: int | None = None) -> tuple[float, float]:
        """The lowest and the highest reward that a song can get, from the ranges of the heads.

        Args:
            heads: of the model.
            songs: size of the largest group; read by `group` only, where a z-score among n songs
                lies within sqrt(n - 1). None: groups of any size, which have no bounds.

        Returns:
            Infinite with embeddings.
        """
        if self.embedding_weights is not None:
            return -math.inf, math.inf
        bound = math.inf if songs is None else math.sqrt(max(songs - 1, 0))
        ranges = {head.name: head for head in heads}
        low = high = 0.0
        for name, weight in self.weights.items():
            head, ends = ranges[name], (-bound, bound)
            if self.normalization != "group":
                ends = self._scaled(head, head.low), self._scaled(head, head.high)
            if weight:
                low += min(weight * end for end in ends)
                high += max(weight * end for end in ends)
        return low, high

    def with_reference(self, songs: Scores | str | Path) -> RewardMix:
        """The same mix with `zscore` statistics of a set of songs (population std).

        Args:
            songs: their Scores, or a `.jsonl`, `.csv` or `.parquet` file with a column per head,
                as `apex-reward score --output` writes it. Rows without a score are left out.

        Raises:
            UsageError: a head that the songs lack, or that does not vary over them.
        """
        rows = songs.rows() if isinstance(songs, Scores) else read_rows(songs)
        reference = {}
        for head in self.weights:
            column = [float(row[head]) for row in rows if row.get(head) is not None]
            reference[head] = (fmean(column), pstdev(column)) if column else (math.nan, math.nan)
        return replace(self, normalization="zscore", reference=reference)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form, read by `from_dict`; `config.mix` and `config.preference` hold it."""
        reference, vector = self.reference or {}, self.embedding_weights
        plain = {
            "weights": dict(self.weights),
            "normalization": self.normalization,
            "reference": {head: list(pair) for head, pair in reference.items()} or None,
        }
        if vector is None and not self.fitted:
            return plain
        return {**plain, "embedding_weights": vector and list(vector), "fitted": dict(self.fitted)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RewardMix:
        """Rebuild what `to_dict` wrote; raises UsageError where it is not that."""
        reference, vector = values.get("reference"), values.get("embedding_weights")
        try:
            return cls(
                dict(values["weights"]),
                values.get("normalization", "none" if "embedding_weights" in values else "range"),
                reference and {head: (pair[0], pair[1]) for head, pair in reference.items()},
                vector and tuple(vector),
                dict(values.get("fitted") or {}),
            )
        except (KeyError, TypeError) as error:
            raise UsageError(f"{values!r} is no saved mix: {error!r}") from error

    def _scaled(self, head: Head, score: Value) -> Value:
        """A score in the units of `range`, `zscore` or `none`."""
        if self.normalization == "none":
            return score
        if self.normalization == "range":
            if not head.bounded:
                raise UsageError(
                    f"head {head.name} ranges from {head.low:g} to {head.high:g}, which cannot be "
                    "mapped to [0, 1]; use the normalisation zscore or none"
                )
            return (score - head.low) / (head.high - head.low)
        if self.reference is None:
            raise UsageError(
                "this mix normalises by zscore but has no reference; "
                "call mix.with_reference(scores or a file of scores) first"
            )
        mean, std = self.reference[head.name]
        return (score - mean) / std


def _standardized_in_groups(score: Tensor, groups: Tensor | None) -> Tensor:
    """(B,) scores to zero mean and unit population std within each group; constant groups to 0."""
    if groups is None:
        groups = torch.zeros(score.shape[0], dtype=torch.long)
    names, index = torch.unique(groups.to(score.device), return_inverse=True)
    empty = score.new_zeros(len(names))
    count = empty.index_add(0, index, torch.ones_like(score))
    centred = score - (empty.index_add(0, index, score) / count)[index]
    variance = (empty.index_add(0, index, centred**2) / count)[index]
    # Rounding alone leaves a spread of about eps * score; dividing by it would make noise a reward.
    size = (empty.index_add(0, index, score.detach().abs()) / count)[index]
    rounding = 8 * torch.finfo(score.dtype).eps * size
    varies = variance > rounding**2
    return torch.where(varies, centred / torch.where(varies, variance, 1.0).sqrt(), 0.0)
