#!/usr/bin/env bash
# One would guess: scipy's wilcoxon leaves out pairs without a difference (zero_method wilcox), so
# that five rises have p = 0.0625 with four such pairs or with a hundred.
# What happens: the method is chosen before the zeros are left out. With a hundred zeros five
# differences go through the normal approximation, and p = 0.0431 is below 0.05, which five pairs
# cannot reach.
# Seen with: numpy 2.3.3, scipy 1.17.1; 2026-11-30.
set -euo pipefail

guess="4 zeros 0.0625, 100 zeros 0.0625"
expected="4 zeros 0.0625, 100 zeros 0.0431"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
from scipy.stats import wilcoxon

rises = [1.0, 2.0, 3.0, 4.0, 5.0]
values = {zeros: wilcoxon([0.0] * zeros + rises).pvalue for zeros in (4, 100)}
print(", ".join(f"{zeros} zeros {value:.4f}" for zeros, value in values.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
