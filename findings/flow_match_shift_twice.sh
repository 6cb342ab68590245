#!/usr/bin/env bash
# One would guess: a scheduler with shift 3 shifts its 1,000 noise levels once: the last of them,
# 0.001, becomes 0.0030.
# What happens: set_timesteps starts from the shifted last level and shifts it again: 0.0089.
# Seen with: torch 2.13.0, diffusers 0.42.1, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="last level 0.0030"
expected="last level 0.0089"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 diffusers==0.42.1 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
from diffusers import FlowMatchEulerDiscreteScheduler

scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
scheduler.set_timesteps(1000)
print(f"last level {scheduler.sigmas[-2].item():.4f}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
