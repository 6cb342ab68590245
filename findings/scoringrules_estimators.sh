#!/usr/bin/env bash
# One would guess: the estimators of crps_ensemble are ways to compute one number: on one ensemble
# they agree.
# What happens: two of them are biased and two are not: four members have 0.500 by nrg and qd, and
# 0.350 by pwm and fair.
# Seen with: numpy 2.3.3, scipy 1.17.1, scoringrules 0.10.0; 2026-11-30.
set -euo pipefail

guess="nrg 0.500, qd 0.500, pwm 0.500, fair 0.500"
expected="nrg 0.500, qd 0.500, pwm 0.350, fair 0.350"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1 scoringrules==0.10.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
import scoringrules

members = np.array([-0.9, -0.2, 0.4, 1.3])
values = {
    name: scoringrules.crps_ensemble(0.9, members, estimator=name).item()
    for name in ("nrg", "qd", "pwm", "fair")
}
print(", ".join(f"{name} {value:.3f}" for name, value in values.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
