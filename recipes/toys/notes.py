"""A toy codec and a language model of its tokens, for the recipes without a policy of their own.

A token is a slot of a quarter second: one of four timbres at one of twelve pitches, or a rest. A
song is a row of tokens, one word each. Its sound is the sum of the sounds of its tokens.

Shape key: T = samples.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from apex_reward.audio import Waveform
from apex_reward.runs.policy import Policy

SAMPLE_RATE = 24_000
SLOTS = 16
SLOT_SECONDS = 0.25
SONG_SECONDS = SLOTS * SLOT_SECONDS
TIMBRES = ("pluck", "organ", "fuzz", "hiss")
PITCHES = 12
# A prompt names a register, a mood and a place; the first two say what the song is like.
REGISTERS = ("low", "middle", "high")
MOODS = ("calm", "lively")
PLACES = ("forest", "city", "sea", "desert", "attic", "station", "garden", "bridge")
SPECIALS = ("<pad>", "<bos>", "<eos>")


class NoteDecoder:
    """Note tokens to songs: the `decode` of the toy's reward function.

    Args:
        tokenizer: as `note_tokenizer` makes it.
    """

    sample_rate = SAMPLE_RATE
    expected = f"ids of notes (1 to {SLOTS}), ended by <eos>"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        vocabulary = tokenizer.get_vocab()
        self._end = vocabulary["<eos>"]
        self._names = {vocabulary[name]: name for name in note_names()}

    def __call__(self, completion_ids: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """A song (T,) per completion; None without a note or with a token that is no note."""
        return [self._song(list(ids)) for ids in completion_ids]

    def _song(self, ids: list[int]) -> Tensor | None:
        played = ids[: ids.index(self._end)] if self._end in ids else ids
        if not played or any(token not in self._names for token in played):
            return None
        slot = round(SLOT_SECONDS * SAMPLE_RATE)
        song = torch.zeros(slot * (len(played) + 1))
        for position, token in enumerate(played):
            song[position * slot : (position + 2) * slot] += render_note(self._names[token])
        return song[: slot * len(played)]


def note_names() -> list[str]:
    """The toy's sound tokens."""
    return ["rest", *(f"{timbre}{pitch}" for timbre in TIMBRES for pitch in range(PITCHES))]


@cache
def render_note(name: str) -> Tensor:
    """Two slots (T,) of samples: a note and its decay."""
    seconds = torch.arange(round(2 * SLOT_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    if name == "rest":
        return torch.zeros_like(seconds)
    timbre = name.rstrip("0123456789")
    frequency = 130.8 * 2 ** (int(name[len(timbre) :]) / 6)
    partials = torch.arange(1, 11)[:, None]
    waves = torch.sin(2 * math.pi * frequency * partials * seconds)
    held = (1 - seconds / SLOT_SECONDS).clamp(0, 0.1) * 10
    attack = (seconds / 0.005).clamp(max=1)
    if timbre == "pluck":
        return 0.25 * attack * (waves * torch.exp(-6 * partials * seconds) / partials).sum(0)
    if timbre == "organ":
        return 0.15 * attack * held * (waves[:6] / partials[:6]).sum(0)
    if timbre == "fuzz":
        return 0.4 * attack * held * (6 * (waves / partials).sum(0)).clamp(-1, 1)
    noise = torch.randn(len(seconds), generator=torch.Generator().manual_seed(int(frequency)))
    return 0.3 * attack * held * noise


def note_tokenizer() -> PreTrainedTokenizerFast:
    """A word per token: specials, prompt words, notes."""
    words = [*SPECIALS, *REGISTERS, *MOODS, *PLACES, *note_names()]
    return word_tokenizer(words, bos_token="<bos>", eos_token="<eos>", padding_side="left")


def word_tokenizer(words: Sequence[str], **options: Any) -> PreTrainedTokenizerFast:
    """A token per word of a text, `<pad>` for a word that is not one of them."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", **options)


def note_prompts() -> list[str]:
    """All 48 prompts, such as `low calm forest`."""
    return [" ".join(words) for words in itertools.product(REGISTERS, MOODS, PLACES)]


def random_notes(rng: random.Random) -> str:
    """A prompt and a random walk in its register, with rests where it is calm.

    Most notes are distorted, so training can raise the reward.
    """
    register, mood, place = (rng.choice(words) for words in (REGISTERS, MOODS, PLACES))
    lowest, rests = 3 * REGISTERS.index(register), 0.12 if mood == "calm" else 0.04
    length = SLOTS if rng.random() < 0.9 else rng.randrange(SLOTS // 3, SLOTS)
    timbre, step, words = "fuzz", rng.randrange(6), []
    for _ in range(length):
        step = min(5, max(0, step + rng.choice((-2, -1, 0, 1, 2))))
        timbre = rng.choices(TIMBRES, (1, 3, 12, 2))[0] if rng.random() < 0.2 else timbre
        words.append("rest" if rng.random() < rests else f"{timbre}{lowest + step}")
    return " ".join([register, mood, place, *words, *(["<eos>"] if length < SLOTS else [])])


def note_references(count: int = 32) -> list[Waveform]:
    """Songs of plucks and organs alone, as the reference of a distance."""
    rng = random.Random(0)
    tokenizer = note_tokenizer()
    decode = NoteDecoder(tokenizer)
    songs: list[Waveform] = []
    while len(songs) < count:
        words = random_notes(rng).split()[3:]
        clean = [word.replace("fuzz", "organ").replace("hiss", "pluck") for word in words]
        (song,) = decode([tokenizer(" ".join(clean)).input_ids])
        if song is not None:
            songs.append(Waveform(song.numpy()[None], SAMPLE_RATE))
    return songs


def note_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, steps: int = 150
) -> LlamaForCausalLM:
    """A Llama of two layers trained on random walks of notes.

    Args:
        tokenizer: as `note_tokenizer` makes it.
        seed: random seed of weights and songs; the global generator does not change.
        steps: training steps of 32 songs each.
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
        texts = [random_notes(rng) for _ in range(32)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def note_policy(seed: int, device: str | torch.device = "cpu", steps: int = 150) -> Policy:
    """The policy of the recipes without `--policy`.

    Args:
        seed, steps: as in `note_model`.
    """
    tokenizer = note_tokenizer()
    model: torch.nn.Module = note_model(tokenizer, seed, steps)
    return Policy(
        model.to(device), tokenizer, note_prompts(), NoteDecoder(tokenizer),
        note_references, SONG_SECONDS,
    )  # fmt: skip
