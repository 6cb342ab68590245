"""The encoder that extraction runs: a MERT folder, a hub id, or a whole ApexReward model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apex_reward.model.config import ApexConfig

if TYPE_CHECKING:
    import torch

    from apex_reward.model.apex import ApexReward


def encoder_config(name: str | Path) -> ApexConfig:
    """The configuration of a model with this encoder; `encoder_name` finds it again.

    Args:
        name: folder or hub id in MERT's layout, a folder of a whole ApexReward, or `apex-tiny`.

    Raises:
        CheckpointError: nothing there, or another kind of model.
    """
    from apex_reward.model.files import local_path, read_config
    from apex_reward.model.published import read_encoder_config

    folder = local_path(name)
    if read_config(folder).get("model_type") == ApexConfig.model_type:
        config = ApexConfig.from_pretrained(folder)
    else:
        config = ApexConfig(encoder=read_encoder_config(folder))
    config.encoder_name = _lasting(name)
    return config


def load_encoder(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> ApexReward:
    """A model whose encoder and layer pooling are to be used; its predictor may be untrained."""
    import torch

    from apex_reward.model.apex import ApexReward
    from apex_reward.model.files import local_path, read_config
    from apex_reward.model.published import read_encoder_state

    folder = local_path(name)
    if read_config(folder).get("model_type") == ApexConfig.model_type:
        model = ApexReward.from_pretrained(folder)
        model.config.encoder_name = _lasting(name)
    else:
        model = ApexReward(encoder_config(name))
        state = read_encoder_state(folder, model.encoder.state_dict())
        model.encoder.load_state_dict(state)
    if dtype is not None:
        torch.nn.Module.to(model.encoder, dtype)
    torch.nn.Module.to(model, torch.device(device))
    return model


def _lasting(name: str | Path) -> str:
    """A folder's full path, so that it is found from any working folder; a hub id as it is."""
    path = Path(name)
    return str(path.resolve()) if path.exists() else str(name)
