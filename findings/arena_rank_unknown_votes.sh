#!/usr/bin/env bash
# One would guess: arena-rank refuses or leaves out a vote whose winner it does not know, such as
# A instead of model_a.
# What happens: it counts such a vote as a tie: 30 wins to 10, written as A and B, give both
# systems 1,000 and an interval of width 0.
# Seen with: numpy 2.3.3, pandas 3.1.1, jax 0.8.1, arena-rank 0.1.1; 2026-11-30.
set -euo pipefail

guess="model_a 1095 to 905, A refused"
expected="model_a 1095 to 905, A 1000 to 1000"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 pandas==3.1.1 jax==0.8.1 arena-rank==0.1.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import jax

jax.config.update("jax_enable_x64", True)
import pandas as pd
from arena_rank.models.bradley_terry import BradleyTerry
from arena_rank.utils.data_utils import PairDataset

lines = []
for first, second in (("model_a", "model_b"), ("A", "B")):
    votes = {"model_a": ["x"] * 40, "model_b": ["y"] * 40, "winner": [first] * 30 + [second] * 10}
    try:
        battles = PairDataset.from_pandas(pd.DataFrame(votes))
        result = BradleyTerry(n_competitors=2).compute_ratings_and_cis(battles)
        ratings = dict(zip(result["competitors"], result["ratings"], strict=True))
        print(first, "interval", result["rating_upper"] - result["rating_lower"])
        lines.append(f"{first} {ratings['x']:.0f} to {ratings['y']:.0f}")
    except (KeyError, ValueError):
        lines.append(f"{first} refused")
print(", ".join(lines))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
