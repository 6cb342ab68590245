#!/usr/bin/env bash
# One would guess: binary_auroc depends on the order of scores alone: a score of 41 to 99 that
# orders all songs rightly has 1, as the same score divided by 100 has.
# What happens: scores outside [0, 1] go through a sigmoid first. In float32 it is 1 from about 17
# on, so all songs tie: 0.5, without a warning.
# Seen with: torch 2.13.0, numpy 2.3.3, torchmetrics 1.9.0; 2026-11-30.
set -euo pipefail

guess="divided by 100 1.0, as it is 1.0"
expected="divided by 100 1.0, as it is 0.5"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.3.3 torchmetrics==1.9.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from torchmetrics.functional.classification import binary_auroc

scores = torch.arange(41.0, 100.0)
liked = (scores > 70).int()
divided, plain = binary_auroc(scores / 100, liked), binary_auroc(scores, liked)
print(f"divided by 100 {divided:.1f}, as it is {plain:.1f}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
