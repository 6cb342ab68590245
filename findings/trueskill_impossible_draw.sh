#!/usr/bin/env bash
# One would guess: a draw makes TrueSkill surer of both players, whatever share of draws is
# expected: sigma falls below 8.33.
# What happens: with draw_probability=0 (votes without ties) a draw that comes all the same makes
# it less sure: sigma rises from 8.33 to 9.59, without an error.
# Seen with: trueskill 0.4.5; 2026-11-30.
set -euo pipefail

guess="draws expected 6.46, none expected below 8.33"
expected="draws expected 6.46, none expected 9.59"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  trueskill==0.4.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
from trueskill import TrueSkill

sigmas = []
for probability in (0.1, 0.0):
    rules = TrueSkill(draw_probability=probability)
    (first,), _ = rules.rate([(rules.create_rating(),), (rules.create_rating(),)], ranks=[0, 0])
    print("draw_probability", probability, "before", rules.sigma, "after", first.sigma)
    sigmas.append(first.sigma)
second = "below 8.33" if sigmas[1] < 25 / 3 else f"{sigmas[1]:.2f}"
print(f"draws expected {sigmas[0]:.2f}, none expected {second}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
