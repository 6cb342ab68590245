"""TuneJury: a preference reward over CLAP and MERT-v1-330M, natively and differentiably.

Layout and arithmetic are those of the published model (github.com/yonghyunk1m/TuneJury).

Shape key: B = songs, C = CLAP's width (512), W = MERT's width (1024).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HubertConfig

from apex_reward.errors import CheckpointError
from apex_reward.files.atomic import atomic
from apex_reward.model.checkpoint import load_mert, read_encoder_config
from apex_reward.model.config import MERT_95M
from apex_reward.model.encode import EncodedModel, Prompts, SongEncoder
from apex_reward.model.encoders.clap import (
    PUBLISHED_CLAP,
    ClapEncoder,
    load_clap,
    save_clap,
)
from apex_reward.model.encoders.mert import MertEncoder, MertSongs, whole_song_mert
from apex_reward.model.files import (
    check_unused,
    encoder_path,
    load_checked,
    local_path,
    read_folder,
    read_weights,
    without_prefix,
    write_folder,
)
from apex_reward.model.licences import CLAP, CODE, Licence, licence, mert
from apex_reward.model.precision import FrozenModule, cast_encoder, in_full_precision
from apex_reward.model.source import Source, with_source
from apex_reward.rewards.foreign.called import texts_of
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

PREFERENCE = Head("preference")
MODEL_TYPE = "apex_reward_tunejury"
REPOSITORY = "https://github.com/yonghyunk1m/TuneJury"
PUBLISHED_MERT = "m-a-p/MERT-v1-330M"
PARTS = ("mert.", "head.")
PUBLISHED_WIDTHS = (1024, 512, 256, 128)


class TuneJury(EncodedModel, FrozenModule):
    """How much listeners would prefer a song, as log-odds: one head `preference`, unbounded.

    The difference of two songs' scores is the log-odds that the first is preferred. Two encoders
    encode the song. CLAP (48 kHz) takes all windows of 10 s, weighted by their real audio; their
    mean is scaled to length 1, as the head's training embeddings were. The published code takes one
    random window. MERT (24 kHz) takes the song in one pass. The model reads the prompt; an empty
    one is allowed and stands for zeros, as published. Always in eval mode; weights are frozen,
    gradients reach the waveform. The head and CLAP compute in float32.

    Args:
        clap: both towers of the CLAP that `clap` uses.
        mert: gives the time-mean of its last hidden state.
        widths: of the head's hidden layers.
    """

    name, heads = "tunejury", (PREFERENCE,)
    reads_text = True
    licences: ClassVar[list[Licence]] = [
        CODE, licence("TuneJury head", "CC BY-NC 4.0", False, REPOSITORY), CLAP,
        mert("m-a-p/MERT-v1-330M"),
    ]  # fmt: skip

    def __init__(
        self, clap: ClapEncoder, mert: MertEncoder, widths: Sequence[int] = PUBLISHED_WIDTHS
    ) -> None:
        super().__init__()
        self.clap, self.mert = clap, mert
        self.head = TuneJuryHead(2 * clap.width + mert.config.hidden_size, widths)
        self.requires_grad_(False)
        self.eval()

    @property
    def encoders(self) -> tuple[SongEncoder, ...]:
        """CLAP, with song features (B, C), and MERT, with (B, W)."""
        return self.clap, MertSongs(self.mert)

    def score_features(self, features: Sequence[Tensor], prompts: Prompts = None) -> Scores:
        """Preference of song features, (B, C) of CLAP and (B, W) of MERT."""
        texts = texts_of(self.name, prompts, "prompt", empty=True)
        dtype = next(self.head.parameters()).dtype
        audio = [F.normalize(features[0].to(dtype), dim=1), features[1].to(dtype)]
        values = in_full_precision(self.head, torch.cat([*audio, self._read(texts)], dim=1))
        return Scores({PREFERENCE.name: values}, self.heads)

    def set_encoder_dtype(self, dtype: torch.dtype | str) -> None:
        """Compute MERT's products in `dtype`; CLAP and the head keep float32."""
        cast_encoder(self.mert, dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and CLAP in `clap/`, whole or not at all."""
        tensors = {n: value for n, value in self.state_dict().items() if n.startswith(PARTS)}
        settings = self.mert.config.to_diff_dict()
        with atomic(check_unused(folder)) as temporary:
            write_folder(temporary, {"model_type": MODEL_TYPE, "mert": settings}, tensors)
            save_clap(self.clap, temporary / "clap")

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
        if str(name) == cls.name:
            raise CheckpointError(
                "tunejury has no folder on the hub that can be read as it is: fetch its .pt from "
                f"{REPOSITORY}, run `apex-reward import --kind tunejury`, and name the folder "
                "(tunejury:FOLDER)"
            )
        folder = local_path(name, **hub)
        config, file, content = read_folder(folder, MODEL_TYPE)
        mert = whole_song_mert(HubertConfig(**config.get("mert", {})))
        load_checked(mert, file, without_prefix("mert.", content))
        head, towers = without_prefix("head.", content), load_clap(folder / "clap")
        model = cls(towers, mert, _widths(file, head))
        load_checked(model.head, file, head)
        return with_source(model, Source.of_kind(cls.name, name, **hub))

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
        file, head = _published_head(local_path(predictor, **hub))
        folder = encoder_path(encoder or PUBLISHED_MERT, **hub)
        mert = whole_song_mert(HubertConfig(**{**MERT_95M, **read_encoder_config(folder)}))
        load_mert(mert, folder)
        model = cls(load_clap(clap or PUBLISHED_CLAP, **hub), mert, _widths(file, head))
        load_checked(model.head, file, head)
        return model

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


def _published_head(path: Path) -> tuple[Path, dict[str, Tensor]]:
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if len(files) != 1:
        raise CheckpointError(f"{path} holds {len(files)} .pt files; name TuneJury's own")
    content = read_weights(files[0])
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    return files[0], dict(content) if isinstance(content, Mapping) else {}


def _widths(file: Path, head: Mapping[str, Tensor]) -> list[int]:
    """Widths of the hidden layers, from the batch norms' means."""
    means = [re.fullmatch(r"net\.(\d+)\.running_mean", str(name)) for name in head]
    layers = sorted(int(found[1]) for found in means if found)
    if not layers:
        raise CheckpointError(
            f"{file} is not TuneJury's head: expected tensors named net.0.weight, ..., "
            "net.1.running_mean, ..."
        )
    return [len(head[f"net.{layer}.running_mean"]) for layer in layers]
