"""Load and save: whole models, predictor-only folders, and compositions of published files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from apex_reward.errors import CheckpointError, listed
from apex_reward.model.config import PUBLISHED_ENCODER, ApexConfig
from apex_reward.model.files import (
    INDEX,
    check_tensors,
    encoder_path,
    hub_options,
    in_float32,
    local_path,
    read_config,
    read_weights,
    tensor_names,
    weight_file,
    without_prefix,
    write_tensors,
)
from apex_reward.model.precision import dtype_option, one_device
from apex_reward.model.predictor import (
    Familiarity,
    LayerPooling,
    Predictor,
    PredictorEnsemble,
    members_of,
)
from apex_reward.model.published import (
    Parts,
    read_encoder_config,
    read_encoder_state,
    read_predictor,
    untrained_parts,
)

ENCODER = "encoder."


def load_model(cls: Any, name: str | Path, encoder: str | Path | None, **kwargs: Any) -> Any:
    """`ApexReward.from_pretrained`: see there."""
    hub = hub_options(kwargs)
    path = local_path(name, **hub)
    if not _is_native(path):
        named = read_config(path).get("mert_model_name") if path.is_dir() else None
        return compose(cls, read_predictor(path), encoder or named, hub, **kwargs)
    if encoder is None and _holds_encoder(path):
        return _load_whole(cls, path, **kwargs)
    kwargs.pop("config", None)  # AutoModel passes what it read in the folder
    parts = load_parts(path)
    if encoder is None and parts.config.encoder_name is None:
        raise CheckpointError(
            f"{path} holds no encoder and its config.json names none; pass encoder= "
            "(--encoder on the command line)"
        )
    return compose(cls, parts, encoder or parts.config.encoder_name, hub, **kwargs)


def load_parts(path: str | Path) -> Parts:
    """Predictor or ensemble, layer pooling and familiarity without an encoder, in eval mode.

    Args:
        path: a folder of `save_predictor` or `save_pretrained`, `apex-tiny`, or a published
            `best_model.pt` (or a folder or hub id that holds one).

    Raises:
        CheckpointError: as `ApexReward.from_pretrained`.
    """
    path = local_path(path)
    if not _is_native(path):
        return read_predictor(path)
    parts = untrained_parts(ApexConfig.from_pretrained(path))
    file = weight_file(path)
    tensors = {n: value for n, value in read_weights(file).items() if not n.startswith(ENCODER)}
    check_tensors(file, tensors, _state(parts))
    for name, module in parts.modules().items():
        module.load_state_dict(in_float32(without_prefix(f"{name}.", tensors)), assign=True)
    return parts


def save_predictor(
    folder: str | Path,
    config: ApexConfig,
    predictor: Predictor | PredictorEnsemble,
    pooling: LayerPooling,
    familiar: Familiarity | None = None,
) -> None:
    """Write a `save_pretrained` folder without the encoder, which `config.encoder_name` names.

    The configuration that is written states how many members there are and whether the statistics
    of the training songs are there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = ApexConfig.from_dict(config.to_dict())
    config.members, config.familiar = len(members_of(predictor)), familiar is not None
    write_tensors(folder / "model.safetensors", _state(Parts(config, predictor, pooling, familiar)))
    config.save_pretrained(folder)


def compose(
    cls: Any,
    parts: Parts,
    encoder: str | Path | None,
    hub: dict[str, Any],
    device_map: Any = None,
    **overrides: Any,
) -> Any:
    """A whole model from a predictor and an encoder read elsewhere; None is the published one."""
    dtype = dtype_option(overrides, torch.float32)
    encoder = encoder or PUBLISHED_ENCODER
    folder = encoder_path(encoder, **hub)
    own = ApexConfig.from_pretrained(folder) if _is_native(folder) else None
    values = {**parts.config.to_dict(), "encoder_name": str(encoder), **overrides}
    values["encoder"] = own.encoder if own else read_encoder_config(folder)
    if own:
        values.update(sample_rate=own.sample_rate, segment_seconds=own.segment_seconds)
    config = ApexConfig.from_dict(values)
    if config.width != parts.config.width:
        raise CheckpointError(
            "the predictor's shared.0.block.0.weight takes embeddings of width "
            f"{parts.config.width}, but the encoder {encoder} gives {config.width}"
        )
    with torch.device("meta"):
        model = cls(config)
    expected = model.encoder.state_dict()
    if own:
        file = weight_file(folder)
        state = without_prefix(ENCODER, read_weights(file))
        check_tensors(file, state, expected)
    else:
        state = read_encoder_state(folder, expected)
    model.encoder.load_state_dict(in_float32(state), assign=True)
    for name, module in parts.modules().items():
        setattr(model, name, module)
    torch.nn.Module.to(model, one_device(device_map))
    model.set_encoder_dtype(dtype)
    return model


def _load_whole(cls: Any, path: Path, **kwargs: Any) -> Any:
    dtype = dtype_option(kwargs, torch.float32)
    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    try:
        with _quiet_transformers():
            # Mismatches are reported here, by name, instead of in a table on stderr.
            model, report = load(
                cls,
                path,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                **kwargs,
            )
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    problems = [
        f"{kind}: {listed(sorted(map(str, names)))}" for kind, names in report.items() if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit the model:\n  " + "\n  ".join(problems))
    model.set_encoder_dtype(dtype)
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar or report on stderr for a load that is checked here."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _is_native(path: Path) -> bool:
    return path.is_dir() and read_config(path).get("model_type") == ApexConfig.model_type


def _holds_encoder(path: Path) -> bool:
    # Only whole models are large enough to be sharded.
    return (path / INDEX).is_file() or any(
        name.startswith(ENCODER) for name in tensor_names(weight_file(path))
    )


def _state(parts: Parts) -> dict[str, Tensor]:
    """All tensors under their names in a checkpoint."""
    return {
        f"{name}.{key}": value
        for name, module in parts.modules().items()
        for key, value in module.state_dict().items()
    }
