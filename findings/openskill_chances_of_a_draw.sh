#!/usr/bin/env bash
# One would guess: the chances of a win, of a loss and of a draw of two equal systems add up to 1.
# What happens: predict_win gives them 0.5 each, which leaves nothing for a draw, and predict_draw
# gives 0.237 beside it: 1.237.
# Seen with: openskill 6.2.0; 2026-11-30.
set -euo pipefail

guess="sum 1.000"
expected="sum 1.237"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  openskill==6.2.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
from openskill.models import PlackettLuce

model = PlackettLuce()
systems = [[model.rating()], [model.rating()]]
wins, draw = model.predict_win(systems), model.predict_draw(systems)
print(f"wins {wins}, draw {draw:.3f}")
print(f"sum {sum(wins) + draw:.3f}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
