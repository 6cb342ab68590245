#!/usr/bin/env bash
# One would guess: a kernel distance with a bounded kernel grows with the distance of two sets, up
# to a finite bound.
# What happens: the loss gaussian of sets that lie 300 apart is infinite. The loss laplacian falls
# as the sets move apart from 3 to 300.
# Seen with: torch 2.13.0, numpy 2.3.3, geomloss 0.3.1; 2026-11-30.
set -euo pipefail

guess="gaussian finite True, laplacian grows True"
expected="gaussian finite False, laplacian grows False"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.3.3 geomloss==0.3.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from geomloss import SamplesLoss

torch.manual_seed(0)
songs = torch.randn(50, 16)
values = {
    name: [SamplesLoss(name)(songs, songs + shift).item() for shift in (3.0, 30.0, 300.0)]
    for name in ("gaussian", "laplacian")
}
print(values)
finite = all(abs(value) < float("inf") for value in values["gaussian"])
print(f"gaussian finite {finite}, laplacian grows {values['laplacian'] == sorted(values['laplacian'])}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
