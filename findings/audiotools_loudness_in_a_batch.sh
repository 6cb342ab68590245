#!/usr/bin/env bash
# One would guess: a song has the same loudness alone and zero-padded in a batch, since silence is
# left out by the gate.
# What happens: a noise of one second is -16.9 LUFS alone and -17.6 in a batch with one of nine
# seconds: half-silent blocks at its end pass the gate.
# Seen with: torch 2.14.1, torchaudio 2.11.1, numpy 1.26.4, scipy 1.12.0, descript-audiotools
# 0.7.2; 2026-11-30.
set -euo pipefail

guess="alone -16.9, in a batch -16.9"
expected="alone -16.9, in a batch -17.6"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.14.1 torchaudio==2.11.1 numpy==1.26.4 scipy==1.12.0 descript-audiotools==0.7.2
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
from audiotools import AudioSignal

noise = np.random.default_rng(0)
short, long = (
    AudioSignal(noise.normal(0, 0.1, (1, 1, 44_100 * seconds)).astype("float32"), 44_100)
    for seconds in (1, 9)
)
batch = AudioSignal.batch([short.clone(), long], pad_signals=True)
print(f"alone {short.loudness().item():.1f}, in a batch {batch.loudness()[0].item():.1f}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
