#!/usr/bin/env bash
# One would guess: three songs in the same order by two scores are no evidence: by chance one of
# six orders is equal and one is opposite, p = 0.333.
# What happens: scipy's spearmanr gives p = 0, as for any number of songs in the same order.
# kendalltau gives 0.333. spearmanr has no exact form.
# Seen with: numpy 2.3.3, scipy 1.17.1; 2026-11-30.
set -euo pipefail

guess="kendalltau 0.333, spearmanr 0.333"
expected="kendalltau 0.333, spearmanr 0.000"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
from scipy.stats import kendalltau, spearmanr

one, other = [1.0, 2.0, 3.0], [10.0, 11.0, 15.0]
exact, approximate = kendalltau(one, other).pvalue, spearmanr(one, other).pvalue
print(f"kendalltau {exact:.3f}, spearmanr {approximate:.3f}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
