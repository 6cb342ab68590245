#!/usr/bin/env bash
# One would guess: a p-value that is missing stays missing; the others are corrected as without
# it.
# What happens: by Holm it counts as a third test. By Benjamini-Hochberg every corrected value
# becomes NaN, and the first is still called significant.
# Seen with: numpy 2.3.3, scipy 1.17.1, statsmodels 0.15.0; 2026-11-30.
set -euo pipefail

guess="holm 0.002 0.200 nan, fdr_bh 0.002 0.200 nan, significant True"
expected="holm 0.003 0.400 nan, fdr_bh nan nan nan, significant True"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1 statsmodels==0.15.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import warnings

from statsmodels.stats.multitest import multipletests

warnings.simplefilter("ignore")
holm = multipletests([0.001, 0.2, float("nan")], method="holm")[1]
significant, bh = multipletests([0.001, 0.2, float("nan")], method="fdr_bh")[:2]
print(
    "holm {:.3f} {:.3f} {:.3f}, fdr_bh {:.3f} {:.3f} {:.3f}, significant {}".format(
        *holm, *bh, significant[0]
    )
)
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
