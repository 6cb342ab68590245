#!/usr/bin/env bash
# One would guess: a change of the sample rate from 44.1 to 16 kHz removes a tone of 12 kHz, which
# the new rate cannot hold.
# What happens: pydub's set_frame_rate interpolates without a filter: the tone is there at 4 kHz,
# 2 dB softer. scipy's resample_poly removes it. pydub needs Python 3.12 or earlier.
# Seen with: numpy 2.3.3, scipy 1.17.1, pydub 0.25.1; 2026-11-30.
set -euo pipefail

guess="scipy -60 dB or less, pydub -60 dB or less"
expected="scipy -60 dB or less, pydub -2 dB at 4000 Hz"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1 pydub==0.25.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
from pydub import AudioSegment
from scipy.signal import resample_poly

tone = 0.5 * np.sin(2 * np.pi * 12_000 * np.arange(44_100) / 44_100)
whole = (tone * 32_767).astype(np.int16)
song = AudioSegment(whole.tobytes(), sample_width=2, frame_rate=44_100, channels=1)
ways = {
    "scipy": resample_poly(tone, 160, 441),
    "pydub": np.array(song.set_frame_rate(16_000).get_array_of_samples()) / 32_768,
}
found = []
for name, sound in ways.items():
    middle = sound[2_000:14_000]
    level = 20 * np.log10(np.sqrt(2 * np.mean(middle**2)) / 0.5)
    pitch = np.abs(np.fft.rfft(middle)).argmax() * 16_000 / len(middle)
    shown = f"{level:.0f} dB at {pitch:.0f} Hz" if level > -60 else "-60 dB or less"
    found.append(f"{name} {shown}")
print(", ".join(found))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
