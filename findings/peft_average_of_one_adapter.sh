#!/usr/bin/env bash
# One would guess: the average of an adapter with itself, at weights of 0.5 and 0.5, is that
# adapter, whatever way of combining is chosen.
# What happens: only cat and svd give it. linear, which adds the two factors and not their
# products, gives twice the change, and ties gives half of it.
# Seen with: torch 2.13.0, transformers 5.24.0, peft 0.21.2, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="linear 1.0, cat 1.0, svd 1.0, ties 1.0"
expected="linear 2.0, cat 1.0, svd 1.0, ties 0.5"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
config = LoraConfig(r=4, target_modules=["0"])
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(16, 16)), config, "one")
model.add_adapter("same", config)
layer = model.base_model.model[0]
for factor in (layer.lora_A, layer.lora_B):
    values = torch.randn_like(factor["one"].weight)
    for name in ("one", "same"):
        factor[name].weight.data.copy_(values)
own, found = layer.get_delta_weight("one"), []
for way in ("linear", "cat", "svd", "ties"):
    model.add_weighted_adapter(["one", "same"], [0.5, 0.5], way, combination_type=way, density=1.0)
    times = (layer.get_delta_weight(way) * own).sum() / own.square().sum()
    found.append(f"{way} {times:.1f}")
print(", ".join(found))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
