#!/usr/bin/env bash
# One would guess: an adapter that was just added changes nothing until it is trained.
# What happens: with LoRA, LoHa and OFT it does not. FourierFT and C3A start from random values:
# the output of the fresh model differs.
# Seen with: torch 2.13.0, transformers 5.24.0, peft 0.21.2, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="LoRA True, LoHa True, OFT True, FourierFT True, C3A True"
expected="LoRA True, LoHa True, OFT True, FourierFT False, C3A False"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import copy

import torch
from peft import C3AConfig, FourierFTConfig, LoHaConfig, LoraConfig, OFTConfig, get_peft_model

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 16))
songs = torch.randn(4, 16)
kinds = {
    "LoRA": LoraConfig(target_modules=["0"]),
    "LoHa": LoHaConfig(target_modules=["0"]),
    "OFT": OFTConfig(oft_block_size=4, r=0, target_modules=["0"]),
    "FourierFT": FourierFTConfig(n_frequency=16, target_modules=["0"]),
    "C3A": C3AConfig(block_size=8, target_modules=["0"]),
}
found = []
for name, config in kinds.items():
    fresh = get_peft_model(copy.deepcopy(model), config)
    found.append(f"{name} {torch.allclose(fresh(songs), model(songs), atol=1e-5)}")
print(", ".join(found))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
