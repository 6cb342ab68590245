#!/usr/bin/env bash
# One would guess: pedalboard's resampled_to gives 24,000 samples for a second of 44,100, as it
# gives 16,000 at 16 kHz and 22,050 at 22.05 kHz.
# What happens: at 24 kHz it gives 23,999 samples and the last one is missing, in frames as in
# what read gives.
# Seen with: numpy 2.3.3, soundfile 0.14.0, pedalboard 0.9.26; 2026-11-30.
set -euo pipefail

guess="to 16000 16000, to 22050 22050, to 24000 24000"
expected="to 16000 16000, to 22050 22050, to 24000 23999"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 soundfile==0.14.0 pedalboard==0.9.26
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
import soundfile
from pedalboard.io import AudioFile

soundfile.write("song.wav", 0.1 * np.random.default_rng(0).standard_normal(44_100), 44_100)
read = {}
for rate in (16_000, 22_050, 24_000):
    with AudioFile("song.wav").resampled_to(rate) as file:
        stated = file.frames
        read[rate] = file.read(1_000_000).shape[1]
        print(rate, "stated", stated, "read", read[rate])
print(", ".join(f"to {rate} {samples}" for rate, samples in read.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
