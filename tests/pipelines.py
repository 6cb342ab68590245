"""Audio pipelines of diffusers at a few numbers each, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AceStepPipeline,
    AutoencoderOobleck,
    CosineDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LongCatAudioDiTPipeline,
    StableAudio3Pipeline,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.models import (
    AceStepTransformer1DModel,
    AutoencoderSAME,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
    StableAudio3DiTModel,
)
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from torch import nn
from transformers import (
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from toys.chords import style_tokenizer

RATE = 4000
T5 = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}


def oobleck(*ratios: int) -> AutoencoderOobleck:
    """Stereo; so many samples a latent as the product of two ratios."""
    return AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=list(ratios), decoder_channels=3,
        decoder_input_channels=3, audio_channels=2, channel_multiples=[2, 4], sampling_rate=RATE,
    )  # fmt: skip


def stable_audio() -> StableAudioPipeline:
    """Stable Audio; at most 0.2 s."""
    return StableAudioPipeline(
        vae=oobleck(1, 2), text_encoder=T5EncoderModel(T5Config(**T5)), tokenizer=style_tokenizer(),
        projection_model=StableAudioProjectionModel(8, 4, 0, 32),
        transformer=StableAudioDiTModel(
            sample_size=400, in_channels=3, num_layers=1, attention_head_dim=4,
            num_attention_heads=2, num_key_value_attention_heads=2, out_channels=3,
            cross_attention_dim=4, time_proj_dim=8, global_states_input_dim=8,
            cross_attention_input_dim=4,
        ),
        scheduler=CosineDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0,
            sigma_schedule="exponential",
        ),
    )  # fmt: skip


def stable_audio_3() -> StableAudio3Pipeline:
    """Stable Audio 3, whose scheduler draws at every step."""
    return StableAudio3Pipeline(
        vae=AutoencoderSAME(
            patch_size=4, encoder_channels=8, encoder_c_mults=(1,), encoder_strides=(2,),
            encoder_transformer_depths=(1,), latent_dim=4, dim_heads=4, ff_mult=1,
            sampling_rate=RATE,
        ),
        text_encoder=T5EncoderModel(T5Config(**T5)), tokenizer=style_tokenizer(),
        duration_embedder=StableAudio3DurationEmbedder(output_dim=8, fourier_dim=8),
        transformer=StableAudio3DiTModel(
            io_channels=4, embed_dim=16, depth=1, num_heads=2, cond_token_dim=8, global_cond_dim=8,
            local_add_cond_dim=5, timestep_features_dim=8, ff_mult=1.0, num_memory_tokens=2,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    )  # fmt: skip


def ace_step() -> AceStepPipeline:
    """ACE-Step 1.5."""
    sizes: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    return AceStepPipeline(
        vae=oobleck(5, 8),
        text_encoder=Qwen3Model(
            Qwen3Config(vocab_size=16, num_hidden_layers=1, **sizes | {"hidden_size": 8})
        ),
        tokenizer=style_tokenizer(),
        transformer=AceStepTransformer1DModel(
            num_hidden_layers=2, in_channels=9, audio_acoustic_hidden_dim=3, sliding_window=8,
            **sizes,
        ),
        condition_encoder=AceStepConditionEncoder(
            text_hidden_dim=8, timbre_hidden_dim=3, num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1, sliding_window=8, **sizes,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )  # fmt: skip


def longcat() -> LongCatAudioDiTPipeline:
    """LongCat-AudioDiT, whose sigmas rise."""
    return LongCatAudioDiTPipeline(
        vae=LongCatAudioDiTVae(
            channels=4, c_mults=[1, 2], strides=[2, 2], latent_dim=4, encoder_latent_dim=8,
            downsampling_ratio=4, sample_rate=RATE,
        ),
        text_encoder=UMT5EncoderModel(UMT5Config(**T5)), tokenizer=style_tokenizer(),
        transformer=LongCatAudioDiTTransformer(
            dit_dim=16, dit_depth=1, dit_heads=2, dit_text_dim=8, latent_dim=4, ff_mult=1.0,
        ),
    )  # fmt: skip


BUILDERS: dict[str, Callable[[], Any]] = {
    "StableAudioPipeline": stable_audio,
    "StableAudio3Pipeline": stable_audio_3,
    "AceStepPipeline": ace_step,
    "LongCatAudioDiTPipeline": longcat,
}


def small_pipeline(kind: str) -> Any:
    """A pipeline of a class, the same at every call; no weight that training reads is zero."""
    torch.manual_seed(0)
    pipeline = BUILDERS[kind]()
    with torch.no_grad():
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                for weight in part.parameters():
                    if not weight.any():
                        weight.normal_(0, 0.1)
    return pipeline
