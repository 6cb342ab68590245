#!/usr/bin/env bash
# One would guess: the gradient of a batch norm does not depend on how its input lies in memory.
# What happens: for a mel (songs, frames, bands) that is transposed to (songs, bands, frames, 1)
# the values are right and the gradient on a CPU is wrong, in train and in eval mode, without an
# error. A contiguous copy of the mel has the right one. CLAP of transformers begins with such a
# layer.
# Seen with: torch 2.14.1; 2026-11-30.
set -euo pipefail

guess="same values True, same gradient True"
expected="same values True, same gradient False"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.14.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch

torch.manual_seed(0)
norm = torch.nn.BatchNorm2d(8).double().eval()
mel = torch.randn(2, 12, 8, dtype=torch.float64)
weights = torch.randn(2, 8, 12, 1, dtype=torch.float64)


def value_and_gradient(layout):
    leaf = mel.clone().requires_grad_()
    output = norm(layout(leaf.transpose(1, 2)[..., None]))
    (output * weights).sum().backward()
    return output.detach(), leaf.grad


view = value_and_gradient(lambda tensor: tensor)
copy = value_and_gradient(lambda tensor: tensor.contiguous())
value, gradient = (torch.allclose(a, b) for a, b in zip(view, copy))
print(f"same values {value}, same gradient {gradient}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
