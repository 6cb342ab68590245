#!/usr/bin/env bash
# One would guess: an embedding of zeros, as silence can have, stays zeros when it is normalised,
# and its cosine similarity is 0, in every number type.
# What happens: in float16 both are NaN: the smallest allowed length (1e-12 and 1e-8) is rounded
# to 0. float32 and bfloat16 give 0.
# Seen with: torch 2.14.1; 2026-11-30.
set -euo pipefail

guess="float32 0 and 0, bfloat16 0 and 0, float16 0 and 0"
expected="float32 0 and 0, bfloat16 0 and 0, float16 nan and nan"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.14.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from torch.nn import functional as F

found = []
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    silence, song = torch.zeros(1, 8, dtype=dtype), torch.ones(1, 8, dtype=dtype)
    unit = F.normalize(silence, dim=1).abs().max().item()
    cosine = F.cosine_similarity(silence, song).item()
    found.append(f"{str(dtype)[6:]} {unit:g} and {cosine:g}")
print(", ".join(found))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
