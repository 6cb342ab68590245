"""GRPO on a language model of sound tokens, with songs scored by ApexReward.

    python recipes/grpo_codec_lm.py --output runs/grpo
    accelerate launch --num_processes 2 recipes/grpo_codec_lm.py --output runs/grpo      (two GPUs)
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 recipes/grpo_codec_lm.py --output runs/grpo

With no other argument: a small Llama over note tokens, warm-started here, LoRA, apex-tiny as the
reward; some minutes on two CPU cores. For the real thing name a codec language model and its codec:

    accelerate launch recipes/grpo_codec_lm.py --output runs/grpo --policy HUB_ID \
        --prompts FILE.txt --reward-model amaai-lab/apex \
        --codec facebook/encodec_32khz --codebooks 4 --layout delay --offset 32000 \
        --max-tokens 1500 --learning-rate 1e-5

Leaves history.jsonl, summary.json, curves.png, completions.jsonl (every completion with its reward
and scores), audio/ before and after, and the LoRA adapter.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer

from apex_reward import ApexReward, ApexRewardFunction
from apex_reward.audio import save_wav
from apex_reward.files.tables import write_table
from apex_reward.report.run import before_and_after, write_run
from apex_reward.rewards import Guards
from apex_reward.rewards.decoders import CodecDecoder
from apex_reward.scores.apex import AESTHETIC_HEADS, POPULARITY_HEADS

# The toy's tokens: a slot of music each, one of four timbres at one of 12 pitches, or a rest.
TIMBRES = ("pluck", "organ", "fuzz", "hiss")
PITCHES = 12
STYLES = ("low calm", "low lively", "high calm", "high lively")
SLOTS = 16
SLOT_SECONDS = 0.25
SAMPLE_RATE = 24_000
SPECIALS = ("<pad>", "<bos>", "<eos>")
Decoder = Any  # a callable of completion_ids with a sample_rate: NoteDecoder or CodecDecoder


def main() -> None:
    args = parse_arguments()
    started = time.time()
    state = PartialState(cpu=not torch.cuda.is_available())
    set_seed(args.seed)
    policy, tokenizer, prompts, decode = load_policy(args, state.device)
    reward = RecordedReward(make_reward_function(args, decode, state.device))
    trainer = GRPOTrainer(
        policy,
        reward_funcs=reward,
        args=grpo_config(args, state.num_processes),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=args.lora_rank,
            lora_alpha=2 * args.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(args.output / "adapter"))
    completions = gather_object(reward.rows)
    if state.is_main_process:
        completions.sort(key=lambda row: row["step"])
        write_results(args, trainer.state.log_history, reward, completions, time.time() - started)
        write_songs(args.output / "audio", completions, decode)
    state.wait_for_everyone()


def make_reward_function(
    args: argparse.Namespace, decode: Decoder, device: torch.device
) -> ApexRewardFunction:
    """The reward model with its mix and guards."""
    toy = args.policy is None
    # The toy's songs fill one short segment; the published model hears 30 s at a time.
    settings = {"segment_seconds": SLOTS * SLOT_SECONDS} if toy else {}
    model = ApexReward.from_pretrained(args.reward_model, **settings).to(device)
    guards = None if args.guards == "none" else Guards.default(args.guards, args.penalty)
    if guards and toy:
        guards = guards.limit("duration", low=SLOTS * SLOT_SECONDS / 2)
    # As bad as the worst song: unscored, gibberish would cost nothing and slowly take over.
    return ApexRewardFunction(model, args.mix, decode=decode, guards=guards, undecodable=0.0)


class RecordedReward:
    """A reward function that keeps every completion with its reward, scores and flags."""

    def __init__(self, function: ApexRewardFunction) -> None:
        self.function = function
        self.rows: list[dict[str, Any]] = []
        self.__name__ = function.__name__

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        trainer_state: Any,
        log_extra: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        logged: dict[str, list[Any]] = {}
        rewards = self.function(
            prompts, completions, completion_ids, log_extra=logged.__setitem__, **columns
        )
        for i, reward in enumerate(rewards):
            row = {"step": trainer_state.global_step, "prompt": prompts[i], "reward": reward}
            extra = {name.rpartition("/")[2]: values[i] for name, values in logged.items()}
            self.rows.append({**row, **extra, "ids": list(completion_ids[i])})
        return rewards


def grpo_config(args: argparse.Namespace, processes: int) -> GRPOConfig:
    """TRL's settings; the batch is shared out among the processes."""
    gpu = torch.cuda.is_available()
    return GRPOConfig(
        output_dir=str(args.output / "trainer"),
        max_steps=args.steps,
        per_device_train_batch_size=args.group * args.prompts_per_step // processes,
        num_generations=args.group,
        max_completion_length=args.max_tokens,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        beta=args.kl,
        # By its own spread, a group of songs that are all good would push as hard as any other.
        scale_rewards="batch",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=args.seed,
        use_cpu=not gpu,
        bf16=gpu,
        disable_tqdm=not sys.stderr.isatty(),
    )


class NoteDecoder:
    """Note tokens to songs, by adding up ready notes: the toy's codec."""

    sample_rate = SAMPLE_RATE

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        vocabulary = tokenizer.get_vocab()
        self.end = tokenizer.eos_token_id
        self.rows = {vocabulary[name]: row for row, name in enumerate(note_names())}
        self.notes = torch.stack([render_note(name) for name in note_names()])

    def __call__(self, completion_ids: Sequence[Sequence[int]]) -> list[Tensor | None]:
        return [self.song(ids) for ids in completion_ids]

    def song(self, ids: Sequence[int]) -> Tensor | None:
        """(T,) samples; None where there is no note, or a token that is none."""
        ids = list(ids)
        played = ids[: ids.index(self.end)] if self.end in ids else ids
        if not played or any(token not in self.rows for token in played):
            return None
        slot = round(SLOT_SECONDS * SAMPLE_RATE)
        song = torch.zeros(slot * (len(played) - 1) + self.notes.shape[1])
        for position, token in enumerate(played):
            start = position * slot
            song[start : start + self.notes.shape[1]] += self.notes[self.rows[token]]
        return song[: slot * len(played)]


def note_names() -> list[str]:
    """The toy's sound tokens."""
    return ["rest", *(f"{timbre}{pitch}" for timbre in TIMBRES for pitch in range(PITCHES))]


def render_note(name: str) -> Tensor:
    """Two slots of samples: a note and its decay."""
    time_ = torch.arange(round(2 * SLOT_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    if name == "rest":
        return torch.zeros_like(time_)
    timbre = name.rstrip("0123456789")
    frequency = 130.8 * 2 ** (int(name[len(timbre) :]) / 6)
    partials = torch.arange(1, 11)[:, None]
    waves = torch.sin(2 * math.pi * frequency * partials * time_)
    held = (1 - time_ / SLOT_SECONDS).clamp(0, 0.1) * 10
    attack = (time_ / 0.005).clamp(max=1)
    if timbre == "pluck":
        return 0.25 * attack * (waves * torch.exp(-6 * partials * time_) / partials).sum(0)
    if timbre == "organ":
        return 0.15 * attack * held * (waves[:6] / partials[:6]).sum(0)
    if timbre == "fuzz":
        return 0.4 * attack * held * (6 * (waves / partials).sum(0)).clamp(-1, 1)
    noise = torch.randn(len(time_), generator=torch.Generator().manual_seed(int(frequency)))
    return 0.3 * attack * held * noise


def load_policy(
    args: argparse.Namespace, device: torch.device
) -> tuple[PreTrainedModel, Any, list[str], Decoder]:
    """The policy, its tokenizer, the prompts and the decoder of its tokens."""
    if args.policy is None:
        tokenizer = toy_tokenizer()
        return warm_started(tokenizer, args.seed), tokenizer, STYLES * 64, NoteDecoder(tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(args.policy)
    decoder = CodecDecoder(
        AutoModel.from_pretrained(args.codec).to(device),
        args.codebooks,
        args.layout,
        offset=args.offset,
        end_token=tokenizer.eos_token_id,
    )
    prompts = args.prompts.read_text(encoding="utf-8").splitlines()
    return AutoModelForCausalLM.from_pretrained(args.policy), tokenizer, prompts, decoder


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A word per token: specials, style words, notes."""
    words = [*SPECIALS, *dict.fromkeys(" ".join(STYLES).split()), *note_names()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )


def warm_started(
    tokenizer: PreTrainedTokenizerFast, seed: int, steps: int = 150
) -> LlamaForCausalLM:
    """A small Llama trained for seconds on random walks, so that GRPO starts from something."""
    rng = random.Random(seed)
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
    for _ in range(150):
        texts = [random_song(rng) for _ in range(32)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def random_song(rng: random.Random) -> str:
    """A style and a random walk in it: low or high, calm (many rests) or lively.

    Most notes are distorted here; what the reward prefers is for GRPO to find out.
    """
    style = rng.choice(STYLES)
    lowest = 0 if "low" in style else PITCHES // 2
    rests = 0.15 if "calm" in style else 0.05
    length = SLOTS if rng.random() < 0.9 else rng.randrange(SLOTS // 3, SLOTS)
    timbre, pitch, words = "fuzz", rng.randrange(6), []
    for _ in range(length):
        pitch = min(5, max(0, pitch + rng.choice((-2, -1, 0, 1, 2))))
        timbre = rng.choices(TIMBRES, (1, 3, 12, 2))[0] if rng.random() < 0.2 else timbre
        words.append("rest" if rng.random() < rests else f"{timbre}{lowest + pitch}")
    return " ".join([style, *words, *(["<eos>"] if length < SLOTS else [])])


def write_songs(folder: Path, completions: list[dict[str, Any]], decode: Decoder) -> None:
    """Four songs of the first step and four of the last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("before", completions[:4]), ("after", completions[-4:])):
        for i, song in enumerate(decode([row["ids"] for row in rows])):
            if song is not None:
                save_wav(folder / f"{name}_{i}.wav", song.cpu().numpy(), decode.sample_rate)


def write_results(
    args: argparse.Namespace,
    log: list[dict[str, Any]],
    reward: RecordedReward,
    completions: list[dict[str, Any]],
    seconds: float,
) -> None:
    history = [
        {name: value for name, value in row.items() if value is not None}
        for row in log
        if "reward" in row
    ]
    write_table(args.output / "completions.jsonl", completions)
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in completions:
        by_step.setdefault(row["step"], []).append(row)
    tenth = max(1, round(len(by_step) / 10))
    steps = list(by_step.values())
    summary = {
        **before_and_after([[row["reward"] for row in rows] for rows in steps]),
        "guard_rate_before": flagged_share(steps[:tenth]),
        "guard_rate_after": flagged_share(steps[-tenth:]),
        "undecodable_after": undecodable_share(steps[-tenth:]),
        "seconds": seconds,
        "processes": PartialState().num_processes,
        "demonstration": reward.function.reward.demonstration,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
    }
    panels = {
        "reward": ["reward"],
        "aesthetic heads": [f"apex/{head}" for head in AESTHETIC_HEADS],
        "popularity heads": [f"apex/{head}" for head in POPULARITY_HEADS],
        "shares": ["apex/guard_any", "apex/undecodable", "apex/zero_variance_groups"],
    }
    write_run(args.output, history, summary, panels)
    print({name: summary[name] for name in summary if name != "settings"})


def flagged_share(steps: list[list[dict[str, Any]]]) -> float:
    """Share of the decoded songs that trip a guard."""
    flags = [row["flags"] for rows in steps for row in rows if row["flags"] is not None]
    return sum(map(bool, flags)) / max(1, len(flags))


def undecodable_share(steps: list[list[dict[str, Any]]]) -> float:
    """Share of the completions that give no song."""
    rows = [row for rows in steps for row in rows]
    return sum(row["flags"] is None for row in rows) / max(1, len(rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/grpo_codec_lm"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--prompts-per-step", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=SLOTS)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--kl", type=float, default=0.02, help="weight of the KL to the start")
    parser.add_argument("--mix", default="aesthetics")
    parser.add_argument("--guards", default="penalty", choices=["none", "flag", "penalty", "veto"])
    parser.add_argument("--penalty", type=float, default=0.3)
    parser.add_argument("--reward-model", default="apex-tiny", help="hub id or folder")
    real = parser.add_argument_group("a real codec language model")
    real.add_argument("--policy", help="hub id or folder; none: the toy")
    real.add_argument("--prompts", type=Path, help="a text file, a prompt a line")
    real.add_argument("--codec", help="hub id of its EnCodec or DAC")
    real.add_argument("--codebooks", type=int, default=4)
    real.add_argument("--layout", default="flat", choices=["flat", "delay"])
    real.add_argument("--offset", type=int, default=0, help="id of the first code")
    args = parser.parse_args()
    if args.policy and not (args.codec and args.prompts):
        parser.error("--policy needs --codec and --prompts")
    return args


if __name__ == "__main__":
    main()
