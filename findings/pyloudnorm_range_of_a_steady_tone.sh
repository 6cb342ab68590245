#!/usr/bin/env bash
# One would guess: the loudness range of a tone that never changes is 0 LU, however long it is.
# What happens: pyloudnorm appends 1.5 s of silence before it measures. In short songs the blocks
# that reach into that silence are more than the tenth that the measure leaves out: 2.1 LU at 5 s,
# 1.0 at 10 s, 0 at 20 s.
# Seen with: numpy 2.3.3, scipy 1.17.1, pyloudnorm 0.2.0; 2026-11-30.
set -euo pipefail

guess="5 s 0.0, 10 s 0.0, 20 s 0.0"
expected="5 s 2.1, 10 s 1.0, 20 s 0.0"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1 pyloudnorm==0.2.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
import pyloudnorm

meter = pyloudnorm.Meter(48_000)
ranges = {}
for seconds in (5, 10, 20):
    tone = 0.5 * np.sin(2 * np.pi * 997 * np.arange(seconds * 48_000) / 48_000)
    ranges[seconds] = meter.loudness_range(tone)
print(", ".join(f"{seconds} s {value:.1f}" for seconds, value in ranges.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
