"""The model: encoders, layer pooling, predictor, and how they are loaded and saved."""

from transformers import AutoConfig, AutoModel

from apex_reward.model.apex import ApexReward
from apex_reward.model.checkpoint import save_predictor
from apex_reward.model.config import PUBLISHED_ENCODER, PUBLISHED_MODEL, ApexConfig
from apex_reward.model.predictor import LayerPooling, Predictor

__all__ = [
    "PUBLISHED_ENCODER",
    "PUBLISHED_MODEL",
    "ApexConfig",
    "ApexReward",
    "LayerPooling",
    "Predictor",
    "save_predictor",
]

# `AutoModel` finds a saved folder by the model_type of its config.json.
AutoConfig.register(ApexConfig.model_type, ApexConfig, exist_ok=True)
AutoModel.register(ApexConfig, ApexReward, exist_ok=True)
