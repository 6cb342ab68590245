"""`ApexConfig`: everything needed to build an `ApexReward` and to read its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import HubertConfig, PreTrainedConfig

from apex_reward.audio.segment import SEGMENT_TAILS
from apex_reward.errors import UsageError
from apex_reward.model.predictor import (
    PUBLISHED_HEAD_WIDTHS,
    Predictor,
    PredictorEnsemble,
    StudentHeads,
    published_trunk_widths,
)
from apex_reward.scores.apex import known_heads, task_heads
from apex_reward.scores.head import Head

PUBLISHED_MODEL = "amaai-lab/apex"
PUBLISHED_ENCODER = "m-a-p/MERT-v1-95M"
STUDENT = "student"
# Where MERT-v1-95M differs from transformers' HuBERT defaults.
MERT_95M: dict[str, Any] = {
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "feat_proj_dropout": 0.1,
    "layerdrop": 0.05,
    "attn_implementation": "sdpa",
}


class ApexConfig(PreTrainedConfig):
    """Configuration of `ApexReward`.

    Args:
        encoder: settings of the HuBERT encoder that differ from MERT-v1-95M's; of a student
            `kind: student` and the fields of `StudentConfig`.
        encoder_name: hub id or folder of the encoder, for a checkpoint without one.
        layers: indices of the hidden states that are averaged over time; 0 is the transformer's
            input. The published weights were trained with 2, 5, 8 and 12.
        task: `popularity` (two heads) or `full` (seven).
        shared: trunk layers, 2 or 3.
        trunk_widths, head_widths: hidden widths; None and (128, 64) are the published ones.
        trunk_dropout, head_dropout: rates in [0, 1) while a predictor trains.
        members: predictors of the ensemble that share encoder and pooling; 1 where there is none.
        spread_scale: per head, in order, what an ensemble's spread times 2 must be multiplied by
            to hold 95% of the validation songs; None where it was not fitted.
        familiar: whether the checkpoint holds statistics of the songs it was trained on.
        sample_rate: the encoder's rate, Hz.
        segment_seconds: length of a segment; times `sample_rate` a whole number of samples.
        segment_tail: `pad`, `mask` or `drop`: how a song's last segment counts.
        batch_segments: segments per encoder batch, unless a call sets it.
        mix: a saved `RewardMix` (its dict), used unless a call names one.
        preference: a saved `RewardMix` (its dict), offered as the mix `preference`.
        demonstration: True for a model that only demonstrates (apex-tiny); outputs say so.
        own_heads: of a student, `[name, low, high]` per head, None for no bound; None takes the
            task's.
        distilled: of a student: its teacher, the teacher's licences, `correlation` of their mixed
            rewards on held-out songs.
    """

    model_type = "apex_reward"

    def __init__(
        self,
        encoder: Mapping[str, Any] | None = None,
        encoder_name: str | None = PUBLISHED_ENCODER,
        layers: Sequence[int] = (2, 5, 8, 12),
        task: str = "full",
        shared: int = 2,
        trunk_widths: Sequence[int] | None = None,
        head_widths: Sequence[int] = PUBLISHED_HEAD_WIDTHS,
        trunk_dropout: float = 0.3,
        head_dropout: float = 0.1,
        members: int = 1,
        spread_scale: Sequence[float] | None = None,
        familiar: bool = False,
        sample_rate: int = 24_000,
        segment_seconds: float = 30.0,
        segment_tail: str = "pad",
        batch_segments: int = 4,
        mix: Mapping[str, Any] | None = None,
        preference: Mapping[str, Any] | None = None,
        demonstration: bool = False,
        own_heads: Sequence[Sequence[Any]] | None = None,
        distilled: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder = dict(encoder or {})
        self.encoder_name = encoder_name
        self.layers = list(layers)
        self.task = task
        self.shared = shared
        self.trunk_widths = list(trunk_widths or published_trunk_widths(shared))
        self.head_widths = list(head_widths)
        self.trunk_dropout = trunk_dropout
        self.head_dropout = head_dropout
        self.members = members
        self.spread_scale = list(spread_scale) if spread_scale is not None else None
        self.familiar = familiar
        self.sample_rate = sample_rate
        self.segment_seconds = segment_seconds
        self.segment_tail = segment_tail
        self.batch_segments = batch_segments
        self.mix = dict(mix) if mix else None
        self.preference = dict(preference) if preference else None
        self.demonstration = demonstration
        self.own_heads = None if own_heads is None else [list(head) for head in own_heads]
        self.distilled = dict(distilled) if distilled else None
        super().__init__(**kwargs)
        self._check()

    def encoder_config(self) -> HubertConfig:
        """The encoder's full HuBERT configuration."""
        return HubertConfig(**{**MERT_95M, **self.encoder})

    @property
    def student(self) -> bool:
        """Whether the encoder is that of a student."""
        return self.encoder.get("kind") == STUDENT

    def predictor(self) -> Predictor | PredictorEnsemble | StudentHeads:
        """An untrained predictor, or ensemble of them, of the configured shape."""
        if self.student:
            return StudentHeads(self.width, self.heads, self.head_widths[0], self.members)
        members = [
            Predictor(
                width=self.width,
                task=self.task,
                shared=self.shared,
                trunk_widths=self.trunk_widths,
                head_widths=self.head_widths,
                dropout=(self.trunk_dropout, self.head_dropout),
            )
            for _ in range(self.members)
        ]
        return members[0] if len(members) == 1 else PredictorEnsemble(members)

    @property
    def width(self) -> int:
        """W, the width of an embedding (768 published)."""
        return int(self.encoder.get("hidden_size", 768))

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads of the task with their ranges, in order."""
        if self.own_heads is None:
            return tuple(known_heads(task_heads(self.task)))
        return tuple(Head.of(*head) for head in self.own_heads)

    @property
    def head_names(self) -> tuple[str, ...]:
        """The names of the heads, in order."""
        return tuple(head.name for head in self.heads)

    @property
    def segment_samples(self) -> int:
        """Samples of a segment (720,000 published)."""
        return round(self.segment_seconds * self.sample_rate)

    def _check(self) -> None:
        depth = int(self.encoder.get("num_hidden_layers", 12))
        layers, heads, scales = self.layers, len(self.head_names), self.spread_scale or ()
        rising = bool(layers) and layers == sorted(set(layers))
        checks = [
            (self.segment_tail in SEGMENT_TAILS, "segment_tail is", f"one of {SEGMENT_TAILS}"),
            (
                rising and 0 <= layers[0] <= layers[-1] <= depth,
                "layers are",
                f"indices from 0 to {depth}, rising, each once",
            ),
            (self.batch_segments > 0, "batch_segments is", "1 or more"),
            (self.segment_samples > 0, "segment_seconds is", "more than 0"),
            (self.members > 0, "members is", "1 or more"),
        ]
        problems = [
            f"{name} {getattr(self, name.split()[0])!r}; expected {wanted}"
            for holds, name, wanted in checks
            if not holds
        ]
        if len(scales) not in (0, heads):
            problems.append(
                f"spread_scale has {len(scales)} values; expected one for each of {heads} heads"
            )
        if problems:
            raise UsageError("ApexConfig: " + "; ".join(problems))
