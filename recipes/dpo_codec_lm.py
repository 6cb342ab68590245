"""DPO on a language model of sound tokens, with preference pairs made by ApexReward.

    python recipes/dpo_codec_lm.py --output runs/dpo

Generates songs for every prompt, scores them, builds pairs with `apex_reward.build_pairs`, trains a
LoRA adapter with TRL's DPOTrainer, generates again and compares. With no other argument: a small
Llama over note tokens, warm-started here, and apex-tiny as the reward; minutes on two CPU cores.
For the real thing name a codec language model and its codec:

    accelerate launch recipes/dpo_codec_lm.py --output runs/dpo --policy HUB_ID \
        --prompts FILE.txt --reward-model amaai-lab/apex \
        --codec facebook/encodec_32khz --codebooks 4 --layout delay --offset 32000 \
        --max-tokens 1500 --learning-rate 1e-5 --batch-size 4

Leaves history.jsonl (a row per logged step; `reward` is the mean over fresh generations),
summary.json, curves.png, pairs.jsonl and dropped.jsonl, audio/ before and after, and the adapter.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl import DPOConfig, DPOTrainer

from apex_reward import ApexReward
from apex_reward.audio import save_wav
from apex_reward.files.tables import write_table
from apex_reward.pairs import build_pairs, to_trl
from apex_reward.report.run import write_run
from apex_reward.rewards.decoders import CodecDecoder

# The toy's prompts and tokens: a slot of music each, one of four voices at one of 12 pitches, or a
# rest. The prompt names a register, a mood and a place, only the first two of which matter.
REGISTERS, MOODS = ("low", "middle", "high"), ("calm", "lively")
PLACES = ("forest", "city", "sea", "desert", "attic", "station", "garden", "bridge")
VOICES, COMMON, PITCHES = ("bell", "pipe", "saw", "wind"), (1, 3, 1, 3), 12
SLOTS, SLOT_SECONDS, SAMPLE_RATE = 16, 0.25, 24_000
SPECIALS = ("<pad>", "<bos>", "<eos>")
LOGGED = ("loss", "rewards/accuracies", "rewards/margins", "grad_norm")
Row = dict[str, Any]


def main() -> None:
    args = parse_arguments()
    started = time.time()
    set_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy, tokenizer, prompts, decode = load_policy(args, device)
    listener = Listener(args, tokenizer, decode, device)

    before = listener.songs(policy, prompts, args.candidates, args.seed)
    pairs, dropped = build_pairs(
        before,
        strategy=args.strategy,
        axis="reward",
        top_k=args.top_k,
        test_share=args.test_share,
        seed=args.seed,
    )
    write_table(args.output / "pairs.jsonl", pairs)
    write_table(args.output / "dropped.jsonl", dropped)
    print(f"{len(before)} songs of {len(prompts)} prompts -> {len(pairs)} pairs")

    splits = {name: to_trl([p for p in pairs if p["split"] == name]) for name in ("train", "test")}
    curve = RewardCurve(listener, prompts, args)
    trainer = DPOTrainer(
        policy,
        args=dpo_config(args),
        train_dataset=splits["train"],
        eval_dataset=splits["test"],
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=args.lora_rank,
            lora_alpha=2 * args.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[curve],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    held_out = trainer.evaluate()
    trainer.save_model(str(args.output / "adapter"))

    after = listener.songs(trainer.model, prompts, args.candidates, args.seed + 1)
    summary = {
        **rise(before, after),
        "held_out_accuracy": held_out["eval_rewards/accuracies"],
        "held_out_pairs": len(splits["test"]),
        "train_pairs": len(splits["train"]),
        "seconds": time.time() - started,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
    }
    panels = {
        "reward of fresh generations": ["reward"],
        "loss, DPO + SFT": ["loss"],
        "accuracy on training pairs": ["rewards/accuracies"],
    }
    write_run(args.output, curve.rows, summary, panels)
    listener.save(args.output / "audio", {"before": before, "after": after})
    print({name: value for name, value in summary.items() if name != "settings"})


class Listener:
    """Generates songs with a policy, decodes and scores them."""

    def __init__(
        self, args: argparse.Namespace, tokenizer: Any, decode: Any, device: torch.device
    ) -> None:
        # The toy's songs fill one short segment; the published model hears 30 s at a time.
        settings = {} if args.policy else {"segment_seconds": SLOTS * SLOT_SECONDS}
        self.model = ApexReward.from_pretrained(args.reward_model, **settings).to(device)
        self.args, self.tokenizer, self.decode, self.device = args, tokenizer, decode, device

    def songs(self, policy: Any, prompts: Sequence[str], each: int, seed: int) -> list[Row]:
        """`each` candidates per prompt as rows for `build_pairs`; `reward` may be None."""
        rows = []
        # A generator of their own: how often songs are drawn does not change the training.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for number, prompt in enumerate(prompts):
                completions = self.generate(policy, prompt, each)
                rewards = self.rewards(self.decode(completions))
                rows += [
                    {
                        "prompt_id": number,
                        "prompt": prompt,
                        "audio": f"prompt{number:03d}_{k:02d}.wav",
                        "tokens": self.text(ids),
                        "ids": ids,
                        "reward": reward,
                    }
                    for k, (ids, reward) in enumerate(zip(completions, rewards, strict=True))
                ]
        return rows

    @torch.no_grad()
    def generate(self, policy: Any, prompt: str, count: int) -> list[list[int]]:
        """Token ids of `count` sampled completions, up to the end token."""
        inputs = self.tokenizer([prompt], return_tensors="pt").to(policy.device)
        training = policy.training
        policy.eval()
        output = policy.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=self.args.max_tokens,
            num_return_sequences=count,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        policy.train(training)
        end = self.tokenizer.eos_token_id
        return [
            list(itertools.takewhile(lambda token: token != end, ids))
            for ids in output[:, inputs.input_ids.shape[1] :].tolist()
        ]

    def text(self, ids: list[int]) -> str:
        """What DPOTrainer will tokenize; it has to come back as the same ids."""
        text = self.tokenizer.decode(ids)
        if self.tokenizer(text, add_special_tokens=False).input_ids != ids:
            sys.exit("this tokenizer does not give its own tokens back; DPO would train on others")
        return text

    @torch.no_grad()
    def rewards(self, songs: Sequence[Tensor | None]) -> list[float | None]:
        """The mix of each decoded song."""
        rewards: list[float | None] = [None] * len(songs)
        heard = [i for i, song in enumerate(songs) if song is not None]
        if heard:
            # Songs are (T,) or (C, T); the model hears the mean of the channels.
            waveforms = [songs[i].reshape(-1, songs[i].shape[-1]).mean(0) for i in heard]
            batch = pad_sequence(waveforms, batch_first=True).to(self.device)
            lengths = torch.tensor([len(waveform) for waveform in waveforms], device=self.device)
            values = self.model.reward(batch, self.decode.sample_rate, lengths, mix=self.args.mix)
            for i, value in zip(heard, values.tolist(), strict=True):
                rewards[i] = value
        return rewards

    def save(self, folder: Path, sets: dict[str, list[Row]]) -> None:
        """The first song of four prompts of each set."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in sets.items():
            firsts = [row for row in rows if row["audio"].endswith("_00.wav")][:4]
            for row, song in zip(firsts, self.decode([row["ids"] for row in firsts]), strict=True):
                if song is not None:
                    path = folder / f"{name}_{row['audio']}"
                    save_wav(path, song.cpu().numpy(), self.decode.sample_rate)


class RewardCurve(TrainerCallback):
    """At every log: the mean reward of a few fresh generations, next to what TRL logged."""

    def __init__(self, listener: Listener, prompts: Sequence[str], args: argparse.Namespace):
        self.listener, self.prompts, self.args = listener, prompts, args
        self.rows: list[Row] = []

    def measure(self, model: Any, step: int, logged: dict[str, float]) -> None:
        seed = self.args.seed + 1000 + step
        songs = self.listener.songs(model, self.prompts, self.args.fresh, seed)
        rewards = [row["reward"] for row in songs if row["reward"] is not None]
        self.rows.append({"step": step, "reward": statistics.fmean(rewards), **logged})

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.measure(model, 0, {})

    def on_log(self, args: Any, state: Any, control: Any, model: Any, logs: Row, **_: Any) -> None:
        if "loss" in logs:
            self.measure(model, state.global_step, {k: float(logs[k]) for k in LOGGED})


def rise(before: list[Row], after: list[Row]) -> dict[str, float]:
    """Mean rewards before and after, and the rise in standard errors of the difference."""
    old, new = (
        [row["reward"] for row in rows if row["reward"] is not None] for rows in (before, after)
    )
    error = math.sqrt(statistics.variance(old) / len(old) + statistics.variance(new) / len(new))
    difference = statistics.fmean(new) - statistics.fmean(old)
    return {
        "reward_before": statistics.fmean(old),
        "reward_after": statistics.fmean(new),
        "reward_std_before": statistics.pstdev(old),
        "rise_in_standard_errors": difference / error,
        "decoded_before": len(old) / len(before),
        "decoded_after": len(new) / len(after),
    }


def dpo_config(args: argparse.Namespace) -> DPOConfig:
    gpu = torch.cuda.is_available()
    return DPOConfig(
        output_dir=str(args.output / "trainer"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=5,
        beta=args.beta,
        # DPO alone may lower the likelihood of chosen songs too, until they no longer decode.
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, args.sft_weight],
        max_length=None,
        logging_steps=args.logging_steps,
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
        self.notes = {vocabulary[name]: render_note(name) for name in note_names()}

    def __call__(self, completions: Sequence[Sequence[int]]) -> list[Tensor | None]:
        return [self.song(ids) for ids in completions]

    def song(self, ids: Sequence[int]) -> Tensor | None:
        """(T,) samples; None where there is no note, or a token that is none."""
        if not ids or any(token not in self.notes for token in ids):
            return None
        slot = round(SLOT_SECONDS * SAMPLE_RATE)
        song = torch.zeros(slot * (len(ids) + 1))
        for position, token in enumerate(ids):
            song[position * slot : (position + 2) * slot] += self.notes[token]
        return song[: slot * len(ids)]


def note_names() -> list[str]:
    return ["rest", *(f"{voice}{pitch}" for voice in VOICES for pitch in range(PITCHES))]


def render_note(name: str) -> Tensor:
    """Two slots of samples: a note and its decay."""
    seconds = torch.arange(round(2 * SLOT_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    if name == "rest":
        return torch.zeros_like(seconds)
    voice = name.rstrip("0123456789")
    pitch = int(name[len(voice) :])
    phase = 2 * math.pi * 130.8 * 2 ** (pitch / 6) * seconds
    shape = (seconds / 0.01).clamp(max=1) * ((2 * SLOT_SECONDS - seconds) / 0.3).clamp(0, 1)
    if voice == "bell":
        tone = sum(torch.sin(k * phase) * torch.exp(-5 * k * seconds) / k for k in range(1, 6))
    elif voice == "pipe":
        tone = torch.sin(phase) + 0.3 * torch.sin(3 * phase)
    elif voice == "saw":
        tone = (4 * sum(torch.sin(k * phase) / k for k in range(1, 9))).clamp(-1, 1)
    else:
        tone = torch.randn(len(seconds), generator=torch.Generator().manual_seed(pitch))
    return 0.25 * shape * tone


def load_policy(args: argparse.Namespace, device: torch.device) -> tuple[Any, Any, list[str], Any]:
    """The policy, its tokenizer, the prompts and the decoder of its tokens."""
    if args.policy is None:
        tokenizer = toy_tokenizer()
        policy = warm_started(tokenizer, args.seed, args.warm_steps)
        return policy, tokenizer, toy_prompts(), NoteDecoder(tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(args.policy)
    decoder = CodecDecoder(
        AutoModel.from_pretrained(args.codec).to(device),
        args.codebooks,
        args.layout,
        offset=args.offset,
        end_token=tokenizer.eos_token_id,
    )
    prompts = args.prompts.read_text(encoding="utf-8").splitlines()
    return AutoModelForCausalLM.from_pretrained(args.policy).to(device), tokenizer, prompts, decoder


def toy_prompts() -> list[str]:
    return [" ".join(words) for words in itertools.product(REGISTERS, MOODS, PLACES)]


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A word per token: specials, prompt words, notes."""
    words = [*SPECIALS, *REGISTERS, *MOODS, *PLACES, *note_names()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def warm_started(tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> LlamaForCausalLM:
    """A small Llama trained for seconds on random walks, so that DPO starts from something."""
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
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = tokenizer([random_song(rng) for _ in range(32)], return_tensors="pt", padding=True)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def random_song(rng: random.Random) -> str:
    """A prompt and a random walk in its register, with rests where it is calm.

    Bells are rare and the voice seldom changes: whether the reward likes either is for DPO to find
    out.
    """
    register, mood, place = (rng.choice(words) for words in (REGISTERS, MOODS, PLACES))
    lowest, rests = 3 * REGISTERS.index(register), 0.3 if mood == "calm" else 0.1
    step, voice, words = rng.randrange(6), rng.choices(VOICES, COMMON)[0], []
    for _ in range(SLOTS):
        step = min(5, max(0, step + rng.choice((-2, -1, 0, 1, 2))))
        voice = rng.choices(VOICES, COMMON)[0] if rng.random() < 0.15 else voice
        words.append("rest" if rng.random() < rests else f"{voice}{lowest + step}")
    return " ".join([register, mood, place, *words, "<eos>"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/dpo_codec_lm"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--candidates", type=int, default=12, help="songs per prompt")
    parser.add_argument("--fresh", type=int, default=2, help="songs per prompt at every log")
    parser.add_argument("--strategy", default="top-bottom", help="of build_pairs")
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--test-share", type=float, default=0.2)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--beta", type=float, default=0.1, help="weight of the KL to the start")
    parser.add_argument("--sft-weight", type=float, default=0.5, help="of the chosen songs")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--logging-steps", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=SLOTS)
    parser.add_argument("--mix", default="aesthetics")
    parser.add_argument("--reward-model", default="apex-tiny", help="hub id or folder")
    parser.add_argument("--warm-steps", type=int, default=200, help="of the toy's first training")
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
    if args.strategy != "top-bottom":
        args.top_k = None
    return args


if __name__ == "__main__":
    main()
