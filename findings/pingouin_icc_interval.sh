#!/usr/bin/env bash
# One would guess: the interval of an agreement of raters holds its estimate.
# What happens: where raters agree less than chance, the lower end of ICC(A,k) can be 48, above
# its upper end of 0.72 and above 1, the highest agreement.
# Seen with: numpy 2.3.3, scipy 1.17.1, pandas 2.3.3, pingouin 0.7.0; 2026-11-30.
set -euo pipefail

guess="holds its estimate True"
expected="holds its estimate False"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1 pandas==2.3.3 pingouin==0.7.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import warnings

import numpy as np
import pandas as pd
import pingouin

warnings.simplefilter("ignore")
ratings = pd.DataFrame(
    {
        "song": np.repeat(range(6), 3),
        "rater": list("abc") * 6,
        "score": [5, 5, 5, 5, 1, 5, 5, 2, 1, 1, 4, 5, 4, 4, 4, 1, 5, 5],
    }
)
table = pingouin.intraclass_corr(ratings, "song", "rater", "score").set_index("Type")
estimate, (low, high) = table.loc["ICC(A,k)", ["ICC", "CI95"]]
print(f"ICC(A,k) {estimate:.2f} from {low:.2f} to {high:.2f}")
print(f"holds its estimate {low <= estimate <= high}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
