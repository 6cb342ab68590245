"""Load and save: whole models, predictor-only folders, and compositions of published files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from apex_reward.errors import CheckpointError, listed
from apex_reward.model.config import PUBLISHED_ENCODER, ApexConfig
from apex_reward.model.familiar import Familiarity
from apex_reward.model.files import (
    check_tensors,
    hub_options,
    local_path,
    read_config,
    read_weights,
    weight_file,
)
from apex_reward.model.frozen import FrozenModel
from apex_reward.model.pooling import LayerPooling
from apex_reward.model.predictor import Predictor, PredictorEnsemble, members_of
from apex_reward.model.published import (
    PublishedPredictor,
    read_encoder_config,
    read_encoder_state,
    read_predictor,
)

if TYPE_CHECKING:
    from apex_reward.model.apex import ApexReward

Placed = TypeVar("Placed", bound=FrozenModel)
ENCODER, POOLING, PREDICTOR, FAMILIAR = "encoder.", "pooling.", "predictor.", "familiar."


class Parts(NamedTuple):
    """A model without its encoder."""

    config: ApexConfig
    predictor: Predictor | PredictorEnsemble
    pooling: LayerPooling
    familiar: Familiarity | None = None

    def state(self) -> dict[str, Tensor]:
        """All tensors under their names in a checkpoint."""
        modules: list[tuple[str, torch.nn.Module | None]] = [
            (POOLING, self.pooling),
            (PREDICTOR, self.predictor),
            (FAMILIAR, self.familiar),
        ]
        return {
            prefix + name: value
            for prefix, module in modules
            if module is not None
            for name, value in module.state_dict().items()
        }


def load_model(
    cls: type[ApexReward], name: str | Path, encoder: str | Path | None, **kwargs: Any
) -> ApexReward:
    """`ApexReward.from_pretrained`: see there."""
    hub = hub_options(kwargs)
    path = local_path(name, **hub)
    if path.is_file() or read_config(path).get("model_type") != ApexConfig.model_type:
        named = read_config(path).get("mert_model_name") if path.is_dir() else None
        return compose_published(cls, path, encoder or named or PUBLISHED_ENCODER, **kwargs)
    if encoder is None and _holds_encoder(path):
        return _load_whole(cls, path, **kwargs)
    kwargs.pop("config", None)  # AutoModel hands over what it read in the folder
    parts = load_parts(path)
    source = encoder or parts.config.encoder_name
    if source is None:
        raise CheckpointError(
            f"{path} holds no encoder and its config.json names none; pass encoder= "
            "(--encoder on the command line)"
        )
    return _compose(cls, parts, source, **kwargs)


def compose_published(
    cls: type[ApexReward], predictor: str | Path, encoder: str | Path, **kwargs: Any
) -> ApexReward:
    """`ApexReward.from_published`: see there."""
    hub = hub_options(kwargs)
    published = read_predictor(local_path(predictor, **hub))
    return _compose(cls, _published_parts(published), encoder, **kwargs)


def load_predictor(path: str | Path) -> tuple[ApexConfig, Predictor, LayerPooling]:
    """One predictor and its layer pooling without an encoder, in eval mode.

    Arguments and errors are those of `load_parts`, which also reads ensembles: they are refused
    here.
    """
    config, predictor, pooling, _ = load_parts(path)
    if isinstance(predictor, PredictorEnsemble):
        raise CheckpointError(
            f"{path} is an ensemble of {config.members} members; read it with load_parts"
        )
    return config, predictor, pooling


def load_parts(path: str | Path) -> Parts:
    """Predictor or ensemble, layer pooling and familiarity without an encoder, in eval mode.

    Args:
        path: a folder of `save_predictor` or `save_pretrained`, `apex-tiny`, or a published
            `best_model.pt` (or a folder or hub id that holds one).

    Raises:
        CheckpointError: as `ApexReward.from_pretrained`.
    """
    path = local_path(path)
    if path.is_file() or read_config(path).get("model_type") != ApexConfig.model_type:
        return _published_parts(read_predictor(path))
    parts = _untrained(ApexConfig.from_pretrained(path))
    file = weight_file(path)
    tensors = read_weights(file)
    found = {name: value for name, value in tensors.items() if not name.startswith(ENCODER)}
    check_tensors(file, found, parts.state())
    parts.predictor.load_state_dict(_under(PREDICTOR, found))
    parts.pooling.load_state_dict(_under(POOLING, found))
    if parts.familiar is not None:
        parts.familiar.load_state_dict(_under(FAMILIAR, found))
    parts.predictor.eval()
    return parts


def _untrained(config: ApexConfig) -> Parts:
    from apex_reward.model.apex import predictor_of

    familiar = Familiarity(config.width) if config.familiar else None
    return Parts(config, predictor_of(config), LayerPooling(len(config.layers)), familiar)


def save_predictor(
    folder: str | Path,
    config: ApexConfig,
    predictor: Predictor | PredictorEnsemble,
    pooling: LayerPooling,
    familiar: Familiarity | None = None,
) -> None:
    """Write a `save_pretrained` folder without the encoder, which `config.encoder_name` names.

    The configuration that is written says how many members there are and whether the statistics of
    the training songs are there.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = ApexConfig.from_dict(config.to_dict())
    config.members, config.familiar = len(members_of(predictor)), familiar is not None
    tensors = Parts(config, predictor, pooling, familiar).state()
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


def _load_whole(cls: type[ApexReward], path: Path, **kwargs: Any) -> ApexReward:
    from transformers import PreTrainedModel

    # transformers would take the dtype of the file, which may be half precision to save space.
    kwargs.setdefault("dtype", torch.float32)
    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    try:
        with _quiet_transformers():
            # Mismatches are reported here, by name, instead of in a table on stderr.
            model, found = load(
                cls, path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    problems = [
        f"{kind}: {listed(sorted(map(str, names)))}" for kind, names in found.items() if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit the model:\n  " + "\n  ".join(problems))
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar or report on stderr for a load that is checked here."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _holds_encoder(path: Path) -> bool:
    if (path / "model.safetensors.index.json").is_file():
        return True  # only whole models are large enough to be sharded
    file = weight_file(path)
    if file.suffix != ".safetensors":
        return any(name.startswith(ENCODER) for name in read_weights(file))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return any(name.startswith(ENCODER) for name in tensors.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read as a checkpoint ({error})") from error


def _compose(
    cls: type[ApexReward],
    parts: Parts,
    encoder: str | Path,
    dtype: torch.dtype | str = torch.float32,
    device_map: Any = None,
    **overrides: Any,
) -> ApexReward:
    """A whole model from a predictor and an encoder read elsewhere."""
    config = parts.config
    folder = local_path(encoder)
    native = read_config(folder).get("model_type") == ApexConfig.model_type
    source = ApexConfig.from_pretrained(folder) if native else None
    settings = source.encoder if source else read_encoder_config(folder)
    values = {**config.to_dict(), "encoder": settings, "encoder_name": str(encoder), **overrides}
    if source:
        values["sample_rate"], values["segment_seconds"] = (
            source.sample_rate,
            source.segment_seconds,
        )
    merged = ApexConfig.from_dict(values)
    if merged.width != config.width:
        raise CheckpointError(
            f"the predictor's shared.0.block.0.weight takes embeddings of width {config.width}, "
            f"but the encoder {encoder} gives {merged.width}"
        )
    model = cls(merged)
    expected = model.encoder.state_dict()
    model.encoder.load_state_dict(
        _native_encoder_state(folder, expected) if native else read_encoder_state(folder, expected)
    )
    model.predictor.load_state_dict(parts.predictor.state_dict())
    model.pooling.load_state_dict(parts.pooling.state_dict())
    if model.familiar is not None and parts.familiar is not None:
        model.familiar.load_state_dict(parts.familiar.state_dict())
    # The predictor stays in float32, as in a whole model loaded with a dtype.
    torch.nn.Module.to(model.encoder, as_dtype(dtype))
    torch.nn.Module.to(model, as_device(device_map))
    return model


def _native_encoder_state(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    file = weight_file(folder)
    state = _under(ENCODER, read_weights(file))
    check_tensors(file, state, expected)
    return state


def _published_config(published: PublishedPredictor) -> ApexConfig:
    # The width stands in the encoder's settings; the encoder itself is not known yet.
    encoder = {} if published.width == 768 else {"hidden_size": published.width}
    return ApexConfig(encoder=encoder, task=published.task, shared=published.shared)


def _published_parts(published: PublishedPredictor) -> Parts:
    parts = _untrained(_published_config(published))
    parts.predictor.load_state_dict(published.state)
    if published.pooling:
        parts.pooling.load_state_dict(published.pooling)
    parts.predictor.eval()
    return parts


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def placed(
    model: Placed, dtype: torch.dtype | str = torch.float32, device_map: Any = None
) -> Placed:
    """A foreign model with its encoder's number type, where it is to be."""
    model.set_encoder_dtype(as_dtype(dtype))
    return model.to(as_device(device_map))


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A number type from its name; `auto` is float32."""
    if isinstance(dtype, torch.dtype):
        return dtype
    found = torch.float32 if dtype == "auto" else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise CheckpointError(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
    return found


def as_device(device_map: Any) -> torch.device | str:
    """The one device that a `device_map` names."""
    if device_map in (None, "cpu"):
        return "cpu"
    if device_map == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(device_map, dict):
        return device_map[""]
    return device_map
