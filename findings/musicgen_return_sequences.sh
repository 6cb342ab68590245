#!/usr/bin/env bash
# One would guess: num_return_sequences=2 gives two songs of a prompt.
# What happens: it gives one song of twice the length.
# Seen with: torch 2.13.0, transformers 5.24.0, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="songs 2, 1.0 times as long as one"
expected="songs 1, 2.0 times as long as one"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

torch.manual_seed(0)
decoder = MusicgenDecoderConfig(
    vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
    pad_token_id=64, bos_token_id=64,
)
model = MusicgenForConditionalGeneration(
    text_encoder=T5EncoderModel(
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ),
    audio_encoder=EncodecModel(
        EncodecConfig(
            codebook_size=64, codebook_dim=8, hidden_size=8, num_filters=4,
            upsampling_ratios=[4, 2], target_bandwidths=[48.0], sampling_rate=16_000,
        )
    ),
    decoder=MusicgenForCausalLM(decoder),
).eval()
ids = torch.tensor([[3, 5, 7, 1]])
options = {"attention_mask": torch.ones_like(ids), "do_sample": True, "max_new_tokens": 12}
one = model.generate(ids, **options)
two = model.generate(ids, num_return_sequences=2, **options)
print(f"songs {len(two)}, {two.shape[-1] / one.shape[-1]:.1f} times as long as one")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
