#!/usr/bin/env bash
# One would guess: McNemar's test of two models that agree on every song gives p = 1.
# What happens: only the exact form does. The form with continuity correction gives p = 0 (a
# certain difference), and the one without gives NaN.
# Seen with: numpy 2.3.3, statsmodels 0.15.0; 2026-11-30.
set -euo pipefail

guess="exact 1.0, corrected 1.0, uncorrected 1.0"
expected="exact 1.0, corrected 0.0, uncorrected nan"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 statsmodels==0.15.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import warnings

from statsmodels.stats.contingency_tables import mcnemar

warnings.simplefilter("ignore")
table = [[10, 0], [0, 5]]  # both right on ten songs, both wrong on five
results = {
    "exact": mcnemar(table, exact=True),
    "corrected": mcnemar(table, exact=False, correction=True),
    "uncorrected": mcnemar(table, exact=False, correction=False),
}
print(", ".join(f"{name} {float(result.pvalue)}" for name, result in results.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
