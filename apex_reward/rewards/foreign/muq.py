"""Reward models of a MuQ and a small head: one way to save, load and read the published files.

Shape key: W = MuQ's width (1024), n = samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from apex_reward.errors import CheckpointError
from apex_reward.model.encode import EncodedModel
from apex_reward.model.encoders.muq import MuqConfig, MuqEncoder, MuqSongs
from apex_reward.model.encoders.muq_files import (
    ANCHOR,
    PUBLISHED_MUQ,
    load_muq,
    read_muq_config,
    split_muq,
)
from apex_reward.model.encoders.products import FastProducts
from apex_reward.model.files import (
    encoder_path,
    hub_options,
    load_checked,
    local_path,
    prefix_before,
    read_config,
    read_model,
    read_weights,
    weight_file,
    without_prefix,
    write_folder,
)
from apex_reward.model.precision import FrozenModel, in_full_precision, placed
from apex_reward.model.source import Source, with_source


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

    published: ClassVar[str | None] = None  # what the model's short name stands for on the hub
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

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json`, whole or not at all."""
        config = {"model_type": self.model_type(), "muq": asdict(self.encoder.config)}
        write_folder(folder, {**config, **self.widths}, self.state_dict())

    @classmethod
    def model_type(cls) -> str:
        """What a saved folder's `config.json` says it is."""
        return f"apex_reward_{cls.name.replace('-', '_')}"

    @classmethod
    def from_pretrained(
        cls, name: str | Path | None = None, *, encoder: str | Path | None = None, **options: Any
    ) -> Self:
        """Load a folder of `save_pretrained` or `apex-reward import`, or the published file.

        Args:
            name: that folder; a published file, its folder or hub id; None is the published one.
            encoder: hub id or folder of the MuQ for a published head; as in `from_published`.
            options: `dtype` of the encoder (the rest keeps float32), `device_map`, and the hub's
                (`revision`, `cache_dir`, `token`, ...).

        Raises:
            CheckpointError: nothing there, not such a model, or any missing or misshapen tensor.
        """
        hub = hub_options(options)
        name = name or cls.name
        short = str(name) == cls.name and not Path(name).exists()
        path = local_path(cls._on_hub() if short else name, **hub)
        ours = (path / "config.json").is_file()
        if ours and cls.published:
            ours = read_config(path).get("model_type") == cls.model_type()
        if not ours:
            model = cls.from_published(path, encoder, **options, **hub)
            return with_source(model, Source.of_kind(cls.name, name, encoder=encoder, **hub))
        model = read_model(path, cls.model_type(), cls._of_config)
        return with_source(placed(model, **options), Source.of_kind(cls.name, name, **hub))

    @classmethod
    def from_published(
        cls,
        predictor: str | Path | None = None,
        encoder: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Compose the published head with a MuQ.

        Args:
            predictor: the head's file, or a folder or hub id that holds it.
            encoder: hub id or folder of a MuQ in the layout of MuQ-large-msd-iter: gives its sizes,
                and its weights where the head's file holds none. None takes the published sizes
                where the file holds the weights, else the hub's MuQ.
            options: as in `from_pretrained`.

        Raises:
            CheckpointError: as in `from_pretrained`.
        """
        hub = hub_options(options)
        predictor = predictor or cls._on_hub()
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
        load_muq(source, model.encoder, muq)
        named = Source.of_kind(cls.name, predictor, encoder=encoder, **hub)
        return with_source(placed(model, **options), named)

    @classmethod
    def _on_hub(cls) -> str:
        if cls.published is None:
            raise CheckpointError(cls.how)
        return cls.published

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
    def _of_config(cls, config: Mapping[str, Any]) -> Self:
        widths = {key: value for key, value in config.items() if key not in ("model_type", "muq")}
        return cls._empty(MuqConfig(**config["muq"]), widths)

    @classmethod
    def _empty(cls, config: MuqConfig, widths: Mapping[str, int]) -> Self:
        # Nothing is drawn at random only to be thrown away.
        with torch.device("meta"):
            return cls(config, **widths)
