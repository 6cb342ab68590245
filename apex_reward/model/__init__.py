"""The model: encoder, layer pooling, predictor, and how they are loaded and saved."""

from apex_reward.model.apex import ApexReward
from apex_reward.model.checkpoint import load_predictor, save_predictor
from apex_reward.model.config import PUBLISHED_ENCODER, PUBLISHED_MODEL, ApexConfig
from apex_reward.model.pooling import LayerPooling
from apex_reward.model.predictor import Predictor

__all__ = [
    "PUBLISHED_ENCODER",
    "PUBLISHED_MODEL",
    "ApexConfig",
    "ApexReward",
    "LayerPooling",
    "Predictor",
    "load_predictor",
    "save_predictor",
]
