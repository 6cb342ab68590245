#!/usr/bin/env bash
# One would guess: a song with one section, labelled as one section, agrees with its reference.
# What happens: the scores nce and vmeasure are 0, as for no agreement at all. scikit-learn's
# V-measure of the same labels is 1.
# Seen with: numpy 2.3.3, scipy 1.17.1, scikit-learn 1.9.1, mir_eval 0.8.2; 2026-11-30.
set -euo pipefail

guess="nce 1.0, vmeasure 1.0, scikit-learn 1.0"
expected="nce 0.0, vmeasure 0.0, scikit-learn 1.0"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1 scikit-learn==1.9.1 mir_eval==0.8.2
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
import mir_eval
from sklearn.metrics import v_measure_score

section = np.array([[0.0, 30.0]])
nce = mir_eval.segment.nce(section, ["a"], section, ["a"])[2]
vmeasure = mir_eval.segment.vmeasure(section, ["a"], section, ["a"])[2]
print(f"nce {nce:.1f}, vmeasure {vmeasure:.1f}, scikit-learn {v_measure_score([0] * 300, [0] * 300):.1f}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
