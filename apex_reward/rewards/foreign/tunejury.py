"""TuneJury: a preference reward over CLAP and MERT-v1-330M, natively and differentiably.

Layout and arithmetic are those of the published model (github.com/yonghyunk1m/TuneJury, CC BY-NC
4.0).

Shape key: B = songs, C = CLAP's width (512), W = MERT's width (1024).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apex_reward.model.encoded import EncodedModel, Prompts, SongEncoder
from apex_reward.model.encoders.clap import ClapEncoder
from apex_reward.model.encoders.mert import MertEncoder
from apex_reward.model.encoders.mert_songs import MertSongs
from apex_reward.model.frozen import FrozenModule
from apex_reward.model.precision import in_full_precision
from apex_reward.rewards.foreign.texts import texts_of
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

PREFERENCE = Head("preference")
PUBLISHED_WIDTHS = (1024, 512, 256, 128)


class TuneJury(EncodedModel, FrozenModule):
    """How much listeners would prefer a song, as log-odds: one head `preference`, unbounded.

    The difference of two songs' scores is the log-odds that the first is preferred. It hears the
    song twice: through CLAP (48 kHz, all windows of 10 s; their mean is scaled to length 1, as
    every embedding was that the head was trained on, where the published code takes one random
    window), and through MERT (24 kHz, in one pass). It reads the prompt; an empty one is allowed
    and stands for zeros, as published. Always in eval mode; weights are frozen, gradients reach
    the waveform. The head and CLAP compute in float32.

    Args:
        clap: both towers of the CLAP that `clap` uses.
        mert: gives the time-mean of its last hidden state.
        widths: of the head's hidden layers.
    """

    name = "tunejury"
    reads_text = True

    def __init__(
        self, clap: ClapEncoder, mert: MertEncoder, widths: Sequence[int] = PUBLISHED_WIDTHS
    ) -> None:
        super().__init__()
        self.clap, self.mert = clap, mert
        self.head = TuneJuryHead(2 * clap.width + mert.config.hidden_size, widths)
        self.requires_grad_(False)
        self.eval()

    @property
    def heads(self) -> tuple[Head, ...]:
        """`preference`, without bounds."""
        return (PREFERENCE,)

    @property
    def encoders(self) -> tuple[SongEncoder, ...]:
        """CLAP, with song features (B, C), and MERT, with (B, W)."""
        return self.clap, MertSongs(self.mert)

    def score_features(self, features: Sequence[Tensor], prompts: Prompts = None) -> Scores:
        """Preference of song features, (B, C) of CLAP and (B, W) of MERT.

        Raises:
            UsageError: no prompts at all; an empty text is allowed.
        """
        texts = texts_of(self.name, prompts, "prompt", empty=True)
        dtype = next(self.head.parameters()).dtype
        heard = [F.normalize(features[0].to(dtype), dim=1), features[1].to(dtype)]
        values = in_full_precision(self.head, torch.cat([*heard, self._read(texts)], dim=1))
        return Scores({PREFERENCE.name: values}, self.heads)

    def set_encoder_dtype(self, dtype: torch.dtype) -> None:
        """The number type of MERT; CLAP and the head keep float32."""
        torch.nn.Module.to(self.mert, dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and CLAP in `clap/`, whole or not at all."""
        from apex_reward.rewards.foreign.tunejury_files import save_tunejury

        save_tunejury(self, folder)

    @classmethod
    def from_pretrained(cls, name: str | Path, **hub: Any) -> TuneJury:
        """Load a folder of `save_pretrained` or `apex-reward import --kind tunejury`.

        Args:
            name: that folder, or a hub id in its layout.
            hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Raises:
            CheckpointError: nothing there, not such a model, or any missing, extra or misshapen
                tensor.
        """
        from apex_reward.rewards.foreign.tunejury_files import load_tunejury

        return load_tunejury(name, **hub)

    @classmethod
    def from_published(
        cls,
        predictor: str | Path,
        encoder: str | Path | None = None,
        clap: str | Path | None = None,
        **hub: Any,
    ) -> TuneJury:
        """Compose the published files; the `.pt` is read as plain tensors, code in it is not run.

        Args:
            predictor: the head's `.pt`: a state dict, or one under `state_dict`.
            encoder: folder or hub id of MERT; None is `m-a-p/MERT-v1-330M`.
            clap: folder or hub id of CLAP in transformers' layout; None is
                `laion/larger_clap_music`.
            hub: as in `from_pretrained`.

        Raises:
            CheckpointError: as in `from_pretrained`.
        """
        from apex_reward.rewards.foreign.tunejury_files import compose_tunejury

        return compose_tunejury(predictor, encoder, clap, **hub)

    def _read(self, texts: list[str]) -> Tensor:
        """Text embeddings (B, C), zeros for an empty prompt."""
        embedded = iter(self.clap.text([text for text in texts if text]))
        place = next(self.head.parameters())
        rows = [next(embedded) if text else place.new_zeros(self.clap.width) for text in texts]
        return torch.stack(rows) if rows else place.new_zeros(0, self.clap.width)


class TuneJuryHead(nn.Module):
    """Features (B, 2C + W) to (B,) log-odds: Linear, BatchNorm, ReLU and dropout per layer.

    Order of the features: CLAP's audio, MERT, CLAP's text. Tensor names are the published ones.
    """

    def __init__(self, features: int, widths: Sequence[int] = PUBLISHED_WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout()]
            features = width
        self.net = nn.Sequential(*layers, nn.Linear(features, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Log-odds, (B,)."""
        return self.net(features)[:, 0]
