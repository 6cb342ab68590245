#!/usr/bin/env bash
# One would guess: two systems with the same scores are equal: the almost stochastic order gives
# 0.5.
# What happens: it gives 1 in both directions: each of the two is called worse than the other.
# Seen with: numpy 2.3.3, scipy 1.17.1, deepsig 1.2.8; 2026-11-30.
set -euo pipefail

guess="one against two 0.5, two against one 0.5"
expected="one against two 1.0, two against one 1.0"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1 deepsig==1.2.8
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
from deepsig import aso

scores = np.random.default_rng(0).normal(size=20)
values = [aso(a, b, seed=0, show_progress=False) for a, b in ((scores, scores.copy()),) * 2]
print("one against two {:.1f}, two against one {:.1f}".format(*values))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
