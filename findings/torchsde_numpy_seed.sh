#!/usr/bin/env bash
# One would guess: torch's seed decides the noise of a Brownian path of tensors.
# What happens: it does not: NumPy's global seed does.
# Seen with: torch 2.13.0, numpy 2.3.3, torchsde 0.2.6; 2026-11-30.
set -euo pipefail

guess="torch's seed True, NumPy's seed False"
expected="torch's seed False, NumPy's seed True"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.3.3 torchsde==0.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
import torch
import torchsde


def noise():
    path = torchsde.BrownianInterval(0.0, 1.0, size=(1, 4))
    return path(0.0, 0.5)


def same(seed):
    values = []
    for _ in range(2):
        seed(3)
        values.append(noise())
    return torch.equal(*values)


print(f"torch's seed {same(torch.manual_seed)}, NumPy's seed {same(np.random.seed)}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
