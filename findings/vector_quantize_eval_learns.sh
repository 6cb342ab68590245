#!/usr/bin/env bash
# One would guess: a module in eval mode keeps its state.
# What happens: a codebook with kmeans_init takes the first batch that it sees as its codebook, in
# eval mode and without gradients too: a test song becomes the codebook.
# Seen with: torch 2.13.0, numpy 2.3.3, vector-quantize-pytorch 1.32.0; 2026-11-30.
set -euo pipefail

guess="codebook kept True"
expected="codebook kept False"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.3.3 vector-quantize-pytorch==1.32.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from vector_quantize_pytorch import VectorQuantize

torch.manual_seed(0)
quantizer = VectorQuantize(dim=8, codebook_size=16, kmeans_init=True).eval()
before = quantizer.codebook.clone()
with torch.no_grad():
    quantizer(torch.randn(1, 200, 8))
print(f"codebook kept {torch.equal(before, quantizer.codebook)}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
