"""Reward models of a MuQ and a small head, and the readers of the published files.

Shape key: W = MuQ's width (1024), n = samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2ConformerConfig

from apex_reward.errors import CheckpointError
from apex_reward.model.encode import EncodedModel
from apex_reward.model.encoders.muq import HOP, MELS, MuqConfig, MuqEncoder, MuqSongs
from apex_reward.model.encoders.products import FastProducts
from apex_reward.model.files import (
    encoder_path,
    load_checked,
    local_path,
    prefix_before,
    read_config,
    read_weights,
    weight_file,
    without_prefix,
)
from apex_reward.model.precision import FrozenModel, in_full_precision

PUBLISHED_MUQ = "OpenMuQ/MuQ-large-msd-iter"
# The first tensor of a MuQ: what stands before it is the prefix of its file.
ANCHOR = "conv.conv.0.conv1.weight"
# Parts of the file that no hidden state depends on: training targets, the class token, and the
# convolutional positions, which rotary ones replace.
UNUSED = (
    "cls_token", "quantizer", "rvq", "linear.", "conformer.pos_conv_embed.",
    "conformer.embed_positions.", "conformer.layer_norm.", "conformer.layers.",
)  # fmt: skip
FEATURE = "melspec_2048"


class PooledMuq(MuqSongs):
    """Whole songs through MuQ and what makes one vector of its hidden states.

    Args:
        muq: gives hidden states (1, F, W).
        head: module that pools them.
        weights: the modules that the feature depends on, MuQ aside; None is the head.
    """

    def __init__(
        self, muq: MuqEncoder, head: nn.Module, weights: Sequence[nn.Module] | None = None
    ) -> None:
        super().__init__(muq)
        self.head, self.pooling = head, weights or [head]

    def encode(self, samples: Tensor, real: Tensor | None) -> Tensor:
        """The feature of one song (1, n)."""
        with FastProducts():
            return in_full_precision(self.head, self.muq(samples))

    def weights(self) -> Sequence[nn.Module]:
        """MuQ and the pooling."""
        return (self.muq, *self.pooling)


class MuqModel(EncodedModel, FrozenModel):
    """Base of reward models of a MuQ (`encoder`) and a head.

    A subclass is built from MuQ's sizes and its own `widths`, and states the published layout.
    """

    how: ClassVar[str]  # what helps where a published file cannot be read
    title: ClassVar[str]  # of the published file, for messages
    head_file: ClassVar[str] = "model_state_dict.pt"  # of a published folder
    anchors: ClassVar[Mapping[str, str]]  # matrices whose rows give the widths
    strict: ClassVar[bool] = True  # whether unknown tensors of the file are refused
    encoder: MuqEncoder
    widths: dict[str, int]

    def head_modules(self) -> nn.Module:
        """The head, as a module whose tensors have their published names."""
        raise NotImplementedError

    @classmethod
    def from_published(
        cls,
        predictor: str | Path,
        encoder: str | Path | None = None,
        **hub: Any,
    ) -> Self:
        """Compose the published head with a MuQ.

        Args:
            predictor: the head's file, or a folder or hub id that holds it.
            encoder: hub id or folder of a MuQ in the layout of MuQ-large-msd-iter: gives its sizes,
                and its weights where the head's file holds none. None takes the published sizes
                where the file holds the weights, else the hub's MuQ.
            hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Raises:
            CheckpointError: nothing there, not such a model, or any missing or misshapen tensor.
        """
        file, head = cls._read_head(local_path(predictor, **hub))
        with_muq = any(name.endswith(ANCHOR) for name in head)
        source, config = file, MuqConfig()
        if encoder is not None or not with_muq:
            folder = encoder_path(encoder or PUBLISHED_MUQ, **hub)
            config = read_muq_config(folder)
            source = file if with_muq else weight_file(folder)
        model = cls._empty(config, {key: len(head[name]) for key, name in cls.anchors.items()})
        if with_muq:
            muq, head = split_muq(file, head)
        else:
            muq, _ = split_muq(source, read_weights(source))
        load_checked(model.head_modules(), file, head, None if cls.strict else ())
        load_checked(model.encoder, source, muq, UNUSED)
        return model

    @classmethod
    def _read_head(cls, path: Path) -> tuple[Path, dict[str, Tensor]]:
        """The published file of a path, and its tensors without the head's common prefix.

        Raises:
            CheckpointError: no such file, or without the matrices that give the widths.
        """
        inside = path / cls.head_file
        file = inside if inside.is_file() else weight_file(path)
        try:
            content = read_weights(file)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. What helps: {cls.how}") from error
        first, *_ = anchors = list(cls.anchors.values())
        tensors = without_prefix(prefix_before(first, file, content, f"no {cls.title}"), content)
        if lacking := [name for name in anchors if getattr(tensors.get(name), "ndim", 0) != 2]:
            raise CheckpointError(
                f"{file} is no {cls.title}: expected matrices named {', '.join(lacking)}"
            )
        return file, tensors

    @classmethod
    def _empty(cls, config: MuqConfig, widths: Mapping[str, int]) -> Self:
        # Nothing is drawn at random only to be thrown away.
        with torch.device("meta"):
            return cls(config, **widths)


def read_muq_config(folder: Path) -> MuqConfig:
    """Sizes and constants of a published MuQ's `config.json`.

    Raises:
        CheckpointError: no such file, or settings that change its arithmetic and are not supported,
            all listed.
    """
    values, file = read_config(folder), folder / "config.json"
    try:
        width, inner = values["encoder_dim"], Wav2Vec2ConformerConfig(**values["w2v2_config"])
    except Exception as error:  # transformers' validation raises several types
        raise CheckpointError(
            f"{file} is no MuQ configuration; expected the files of {PUBLISHED_MUQ}: {error!r}"
        ) from error
    fixed = {
        "features": (values.get("features", [FEATURE]), [FEATURE]),
        "hop_length": (values.get("hop_length", HOP), HOP),
        "n_mels": (values.get("n_mels", MELS), MELS),
        "label_rate": (values.get("label_rate", 25), 25),
        "position_embeddings_type": (inner.position_embeddings_type, "rotary"),
    }
    odd = [f"{name} {found!r} (expected {want!r})" for name, (found, want) in fixed.items()
           if found != want]  # fmt: skip
    if odd:
        raise CheckpointError(f"{file} sets {'; '.join(odd)}: not supported")
    stat = values.get("stat") or {}
    return MuqConfig(
        width=width,
        depth=values.get("encoder_depth", MuqConfig.depth),
        heads=inner.num_attention_heads,
        feed_forward=inner.intermediate_size,
        activation=inner.hidden_act,
        kernel=inner.conv_depthwise_kernel_size,
        channels=values.get("conv_dim", MuqConfig.channels),
        rotary_base=inner.rotary_embedding_base,
        norm_eps=inner.layer_norm_eps,
        mean=stat.get(f"{FEATURE}_mean", MuqConfig.mean),
        std=stat.get(f"{FEATURE}_std", MuqConfig.std),
    )


def split_muq(file: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """MuQ's tensors without their prefix, and the rest of a file's.

    Raises:
        CheckpointError: no MuQ, or several, in the file.
    """
    prefix = prefix_before(ANCHOR, file, content, "no MuQ")
    rest = {name: value for name, value in content.items() if not name.startswith(prefix)}
    return without_prefix(prefix, content), rest
