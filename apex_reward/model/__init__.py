"""The model: encoder, layer pooling, predictor, and how they are loaded and saved."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from apex_reward.model.apex import ApexReward
from apex_reward.model.checkpoint import load_predictor, save_predictor
from apex_reward.model.config import PUBLISHED_ENCODER, PUBLISHED_MODEL, ApexConfig
from apex_reward.model.feature_extractor import ApexFeatureExtractor
from apex_reward.model.pooling import LayerPooling
from apex_reward.model.predictor import Predictor

__all__ = [
    "PUBLISHED_ENCODER",
    "PUBLISHED_MODEL",
    "ApexConfig",
    "ApexFeatureExtractor",
    "ApexReward",
    "LayerPooling",
    "Predictor",
    "load_predictor",
    "save_predictor",
]

# transformers' own way in finds a saved folder by the model_type of its config.json.
AutoConfig.register(ApexConfig.model_type, ApexConfig, exist_ok=True)
AutoModel.register(ApexConfig, ApexReward, exist_ok=True)
AutoFeatureExtractor.register(ApexConfig, ApexFeatureExtractor, exist_ok=True)
