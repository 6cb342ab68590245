"""A small language model of notes, trained in seconds, so that a policy starts from something."""

from __future__ import annotations

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from apex_reward.demo.notes import random_notes

BATCH = 32


def note_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, steps: int = 150
) -> LlamaForCausalLM:
    """A Llama of two layers trained on random walks of notes.

    Args:
        tokenizer: of `note_tokenizer`.
        seed: of weights and songs; the global generator is left alone.
        steps: of 32 songs each.
    """
    rng = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=64,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        texts = [random_notes(rng) for _ in range(BATCH)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model
