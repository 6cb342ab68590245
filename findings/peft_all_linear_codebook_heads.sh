#!/usr/bin/env bash
# One would guess: target_modules all-linear leaves the output layer out, as peft documents it.
# What happens: the four output layers of MusicGen's decoder, one per codebook, are adapted too.
# Seen with: torch 2.13.0, transformers 5.24.0, peft 0.21.2, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="adapted output layers 0 of 4"
expected="adapted output layers 4 of 4"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
from peft import LoraConfig, get_peft_model
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

config = MusicgenDecoderConfig(
    vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2
)
model = get_peft_model(
    MusicgenForCausalLM(config), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
)
heads = [name for name, _ in model.named_modules() if "lm_heads" in name and name.endswith("lora_A")]
print(f"adapted output layers {len(heads)} of {config.num_codebooks}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
