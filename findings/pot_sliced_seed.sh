#!/usr/bin/env bash
# One would guess: torch's seed, or NumPy's, makes the random directions of a sliced Wasserstein
# distance of tensors the same again.
# What happens: neither does: two calls after the same seeds differ. Only the argument seed does.
# Seen with: torch 2.13.0, numpy 2.3.3, scipy 1.17.1, POT 0.9.7.post1; 2026-11-30.
set -euo pipefail

guess="global seeds True, argument True"
expected="global seeds False, argument True"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.3.3 scipy==1.17.1 POT==0.9.7.post1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
import ot
import torch

torch.manual_seed(0)
one, two = torch.randn(64, 8), torch.randn(64, 8) + 0.5


def seeded(**options):
    torch.manual_seed(1)
    np.random.seed(1)
    return ot.sliced_wasserstein_distance(one, two, **options).item()


print(f"global seeds {seeded() == seeded()}, argument {seeded(seed=1) == seeded(seed=1)}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
