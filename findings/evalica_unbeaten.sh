#!/usr/bin/env bash
# One would guess: evalica's bradley_terry puts a system that won all its battles above systems
# that lost to it, or says that it cannot.
# What happens: with an unbeaten system all scores become 0.000001, the winner's too, without a
# warning. average_win_rate and elo still rank it first.
# Seen with: numpy 2.3.3, pandas 3.1.1, evalica 0.4.2; 2026-11-30.
set -euo pipefail

guess="bradley_terry above, elo above"
expected="bradley_terry equal, elo above"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 pandas==3.1.1 evalica==0.4.2
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import evalica
from evalica import Winner

left, right = ["a", "a", "a", "b"], ["b", "c", "b", "c"]
places = {}
for name in ("bradley_terry", "elo"):
    scores = getattr(evalica, name)(left, right, [Winner.X] * 4).scores
    print(name, scores.to_dict())
    places[name] = "above" if scores["a"] > scores["b"] else "equal"
print(", ".join(f"{name} {place}" for name, place in places.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
