"""GRPO on MusicGen, which generates several codebooks at once with a delay between them.

    python recipes/grpo_musicgen.py --output runs/musicgen
    accelerate launch recipes/grpo_musicgen.py --output runs/musicgen --prompts FILE.txt \
        --model facebook/musicgen-small --reward amaai-lab/apex --seconds 30 --guidance 3 \
        --micro-batches 8 --learning-rate 1e-5

A step: a group of songs for every prompt, their rewards less their group's mean, and a few updates
of the clipped ratio with the KL to the start (LoRA switched off), on LoRA adapters of the decoder.

With no other argument: a MusicGen of two small layers, built and warm-started here, and apex-tiny
as the reward; minutes on two CPU cores. Its EnCodec is no trained codec: its weights are set so
that every code is a note, and its songs are chords of four notes a quarter second.

Leaves history.jsonl, summary.json, curves.png, audio/ before and after, and adapter/, which
`PeftModel.from_pretrained(musicgen, folder)` puts back on the model.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer, MusicgenForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from apex_reward import ApexReward, Guards, Reward
from apex_reward.demo.musicgen import FRAMES, SECONDS, STYLES, toy_musicgen
from apex_reward.rewards.policy import (
    PolicyRun,
    clipped_gain,
    drift,
    group_advantages,
    policy_options,
)


def main() -> None:
    args = parse_arguments()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), gradient_accumulation_steps=args.micro_batches
    )
    set_seed(args.seed)
    musicgen, tokenizer, prompts = load(args)
    args.sample_rate = musicgen.config.audio_encoder.sampling_rate
    layers = r"decoder\.model\.decoder\.layers\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
    lora = LoraConfig(r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules=layers)
    # Dropout would make the ratio of an unchanged policy something else than one.
    policy = get_peft_model(musicgen, lora).eval()
    reward = make_reward(args, accelerator.device)
    set_seed(args.seed, device_specific=True)
    run = PolicyRun(args.output, args.sample_rate)
    train(args, accelerator, policy, Prompts(tokenizer, prompts), reward, run)
    if accelerator.is_main_process:
        policy.save_pretrained(str(args.output / "adapter"))
        run.finish(vars(args), reward.demonstration)


def train(
    args: argparse.Namespace,
    accelerator: Accelerator,
    policy: PeftModel,
    prompts: Prompts,
    reward: Reward,
    run: PolicyRun,
) -> None:
    """Sample, judge, update, a step after the other."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    wrapped, optimizer = accelerator.prepare(
        policy, torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.0)
    )
    for _ in range(args.steps):
        rollout = Rollout(args, policy, prompts.draw(args.prompts_per_step, accelerator.device))
        rows = reward.judge(list(rollout.songs), rollout.texts, sample_rate=args.sample_rate)
        values = torch.tensor([row["reward"] for row in rows], device=accelerator.device)
        everyone = accelerator.gather(values)
        rollout.advantages = group_advantages(values, rollout.texts) / (everyone.std() + 1e-6)
        measured = update(args, accelerator, wrapped, optimizer, rollout)
        run.step(accelerator, measured, rollout.songs, everyone, rows)


def update(
    args: argparse.Namespace,
    accelerator: Accelerator,
    wrapped: Any,
    optimizer: Any,
    rollout: Rollout,
) -> dict[str, float]:
    """A few passes over a step's songs; means of what was measured."""
    with torch.no_grad():
        old = log_probabilities(wrapped, rollout, args.guidance)
        with accelerator.unwrap_model(wrapped).disable_adapter():
            reference = log_probabilities(wrapped, rollout, args.guidance)
    sums = {"kl": 0.0, "clipped": 0.0, "grad_norm": 0.0}
    chunks = torch.arange(len(rollout.texts), device=old.device).chunk(args.micro_batches)
    for _ in range(args.passes):
        for rows in chunks:
            with accelerator.accumulate(wrapped):
                new = log_probabilities(wrapped, rollout.part(rows), args.guidance)
                gain, share = clipped_gain(new, old[rows], rollout.advantages[rows], args.clip)
                kl = drift(new, reference[rows])
                accelerator.backward((args.kl * kl - gain).mean())
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(wrapped.parameters(), args.max_norm)
                    sums["grad_norm"] += float(norm) * len(chunks)
                optimizer.step()
                optimizer.zero_grad()
            sums["kl"] += kl.mean().item()
            sums["clipped"] += share
    return {name: value / (args.passes * len(chunks)) for name, value in sums.items()}


class Rollout:
    """Sampled songs of some prompts. B = songs, K = codebooks, F = frames, T = samples.

    Attributes:
        texts: B prompts, those of a group side by side.
        states, mask: what the decoder attends to, (B, L, W) and (B, L).
        codes: (B, K, F).
        songs: (B, C, T).
    """

    def __init__(
        self, args: argparse.Namespace, policy: PeftModel, prompts: tuple[list[str], Any]
    ) -> None:
        musicgen = policy.get_base_model()
        texts, tokens = prompts
        self.texts = [text for text in texts for _ in range(args.group)]
        self.mask = tokens.attention_mask.repeat_interleave(args.group, 0)
        encoded = musicgen.text_encoder(tokens.input_ids, tokens.attention_mask)
        self.states = encoded.last_hidden_state.detach().repeat_interleave(args.group, 0)
        self.codes = sample(policy, self.states, self.mask, args.frames, args.guidance)
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
    """(B, K, F): of each code, given the codes that were there when it was drawn.

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
    """Frames by which the last codebook lags, plus one: left and right share a delay."""
    return int(decoder.num_codebooks // decoder.config.audio_channels) - 1


@torch.no_grad()
def decode(musicgen: MusicgenForConditionalGeneration, codes: Tensor) -> Tensor:
    """Codes (B, K, F) to songs (B, C, T); codebooks of left and right take turns."""
    channels = musicgen.decoder.config.audio_channels
    sides = [codes[:, side::channels] for side in range(channels)]
    codec = musicgen.audio_encoder
    return torch.cat([codec.decode(side[None], [None]).audio_values for side in sides], dim=1)


class Prompts:
    """Prompts in an order that is shuffled anew each time it is through."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.tokenizer, self.texts = tokenizer, texts
        self.order = self._shuffled()

    def draw(self, count: int, device: torch.device) -> tuple[list[str], Any]:
        """`count` texts and their tokens."""
        texts = [next(self.order) for _ in range(count)]
        return texts, self.tokenizer(texts, padding=True, return_tensors="pt").to(device)

    def _shuffled(self) -> Iterator[str]:
        while True:
            yield from random.sample(self.texts, len(self.texts))


def make_reward(args: argparse.Namespace, device: torch.device) -> Reward:
    """The reward model with its mix, loudness and guards."""
    # The toy's songs fill one short segment; the published model hears 30 s at a time.
    settings = {} if args.model else {"segment_seconds": SECONDS}
    model = ApexReward.from_pretrained(args.reward, **settings).to(device)
    guards = Guards.default("penalty", args.penalty).limit("duration", low=args.seconds / 2)
    return Reward(model, args.mix, loudness=args.loudness, guards=guards)


def load(args: argparse.Namespace) -> tuple[MusicgenForConditionalGeneration, Any, list[str]]:
    """The model, its tokenizer and the prompts; sets how many frames a song has."""
    if args.model is None:
        args.frames, args.seconds = FRAMES, SECONDS
        return *toy_musicgen(args.seed, args.warm_steps), list(STYLES)
    musicgen = MusicgenForConditionalGeneration.from_pretrained(args.model)
    args.frames = round(args.seconds * musicgen.config.audio_encoder.frame_rate)
    prompts = args.prompts.read_text(encoding="utf-8").splitlines()
    return musicgen, AutoTokenizer.from_pretrained(args.model), prompts


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/grpo_musicgen"))
    policy_options(parser, steps=20, learning_rate=2e-3, clip=0.2, kl=0.02)
    parser.add_argument("--guidance", type=float, default=1.0, help="of the policy, 1: none")
    parser.add_argument("--warm-steps", type=int, default=150, help="of the toy's first training")
    real = parser.add_argument_group("a real MusicGen")
    real.add_argument("--model", help="hub id or folder; none: the toy")
    real.add_argument("--prompts", type=Path, help="a text file, a prompt a line")
    real.add_argument("--seconds", type=float, default=10.0, help="of a song")
    args = parser.parse_args()
    if args.model and not args.prompts:
        parser.error("--model needs --prompts")
    return args


if __name__ == "__main__":
    main()
