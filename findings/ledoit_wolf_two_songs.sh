#!/usr/bin/env bash
# One would guess: Ledoit-Wolf shrinkage makes the covariance of any number of songs invertible,
# and shrinks most where songs are fewest: two songs in 50 dimensions are shrunk more than ten.
# What happens: scikit-learn does not shrink two songs at all: the covariance has rank 1, as
# without shrinkage. Three songs are shrunk by 0.31, ten by 0.76. OAS shrinks two songs by 0.68.
# Seen with: numpy 2.3.3, scikit-learn 1.9.1; 2026-11-30.
set -euo pipefail

guess="two songs rank 50, three songs rank 50, two songs with OAS rank 50"
expected="two songs rank 1, three songs rank 50, two songs with OAS rank 50"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scikit-learn==1.9.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
from sklearn.covariance import OAS, LedoitWolf

draws = np.random.default_rng(0)
fits = {}
for name, songs, kind in (
    ("two songs", 2, LedoitWolf),
    ("three songs", 3, LedoitWolf),
    ("two songs with OAS", 2, OAS),
):
    fit = kind().fit(draws.standard_normal((songs, 50)))
    print(name, "shrinkage", fit.shrinkage_)
    fits[name] = np.linalg.matrix_rank(fit.covariance_)
print(", ".join(f"{name} rank {rank}" for name, rank in fits.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
