#!/usr/bin/env bash
# One would guess: disable_adapter gives the model that the adapter was added to, which is how a
# trainer gets its reference policy without a second copy.
# What happens: with PiSSA or OLoRA the base weights were changed when the adapter was added. The
# disabled model is neither the base model nor the tuned one.
# Seen with: torch 2.13.0, transformers 5.24.0, peft 0.21.2, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="default True, pissa True, olora True"
expected="default True, pissa False, olora False"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import copy

import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 16))
songs = torch.randn(4, 16)
found = []
for name, way in {"default": True, "pissa": "pissa", "olora": "olora"}.items():
    config = LoraConfig(r=4, target_modules=["0"], init_lora_weights=way)
    policy = get_peft_model(copy.deepcopy(model), config)
    assert torch.allclose(policy(songs), model(songs), atol=1e-5)
    with policy.disable_adapter():
        found.append(f"{name} {torch.allclose(policy(songs), model(songs), atol=1e-5)}")
print(", ".join(found))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
