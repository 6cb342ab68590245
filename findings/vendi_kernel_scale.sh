#!/usr/bin/env bash
# One would guess: vendi-score's score_K and score_dual agree, and neither depends on the length
# of the embeddings, as score_dual does not by default.
# What happens: score_K normalises only where it is asked to: with embeddings ten times as long it
# gives 0 distinct songs of 20, score_dual still 6.5.
# Seen with: numpy 2.3.3, scikit-learn 1.9.1, scipy 1.17.1, vendi-score 0.0.3; 2026-11-30.
set -euo pipefail

guess="score_dual 6.5, score_K 6.5"
expected="score_dual 6.5, score_K 0.0"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scikit-learn==1.9.1 scipy==1.17.1 vendi-score==0.0.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
from vendi_score import vendi

songs = np.random.default_rng(0).standard_normal((20, 8))
songs *= 10 / np.linalg.norm(songs, axis=1, keepdims=True)
print(f"score_dual {vendi.score_dual(songs):.1f}, score_K {vendi.score_K(songs @ songs.T):.1f}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
