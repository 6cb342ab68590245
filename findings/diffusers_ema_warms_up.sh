#!/usr/bin/env bash
# One would guess: EMAModel(decay=0.9), with use_ema_warmup=False as by default, moves a tenth of
# the way to the weights at every step: 0.271 after three steps from 0 to 1.
# What happens: the decay is 0 at the first step, which copies the weights, and (1 + n) / (10 + n)
# later. 0.9 is reached at step 81, and 0.9999 after 89,990 steps.
# Seen with: torch 2.13.0, diffusers 0.42.1, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="after three steps 0.271, decay 0.90"
expected="after three steps 1.000, decay 0.25"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 diffusers==0.42.1 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from diffusers.training_utils import EMAModel

weights = [torch.nn.Parameter(torch.zeros(1))]
average = EMAModel(weights, decay=0.9)
weights[0].data.fill_(1.0)
for _ in range(3):
    average.step(weights)
print(f"after three steps {average.shadow_params[0].item():.3f}, decay {average.cur_decay_value:.2f}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
