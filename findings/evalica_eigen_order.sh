#!/usr/bin/env bash
# One would guess: evalica's rankings name the best system first: bradley_terry and eigen agree on
# a system that nearly always wins.
# What happens: eigen gives the highest score to the system that loses most, and ranks it first.
# Seen with: numpy 2.3.3, pandas 3.1.1, evalica 0.4.2; 2026-11-30.
set -euo pipefail

guess="bradley_terry best mid worst, eigen best mid worst"
expected="bradley_terry best mid worst, eigen worst mid best"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 pandas==3.1.1 evalica==0.4.2
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import evalica
from evalica import Winner

left = ["best", "best", "mid"] * 8 + ["mid", "worst"]
right = ["mid", "worst", "worst"] * 8 + ["best", "mid"]
won = [Winner.X] * 26  # each pair eight to one, or eight to nothing
orders = {
    name: list(getattr(evalica, name)(left, right, won).scores.sort_values(ascending=False).index)
    for name in ("bradley_terry", "eigen")
}
print(", ".join(f"{name} {' '.join(order)}" for name, order in orders.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
