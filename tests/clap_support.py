"""A small CLAP with random weights and a real tokenizer, both built here."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

PROMPTS = ["a calm piano piece", "loud drums and bass, a fast techno song with a voice"]
WIDTH = 16


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few words, with RoBERTa's special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        PROMPTS * 4,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
    )


def tiny_clap_model(seed: int = 0, fusion: bool = False) -> ClapModel:
    """A ClapModel of some 100,000 weights that tells songs and texts apart."""
    config = ClapConfig(
        text_config={
            "vocab_size": 300,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 66,
        },
        audio_config={
            "patch_embeds_hidden_size": 8,
            "hidden_size": 64,
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "enable_fusion": fusion,
        },
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ClapModel(config)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, 0.0, 0.5 / weight[0].numel() ** 0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(weight, 0.0, 0.1)
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.uniform_(-40.0, -20.0)
        norm.running_var.uniform_(200.0, 600.0)
    return model.eval()


def tiny_extractor() -> ClapFeatureExtractor:
    """The published settings of a CLAP without fusion."""
    return ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")


def write_tiny_clap(folder: Path, seed: int = 0, fusion: bool = False) -> Path:
    """A folder in transformers' layout, written by transformers."""
    tiny_clap_model(seed, fusion).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tiny_extractor().save_pretrained(folder)
    return folder
