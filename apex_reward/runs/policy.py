"""A policy that writes sound tokens, its songs and their rewards.

Shape key: T = samples, C = channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from apex_reward.audio.load import Waveform
from apex_reward.errors import UsageError
from apex_reward.rewards.decoders import CodecDecoder
from apex_reward.rewards.groups import everywhere, prompt_keys
from apex_reward.rewards.judge import Judge
from apex_reward.runs.log import RunLog
from apex_reward.runs.settings import RewardSettings, build_judge, option, read_prompts

ROWS = 96  # songs that are sampled together
READ = ("input_ids", "attention_mask")  # what a language model takes of a tokenizer's output
Row = dict[str, Any]


@dataclass
class PolicySettings:
    """The policy, its prompts and its codec."""

    policy: str | None = option(None, "hub id or folder of a codec language model (a small one)")
    prompts: str | None = option(None, "text file with a prompt a line")
    codec: str | None = option(None, "hub id or folder of the policy's EnCodec or DAC")
    codebooks: int = option(4, "codebooks that the policy writes")
    layout: str = option("flat", "order of the codes in a completion", choices=["flat", "delay"])
    offset: int = option(0, "token id of the first code")
    lora_r: int = option(8, "rank of the LoRA adapter; its alpha is twice the rank")

    def lora(self) -> LoraConfig:
        """An adapter on every linear layer."""
        rank, layers = self.lora_r, "all-linear"
        return LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=layers)


@dataclass
class Policy:
    """A language model of sound tokens.

    Attributes:
        model: the language model.
        tokenizer: its tokenizer, for prompts and sound tokens.
        prompts: texts.
        decode: completions' ids to songs (T,) or (C, T), or None where ids do not decode; it has
            the attribute `sample_rate`.
        references: makes reference songs where the settings name none.
        seconds: length of a song where all have the same; it becomes the segment of apex-tiny.
    """

    model: Any
    tokenizer: Any
    prompts: list[str]
    decode: Any
    references: Callable[[], Iterable[Waveform]] | None = None
    seconds: float | None = None


def load_policy(settings: PolicySettings, device: str | torch.device = "cpu") -> Policy:
    """The policy that the settings name.

    Raises:
        UsageError: no policy, or one without codec or prompts.
    """
    if not (settings.policy and settings.codec and settings.prompts):
        raise UsageError("--policy needs --codec (what decodes its tokens) and --prompts (a file)")
    tokenizer: Any = AutoTokenizer.from_pretrained(settings.policy)
    codec, layout = AutoModel.from_pretrained(settings.codec).to(device), cast(Any, settings.layout)
    end = tokenizer.eos_token_id
    decoder = CodecDecoder(codec, settings.codebooks, layout, offset=settings.offset, end_token=end)
    prompts = read_prompts(settings.prompts)
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(settings.policy)
    return Policy(model.to(device), tokenizer, prompts, decoder)


@torch.no_grad()
def sample_tokens(
    policy: Policy,
    prompts: Sequence[str],
    each: int = 1,
    *,
    seed: int,
    max_new_tokens: int,
    model: Any = None,
) -> list[list[int]]:
    """Sampled completions of every prompt in turn, `each` of them, up to the end token.

    Sampling does not change the state of the global random generator.

    Args:
        model: used in place of the policy's model, such as a trainer's wrapped one.
    """
    writer, tokenizer = policy.model if model is None else model, policy.tokenizer
    training = writer.training
    writer.eval()
    completions: list[list[int]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        together = max(1, ROWS // each)
        for start in range(0, len(prompts), together):
            texts = list(prompts[start : start + together])
            inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
            read = {name: inputs[name].to(writer.device) for name in READ}
            output = writer.generate(
                **read, do_sample=True, top_k=0, max_new_tokens=max_new_tokens,
                num_return_sequences=each, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            completions += output[:, inputs.input_ids.shape[1] :].tolist()
    writer.train(training)
    end = tokenizer.eos_token_id
    return [list(itertools.takewhile(lambda token: token != end, ids)) for ids in completions]


def policy_judge(settings: RewardSettings, policy: Policy, guards: str = "penalty") -> Judge:
    """The reward of the settings with its reference songs.

    Args:
        guards: used where the settings name none.
    """
    rate = policy.decode.sample_rate
    return build_judge(settings, rate, policy.references, policy.seconds, None, guards=guards)


def split_prompts(prompts: list[str]) -> tuple[list[str], list[str]]:
    """Every sixth prompt is held out, the others are trained on. A single prompt is both.

    >>> split_prompts(["a", "b", "c", "d", "e", "f", "g"])
    (['a', 'g'], ['b', 'c', 'd', 'e', 'f'])
    """
    return prompts[::6], [p for i, p in enumerate(prompts) if i % 6] or prompts


class SongSampler:
    """Samples songs of a policy and scores them.

    Args:
        policy: the policy.
        judge: scores the songs.
        max_new_tokens: largest number of tokens of a song.

    Attributes:
        figures: figures of the latest songs, for a log.
    """

    def __init__(self, policy: Policy, judge: Judge, max_new_tokens: int) -> None:
        self.policy, self.judge, self.max_new_tokens = policy, judge, max_new_tokens
        self.figures: dict[str, float] = {}

    def songs(
        self, each: int, seed: int, model: Any = None, prompts: Sequence[str] | None = None
    ) -> list[Row]:
        """Candidates as rows for `build_pairs`, with `ids`; `reward` is None without a song.

        Args:
            each: songs of a prompt.
            model: used in place of the policy's model.
            prompts: used in place of the policy's prompts.

        Raises:
            UsageError: as `text`.
        """
        texts = self.policy.prompts if prompts is None else list(prompts)
        tokens = sample_tokens(
            self.policy, texts, each, seed=seed, max_new_tokens=self.max_new_tokens, model=model
        )
        asked = [text for text in texts for _ in range(each)]
        judged = self.judge(self.policy.decode(tokens), asked)
        self.figures = self.judge.figures(judged, prompt_keys(asked), everywhere)
        return [
            {
                "prompt_id": number // each, "prompt": asked[number],
                "audio": f"prompt{number // each:03d}_{number % each:02d}.wav",
                "tokens": self.text(ids), "ids": ids, "reward": reward,
            }
            for number, (ids, reward) in enumerate(zip(tokens, judged.rewards, strict=True))
        ]  # fmt: skip

    def text(self, ids: list[int]) -> str:
        """The text of token ids, for trainers that tokenize texts.

        Raises:
            UsageError: the tokenizer turns the text into other ids.
        """
        text: str = self.policy.tokenizer.decode(ids)
        if self.policy.tokenizer(text, add_special_tokens=False).input_ids != ids:
            raise UsageError(
                "the tokenizer turns the text of its own tokens into other tokens, so a trainer "
                "would train on other songs"
            )
        return text

    def save(self, log: RunLog, name: str, rows: Sequence[Row]) -> None:
        """Write the first song of four prompts into `audio/`."""
        firsts = [row for row in rows if row["audio"].endswith("_00.wav")][:4]
        decoded = self.policy.decode([row["ids"] for row in firsts])
        for row, song in zip(firsts, decoded, strict=True):
            stem = row["audio"].removesuffix(".wav")
            log.song(f"{name}_{stem}", song, self.policy.decode.sample_rate)
