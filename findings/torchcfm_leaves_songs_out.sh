#!/usr/bin/env bash
# One would guess: a batch that is paired by optimal transport holds each of its songs once.
# What happens: pairs are drawn with replacement: 64 songs leave about 40 different ones. They
# follow NumPy's seed, not torch's.
# Seen with: torch 2.13.0, numpy 2.3.3, torchcfm 1.0.7; 2026-11-30.
set -euo pipefail

guess="all songs kept True, torch's seed repeats the pairs True"
expected="all songs kept False, torch's seed repeats the pairs False"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.3.3 torchcfm==1.0.7
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from torchcfm.optimal_transport import OTPlanSampler

torch.manual_seed(0)
noise, songs = torch.randn(64, 4), torch.arange(64.0)[:, None].repeat(1, 4)


def drawn():
    torch.manual_seed(1)
    return OTPlanSampler("exact").sample_plan(noise, songs)[1][:, 0]


first, second = drawn(), drawn()
print(f"{len(first.unique())} of 64 songs")
print(
    f"all songs kept {len(first.unique()) == 64}, "
    f"torch's seed repeats the pairs {torch.equal(first, second)}"
)
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
