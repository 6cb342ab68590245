#!/usr/bin/env bash
# One would guess: the multi-resolution STFT loss of a batch is the mean of the losses of its
# songs, as the other losses of auraloss are.
# What happens: the spectral convergence divides by the energy of the whole batch: a quiet song
# that is nothing but noise hardly counts beside a loud one. 1.3 for a batch whose songs have a
# mean of 5.8.
# Seen with: torch 2.13.0, numpy 2.3.3, scipy 1.17.1, auraloss 0.4.0; 2026-11-30.
set -euo pipefail

guess="time 1.0, STFT 1.0"
expected="time 1.0, STFT 0.2"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.3.3 scipy==1.17.1 auraloss==0.4.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from auraloss.freq import MultiResolutionSTFTLoss
from auraloss.time import SISDRLoss

torch.manual_seed(0)
songs = torch.tensor([0.1, 0.001])[:, None, None] * torch.randn(2, 1, 44_100)
made = songs + torch.tensor([0.001, 0.01])[:, None, None] * torch.randn(2, 1, 44_100)
found = []
for name, loss in {"time": SISDRLoss(), "STFT": MultiResolutionSTFTLoss()}.items():
    alone = (loss(made[:1], songs[:1]) + loss(made[1:], songs[1:])) / 2
    found.append(f"{name} {loss(made, songs) / alone:.1f}")
print(", ".join(found))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
