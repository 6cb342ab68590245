"""A policy that writes sound tokens: a codec language model with its codec, or the toy of notes.

Shape key: T = samples, C = channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from apex_reward.demo.note_model import note_model
from apex_reward.demo.notes import SLOTS, NoteDecoder, note_prompts, note_tokenizer
from apex_reward.errors import UsageError
from apex_reward.rewards.decoders import CodecDecoder, Layout
from apex_reward.runs.settings import said

TOY_STEPS = 150
ROWS = 96  # songs that are sampled together


@dataclass
class PolicySettings:
    """Which policy is trained, on which prompts, and what decodes its tokens."""

    policy: str | None = said(None, "hub id or folder of a codec language model; none: the toy")
    prompts: str | None = said(None, "a text file, a prompt a line")
    codec: str | None = said(None, "hub id or folder of its EnCodec or DAC")
    codebooks: int = said(4, "of the codec that the policy writes")
    layout: str = said("flat", "flat or delay", choices=["flat", "delay"])
    offset: int = said(0, "id of the first code")
    lora_r: int = said(8, "rank of the LoRA adapter; its alpha is twice that")

    @property
    def toy(self) -> bool:
        """Whether it is the toy of notes."""
        return self.policy is None

    def lora(self) -> LoraConfig:
        """An adapter on every linear layer."""
        return LoraConfig(
            r=self.lora_r,
            lora_alpha=2 * self.lora_r,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )


@dataclass
class Policy:
    """A policy with what belongs to it.

    Attributes:
        model: writes tokens.
        tokenizer: of prompts and tokens.
        prompts: texts.
        decode: completions' ids to songs (T,) or (C, T), None where there is none; it has a
            `sample_rate`.
    """

    model: Any
    tokenizer: Any
    prompts: list[str]
    decode: Any


def load_policy(
    settings: PolicySettings, seed: int, device: str | torch.device = "cpu", steps: int = TOY_STEPS
) -> Policy:
    """The policy that the settings mean.

    Args:
        seed, steps: of the toy's first training.

    Raises:
        UsageError: a policy without codec or prompts.
    """
    if settings.policy is None:
        tokenizer = note_tokenizer()
        toy: torch.nn.Module = note_model(tokenizer, seed, steps)
        return Policy(toy.to(device), tokenizer, note_prompts(), NoteDecoder(tokenizer))
    if not (settings.codec and settings.prompts):
        raise UsageError("--policy needs --codec (what decodes its tokens) and --prompts (a file)")
    words: Any = AutoTokenizer.from_pretrained(settings.policy)
    decoder = CodecDecoder(
        AutoModel.from_pretrained(settings.codec).to(device),
        settings.codebooks,
        cast(Layout, settings.layout),
        offset=settings.offset,
        end_token=words.eos_token_id,
    )
    prompts = Path(settings.prompts).read_text(encoding="utf-8").splitlines()
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(settings.policy)
    return Policy(model.to(device), words, prompts, decoder)


@torch.no_grad()
def sample_tokens(
    policy: Policy,
    prompts: Sequence[str],
    each: int = 1,
    *,
    seed: int,
    max_new_tokens: int = SLOTS,
    model: Any = None,
) -> list[list[int]]:
    """Sampled completions of every prompt in turn, `each` of them, up to the end token.

    The generator is one of its own: how often songs are drawn does not change a training.

    Args:
        model: in place of the policy's, such as a trainer's wrapped one.
    """
    writes = policy.model if model is None else model
    training = writes.training
    writes.eval()
    completions: list[list[int]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        together = max(1, ROWS // each)
        for start in range(0, len(prompts), together):
            texts = list(prompts[start : start + together])
            inputs = policy.tokenizer(
                texts, return_tensors="pt", padding=True, padding_side="left"
            ).to(writes.device)
            output = writes.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                do_sample=True,
                top_k=0,
                max_new_tokens=max_new_tokens,
                num_return_sequences=each,
                pad_token_id=policy.tokenizer.pad_token_id,
            )
            completions += output[:, inputs.input_ids.shape[1] :].tolist()
    writes.train(training)
    end = policy.tokenizer.eos_token_id
    return [list(itertools.takewhile(lambda token: token != end, ids)) for ids in completions]


def sample_songs(
    policy: Policy, prompts: Sequence[str], each: int = 1, **options: Any
) -> list[Tensor | None]:
    """As `sample_tokens`, decoded."""
    songs: list[Tensor | None] = policy.decode(sample_tokens(policy, prompts, each, **options))
    return songs
