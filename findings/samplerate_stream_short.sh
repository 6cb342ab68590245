#!/usr/bin/env bash
# One would guess: the blocks of a stream, the last one marked as the end, together have the
# samples of the whole.
# What happens: the end of the sound is missing: 88,201 samples at 44.1 kHz become 48,000 at 24
# kHz at once and 47,858 in blocks of 1,000.
# Seen with: numpy 2.3.3, samplerate 0.2.4; 2026-11-30.
set -euo pipefail

guess="whole 48000, in blocks 48000"
expected="whole 48000, in blocks 47858"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 samplerate==0.2.4
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
import samplerate

sound = np.random.default_rng(0).normal(0, 0.1, 88_201).astype(np.float32)
ratio = 24_000 / 44_100
whole = samplerate.resample(sound, ratio, "sinc_best")
stream = samplerate.Resampler("sinc_best")
blocks = [
    stream.process(sound[at : at + 1000], ratio, end_of_input=at + 1000 >= len(sound))
    for at in range(0, len(sound), 1000)
]
print(f"whole {len(whole)}, in blocks {sum(map(len, blocks))}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
