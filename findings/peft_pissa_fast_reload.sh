#!/usr/bin/env bash
# One would guess: an adapter that was saved and loaded on the same base model gives what it gave.
# What happens: with pissa_niter_2, the fast form of PiSSA, loading decomposes the base weights
# anew with random vectors, so that the base is another one and the output differs. With pissa it
# is the same.
# Seen with: torch 2.13.0, transformers 5.24.0, peft 0.21.2, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="default True, pissa True, pissa_niter_2 True"
expected="default True, pissa True, pissa_niter_2 False"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64))
songs = torch.randn(4, 64)
found = []
for name, way in {"default": True, "pissa": "pissa", "pissa_niter_2": "pissa_niter_2"}.items():
    config = LoraConfig(r=4, target_modules=["0"], init_lora_weights=way)
    policy = get_peft_model(copy.deepcopy(model), config)
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    policy.save_pretrained(name)
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), name)
    found.append(f"{name} {torch.allclose(loaded(songs), policy(songs), atol=1e-3)}")
print(", ".join(found))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
