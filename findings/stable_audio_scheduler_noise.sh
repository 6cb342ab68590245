#!/usr/bin/env bash
# One would guess: a second song of one generator has other noise than the first.
# What happens: the scheduler that Stable Audio uses seeds a path of its own with the generator's
# initial seed: both songs have the same noise.
# Seen with: torch 2.13.0, diffusers 0.42.1, torchsde 0.2.6, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="second song differs True"
expected="second song differs False"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 diffusers==0.42.1 torchsde==0.2.6 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from diffusers import CosineDPMSolverMultistepScheduler

generator = torch.Generator().manual_seed(0)


def song():
    scheduler = CosineDPMSolverMultistepScheduler()
    scheduler.set_timesteps(4)
    sound = torch.ones(1, 2, 8)
    for step in scheduler.timesteps:
        sound = scheduler.step(0.1 * sound, step, sound, generator=generator).prev_sample
    return sound


print(f"second song differs {not torch.equal(song(), song())}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
