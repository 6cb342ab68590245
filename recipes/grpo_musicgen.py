"""GRPO on MusicGen, which generates several codebooks at once with a delay between them.

    python recipes/grpo_musicgen.py --output runs/musicgen
    python recipes/grpo_musicgen.py --output runs/musicgen --reward recipes/panel.yaml
    accelerate launch recipes/grpo_musicgen.py --output runs/musicgen --prompts FILE.txt \
        --policy facebook/musicgen-small --reward-model amaai-lab/apex --guidance_scale 3 \
        --per_device_train_batch_size 4 --gradient_accumulation_steps 8 --learning_rate 1e-5

A step: a group of songs for every prompt, their rewards less their group's mean, and a few updates
of the clipped ratio with the KL to the start (LoRA switched off), on LoRA adapters of the decoder.

Without other arguments it builds and trains a MusicGen of two small layers and uses apex-tiny; this
takes minutes on two CPU cores. The weights of its EnCodec are set so that every code is a
note: its songs are chords of four notes a quarter second.

Writes history.jsonl, summary.json, curves.png, audio/ before and after, and adapter/, which
`PeftModel.from_pretrained(musicgen, folder)` loads. Ctrl-C ends after the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer, MusicgenForConditionalGeneration, set_seed
from transformers.modeling_outputs import BaseModelOutput

from apex_reward.runs.loop import LoopSettings, PolicyRun, clipped_gain
from apex_reward.runs.settings import (
    RewardSettings,
    option,
    output_field,
    parse_settings,
    read_prompts,
)
from toys.chords import STYLES, toy_musicgen
from toys.notes import SLOTS, SONG_SECONDS, note_references

LAYERS = r"decoder\.model\.decoder\.layers\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


@dataclass
class Settings(LoopSettings):
    """The settings of the loop with the defaults of this recipe."""

    output_dir: str = output_field("runs/grpo_musicgen")
    learning_rate: float = option(2e-3, "learning rate of AdamW")
    policy: str | None = option(None, "hub id or folder of a MusicGen; none: a small one")
    guidance_scale: float = option(1.0, "classifier-free guidance; 1 is none")


def main(arguments: Sequence[str] | None = None) -> None:
    settings, own = parse_settings(RewardSettings, Settings, arguments=arguments)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        gradient_accumulation_steps=own.gradient_accumulation_steps,
    )
    set_seed(own.seed)
    musicgen, tokenizer, prompts, frames = load(own)
    lora = LoraConfig(r=own.lora_r, lora_alpha=2 * own.lora_r, target_modules=LAYERS)
    # With dropout the ratio of an unchanged policy would differ from one.
    policy = get_peft_model(musicgen, lora).eval()
    rate = musicgen.config.audio_encoder.sampling_rate
    toy = (note_references, SONG_SECONDS) if own.policy is None else ()
    run = PolicyRun(own, settings, accelerator, prompts, rate, *toy)
    set_seed(own.seed + accelerator.process_index)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    wrapped, optimizer = accelerator.prepare(
        policy, torch.optim.AdamW(parameters, lr=own.learning_rate, weight_decay=0.0)
    )
    for _ in run.steps():
        texts = run.draw()
        tokens = tokenizer(texts, padding=True, return_tensors="pt").to(accelerator.device)
        rollout = Rollout(policy, tokens, frames, own.guidance_scale)
        rollout.advantages = run.advantages(texts, rollout.songs)
        run.log_step(update(own, accelerator, wrapped, optimizer, rollout))
    run.finish(policy)


def update(
    own: Settings, accelerator: Accelerator, wrapped: Any, optimizer: Any, rollout: Rollout
) -> dict[str, float]:
    """A few passes over the songs of a step; returns the means of their figures."""
    with torch.no_grad():
        old = log_probabilities(wrapped, rollout, own.guidance_scale)
        with accelerator.unwrap_model(wrapped).disable_adapter():
            reference = log_probabilities(wrapped, rollout, own.guidance_scale)
    sums = {"kl": 0.0, "clipped": 0.0, "grad_norm": 0.0}
    chunks = torch.arange(len(rollout.codes), device=old.device).chunk(
        own.gradient_accumulation_steps
    )
    for _ in range(own.num_iterations):
        for rows in chunks:
            with accelerator.accumulate(wrapped):
                new = log_probabilities(wrapped, rollout.part(rows), own.guidance_scale)
                gain, share = clipped_gain(new, old[rows], rollout.advantages[rows], own.epsilon)
                kl = drift(new, reference[rows])
                accelerator.backward((own.beta * kl - gain).mean())
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(wrapped.parameters(), own.max_grad_norm)
                    sums["grad_norm"] += float(norm) * len(chunks)
                optimizer.step()
                optimizer.zero_grad()
            sums["kl"] += kl.mean().item()
            sums["clipped"] += share
    return {name: value / (own.num_iterations * len(chunks)) for name, value in sums.items()}


def drift(new: Tensor, reference: Tensor) -> Tensor:
    """KL of the policy from its reference, by the estimator that is never below 0.

    exp(r - n) - (r - n) - 1 of log-probabilities n and r (http://joschu.net/blog/kl-approx.html).
    """
    return (reference - new).exp() - (reference - new) - 1


class Rollout:
    """Sampled songs of B prompts. K = codebooks, F = frames, L = tokens, C = channels, T = samples.

    Attributes:
        states, mask: what the decoder attends to, (B, L, W) and (B, L).
        codes: (B, K, F).
        songs: (B, C, T).
    """

    def __init__(self, policy: PeftModel, tokens: Any, frames: int, guidance: float) -> None:
        musicgen = policy.get_base_model()
        self.mask = tokens.attention_mask
        with torch.no_grad():
            encoded = musicgen.text_encoder(tokens.input_ids, tokens.attention_mask)
        self.states = encoded.last_hidden_state
        self.codes = sample(policy, self.states, self.mask, frames, guidance)
        self.songs = decode(musicgen, self.codes)
        self.advantages = torch.empty(0)

    def part(self, rows: Tensor) -> Rollout:
        """Some of the songs, without their sound."""
        part = object.__new__(Rollout)
        part.states, part.mask, part.codes = self.states[rows], self.mask[rows], self.codes[rows]
        return part


@torch.no_grad()
def sample(policy: PeftModel, states: Tensor, mask: Tensor, frames: int, guidance: float) -> Tensor:
    """Codes (B, K, F), drawn from the whole distribution: the log-probabilities are exact."""
    decoder = policy.get_base_model().decoder
    start = torch.full((len(states) * decoder.num_codebooks, 1), decoder.config.pad_token_id)
    ids, pattern = decoder.build_delay_pattern_mask(
        start.to(states.device), decoder.config.pad_token_id, frames + lag(decoder) + 1
    )
    cache = None
    for step in range(1, pattern.shape[1]):
        logits, cache = next_logits(policy, ids, states, mask, guidance, cache)
        drawn = torch.multinomial(logits[:, -1].softmax(-1), 1)
        given = pattern[:, step, None]
        ids = torch.cat([ids, torch.where(given == -1, drawn, given)], dim=1)
    return ids[pattern == -1].reshape(len(states), decoder.num_codebooks, frames)


def log_probabilities(policy: Any, rollout: Rollout, guidance: float) -> Tensor:
    """(B, K, F): of each code, given the codes before it in the order of sampling.

    Codebook k was drawn k steps late: one pass over the delayed grid, with the start id in the
    triangles at its ends, sees what sampling saw.
    """
    musicgen = getattr(policy, "module", policy).get_base_model()
    decoder, codes = musicgen.decoder, rollout.codes
    flat = codes.reshape(-1, codes.shape[-1])
    pad = decoder.config.pad_token_id
    started = torch.cat([torch.full_like(flat[:, :1], pad), flat], dim=1)
    _, grid = decoder.build_delay_pattern_mask(started, pad, started.shape[1] + lag(decoder))
    logits, _ = next_logits(policy, grid[:, :-1], rollout.states, rollout.mask, guidance)
    drawn = grid[:, 1:]
    found = logits.log_softmax(-1).gather(-1, drawn.clamp(max=logits.shape[-1] - 1)[..., None])
    return found[..., 0][drawn != pad].reshape(codes.shape)


def next_logits(
    policy: Any, ids: Tensor, states: Tensor, mask: Tensor, guidance: float, cache: Any = None
) -> tuple[Tensor, Any]:
    """Logits (B K, L, V) after each id (B K, L), guided as MusicGen guides; with the cache."""
    if guidance > 1:
        ids = torch.cat([ids, ids])
        states, mask = (torch.cat([x, torch.zeros_like(x)]) for x in (states, mask))
    out = policy(
        encoder_outputs=BaseModelOutput(states),
        attention_mask=mask,
        decoder_input_ids=ids if cache is None else ids[:, -1:],
        cache=cache,
        use_cache=not torch.is_grad_enabled(),
    )
    logits = out.logits.float()
    if guidance > 1:
        given, free = logits.chunk(2)
        logits = free + guidance * (given - free)
    return logits, out.cache


def lag(decoder: Any) -> int:
    """Frames by which the last codebook lags; left and right share a delay."""
    return int(decoder.num_codebooks // decoder.config.audio_channels) - 1


@torch.no_grad()
def decode(musicgen: MusicgenForConditionalGeneration, codes: Tensor) -> Tensor:
    """Codes (B, K, F) to songs (B, C, T); codebooks of left and right alternate."""
    channels = musicgen.decoder.config.audio_channels
    sides = [codes[:, side::channels] for side in range(channels)]
    codec = musicgen.audio_encoder
    return torch.cat([codec.decode(side[None], [None]).audio_values for side in sides], dim=1)


def load(own: Settings) -> tuple[MusicgenForConditionalGeneration, Any, list[str], int]:
    """The model, its tokenizer, the prompts, and the number of frames of a song."""
    if own.policy is None:
        return *toy_musicgen(own.seed, own.warm_steps), list(STYLES), SLOTS
    musicgen = MusicgenForConditionalGeneration.from_pretrained(own.policy)
    frames = round(own.audio_seconds * musicgen.config.audio_encoder.frame_rate)
    return musicgen, AutoTokenizer.from_pretrained(own.policy), read_prompts(own.prompts), frames


if __name__ == "__main__":
    main()
