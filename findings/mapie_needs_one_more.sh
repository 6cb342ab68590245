#!/usr/bin/env bash
# One would guess: 19 calibration songs are enough for a 95% split-conformal interval: its half
# width is the largest of the 19 residuals, since 19 of 20 places lie below it.
# What happens: MAPIE raises that the number of samples is too low, and works from 20. crepes
# gives the interval with 19.
# Seen with: numpy 2.3.3, scikit-learn 1.9.1, mapie 1.6.0, crepes 0.9.1; 2026-11-30.
set -euo pipefail

guess="crepes 19 finite, MAPIE 19 finite, MAPIE 20 finite"
expected="crepes 19 finite, MAPIE 19 refused, MAPIE 20 finite"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scikit-learn==1.9.1 mapie==1.6.0 crepes==0.9.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
from crepes import ConformalRegressor
from mapie.regression import SplitConformalRegressor
from sklearn.dummy import DummyRegressor

draws = np.random.default_rng(0)


def with_mapie(songs):
    features, scores = np.zeros((songs, 1)), draws.standard_normal(songs)
    model = DummyRegressor().fit(features, np.zeros(songs))
    interval = SplitConformalRegressor(model, confidence_level=0.95, prefit=True)
    try:
        interval.conformalize(features, scores)
        bounds = interval.predict_interval(features[:1])[1]
    except ValueError as error:
        print(error)
        return "refused"
    return "finite" if np.isfinite(bounds).all() else "infinite"


regressor = ConformalRegressor()
regressor.fit(draws.standard_normal(19))
bounds = regressor.predict_int(np.zeros(1), confidence=0.95)
crepes = "finite" if np.isfinite(bounds).all() else "infinite"
print(f"crepes 19 {crepes}, MAPIE 19 {with_mapie(19)}, MAPIE 20 {with_mapie(20)}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
