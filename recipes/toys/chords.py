"""A small MusicGen over songs of notes. The codes of its codec are notes.

Shape key: B = songs, K = codebooks, V = codes of a codebook, F = frames, T = samples.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

from apex_reward.errors import UsageError
from toys.notes import SAMPLE_RATE, SLOT_SECONDS, SLOTS, render_note, word_tokenizer

STYLES = ("low calm", "low lively", "high calm", "high lively")
TIMBRES, PITCHES, CODEBOOKS = ("pluck", "organ", "fuzz"), 5, 4
NAMES = ["rest", *(f"{timbre}{pitch}" for timbre in TIMBRES for pitch in range(PITCHES))]
CODES = len(NAMES)
HOP = round(SLOT_SECONDS * SAMPLE_RATE)
START = CODES  # the id that fills the triangles of the delay


def toy_musicgen(
    seed: int, steps: int = 150
) -> tuple[MusicgenForConditionalGeneration, PreTrainedTokenizerFast]:
    """A MusicGen of two layers and its tokenizer, trained for seconds on random chords.

    The text encoder is a random T5 of one layer. The codec is not trained: the weights of its
    decoder are set so that each code sounds a note for two frames of a quarter second, and the
    codes of a frame sound together. Most notes of the training songs are dull. The prompt sets
    their pitch and the share of rests.

    Args:
        steps: of the training, 16 songs each.
    """
    torch.manual_seed(seed)
    codec = note_codec()
    text = T5Config(
        vocab_size=16, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=CODES, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        num_codebooks=CODEBOOKS, max_position_embeddings=64, dropout=0.0,
        pad_token_id=START, bos_token_id=START,
    )  # fmt: skip
    config = MusicgenConfig(text_encoder=text, audio_encoder=codec.config, decoder=decoder)
    model = MusicgenForConditionalGeneration(config, audio_encoder=codec)
    tokenizer = style_tokenizer()
    _fit(model, tokenizer, random.Random(seed), steps)
    return model.eval(), tokenizer


def style_tokenizer() -> PreTrainedTokenizerFast:
    """A word of the styles per token."""
    words = ["<pad>", "</s>", *dict.fromkeys(" ".join(STYLES).split())]
    return word_tokenizer(words, eos_token="</s>", model_max_length=8)


def random_codes(style: str, rng: random.Random) -> Tensor:
    """Codes (K, F) of a style: a walk in chords, most of them dull.

    Raises:
        UsageError: an unknown style.
    """
    if style not in STYLES:
        raise UsageError(f"unknown style {style!r}; expected one of {', '.join(STYLES)}")
    lowest, rests = 0 if "low" in style else PITCHES // 2, 0.5 if "calm" in style else 0.2
    step, timbre = rng.randrange(3), "organ"
    codes = torch.zeros(CODEBOOKS, SLOTS, dtype=torch.long)
    for frame in range(SLOTS):
        step = min(2, max(0, step + rng.choice((-1, 0, 1))))
        for book in range(CODEBOOKS):
            timbre = rng.choices(TIMBRES, (8, 24, 1))[0] if rng.random() < 0.2 else timbre
            pitch = lowest + (step + book) % 3
            if rng.random() >= rests:
                codes[book, frame] = NAMES.index(f"{timbre}{pitch}")
    return codes


class NoteCodec(EncodecModel):
    """The codec of `note_codec`."""

    def decode(self, *args: Any, **options: Any) -> Any:
        """As EnCodec's, without oneDNN, which takes minutes for a stride of this length."""
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            return super().decode(*args, **options)


def note_codec() -> NoteCodec:
    """An EnCodec whose decoder adds up the notes of a frame's codes, 4 frames a second.

    One number of a code's vector switches its note on. The upsampling layer holds each note's
    waveform: its positive half in one channel and its negative half in another (the layers between
    do not change numbers of at least 0). The last layer subtracts the two.
    """
    codec: Any = NoteCodec(
        EncodecConfig(
            sampling_rate=SAMPLE_RATE, upsampling_ratios=[HOP], hidden_size=CODES,
            num_filters=CODES // 2, codebook_size=CODES, codebook_dim=CODES, kernel_size=1,
            last_kernel_size=1, num_residual_layers=0, num_lstm_layers=1,
            target_bandwidths=[CODEBOOKS * SAMPLE_RATE / HOP * math.ceil(math.log2(CODES)) / 1000],
        )
    )  # fmt: skip
    with torch.no_grad():
        for book in codec.quantizer.layers:
            book.codebook.embed.copy_(torch.eye(CODES))
        entry, lstm, _, upsample, _, last = codec.decoder.layers
        for weight in lstm.parameters():
            weight.zero_()
        _set(entry.conv, torch.eye(CODES)[:, :, None])
        waves = torch.stack([render_note(name) for name in NAMES]) / CODEBOOKS
        _set(upsample.conv, _padded(torch.stack([waves.relu(), (-waves).relu()], dim=1)))
        _set(last.conv, _padded(torch.tensor([[[1.0], [-1.0]]])))
    return codec.requires_grad_(False)


def _padded(weight: Tensor) -> Tensor:
    """(A, 2, L) to (A, V / 2, L): the other channels are silent."""
    return nn.functional.pad(weight, (0, 0, 0, CODES // 2 - 2))


def _set(layer: Any, weight: Tensor) -> None:
    """Give a weight-normalised layer a weight, and no bias; rows of zeros keep a direction."""
    pair = layer.parametrizations.weight
    norm = weight.flatten(1).norm(dim=1).reshape(pair.original0.shape)
    pair.original0.copy_(norm)
    pair.original1.copy_(weight + (norm == 0))
    layer.bias.zero_()


def _fit(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    steps: int,
) -> None:
    """Train all but the codec and the text encoder to continue delayed codes."""
    model.text_encoder.requires_grad_(False)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    for _ in range(steps):
        styles = rng.choices(STYLES, k=16)
        codes = torch.stack([random_codes(style, rng) for style in styles]).flatten(0, 1)
        started = nn.functional.pad(codes, (1, 0), value=START)
        _, grid = model.decoder.build_delay_pattern_mask(started, START, SLOTS + CODEBOOKS)
        logits = model(
            **tokenizer(styles, return_tensors="pt", return_token_type_ids=False),
            decoder_input_ids=grid[:, :-1],
        ).logits
        targets = grid[:, 1:].flatten()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=START)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
