#!/usr/bin/env bash
# One would guess: the rating of a system that won all 20 battles is uncertain above: its interval
# is wider than that of a system with 30 wins and 10 losses.
# What happens: arena-rank gives the unbeaten system an interval that is 0.01 points wide; the
# other's is 124 wide.
# Seen with: numpy 2.3.3, pandas 3.1.1, jax 0.8.1, arena-rank 0.1.1; 2026-11-30.
set -euo pipefail

guess="30 to 10: 124, 20 to 0: wider"
expected="30 to 10: 124, 20 to 0: 0.01"

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

widths = []
for wins, losses in ((30, 10), (20, 0)):
    battles = wins + losses
    votes = {"model_a": ["x"] * battles, "model_b": ["y"] * battles}
    votes["winner"] = ["model_a"] * wins + ["model_b"] * losses
    data = PairDataset.from_pandas(pd.DataFrame(votes))
    result = BradleyTerry(n_competitors=2).compute_ratings_and_cis(data)
    print(f"{wins} to {losses}", result["ratings"], result["rating_lower"], result["rating_upper"])
    widths.append(float((result["rating_upper"] - result["rating_lower"])[0]))
second = "wider" if widths[1] > widths[0] else f"{widths[1]:.2f}"
print(f"30 to 10: {widths[0]:.0f}, 20 to 0: {second}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
