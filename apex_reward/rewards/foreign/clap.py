"""CLAP as a reward model: how well a song fits its prompt.

Shape key: B = songs, D = embedding width (512).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from apex_reward.model.encode import EncodedModel, Prompts, SongEncoder
from apex_reward.model.encoders.clap import PUBLISHED_CLAP, ClapEncoder, load_clap, save_clap
from apex_reward.model.licences import CLAP, CODE, Licence
from apex_reward.model.precision import FrozenModule
from apex_reward.model.source import Source, with_source
from apex_reward.rewards.foreign.called import texts_of
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

ADHERENCE = Head("adherence", -1.0, 1.0)


class Clap(EncodedModel, FrozenModule):
    """Prompt adherence: the mean over a song's 10-second windows of cosine(window, prompt).

    Windows weigh by their real audio. The model encodes the whole song as 48 kHz mono, without the
    random crop of published pipelines. Always in eval mode and in float32; weights are frozen,
    gradients reach the waveform.

    Args:
        encoder: both towers; `Clap.from_pretrained` reads them.
    """

    name, heads = "clap", (ADHERENCE,)
    reads_text = True
    licences: ClassVar[list[Licence]] = [CODE, CLAP]

    def __init__(self, encoder: ClapEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def encoders(self) -> tuple[SongEncoder, ...]:
        """The audio tower; its song feature is (B, D)."""
        return (self.encoder,)

    def score_features(self, features: Sequence[Tensor], prompts: Prompts = None) -> Scores:
        """Adherence of song features (B, D) to B prompts.

        Raises:
            UsageError: a song without a prompt.
        """
        texts = texts_of(self.name, prompts, "prompt")
        cosines = (features[0] * self.encoder.text(texts).to(features[0])).sum(dim=1)
        return Scores({ADHERENCE.name: cosines}, self.heads)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder in transformers' layout, whole or not at all."""
        save_clap(self.encoder, folder)

    @classmethod
    def from_pretrained(cls, name: str | Path = "clap", **hub: Any) -> Clap:
        """Load a folder or hub id in transformers' layout.

        Args:
            name: `clap` is `laion/larger_clap_music`.
            hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Raises:
            CheckpointError: as `apex_reward.model.encoders.clap_files.load_clap`.
        """
        model = cls(load_clap(PUBLISHED_CLAP if str(name) == "clap" else name, **hub))
        return with_source(model, Source.of_kind(cls.name, name, **hub))
