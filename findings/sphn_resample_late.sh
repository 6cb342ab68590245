#!/usr/bin/env bash
# One would guess: sphn.resample from 44.1 to 24 kHz gives 48,000 samples for two seconds, at the
# places where scipy's and soxr's are.
# What happens: sphn's sound is 280 samples (12 ms) late and 160 samples longer. soxr's is not
# late.
# Seen with: numpy 2.3.3, scipy 1.17.1, soxr 1.1.0, sphn 0.2.1; 2026-11-30.
set -euo pipefail

guess="soxr 0 of 48000, sphn 0 of 48000"
expected="soxr 0 of 48000, sphn 280 of 48160"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1 soxr==1.1.0 sphn==0.2.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
import soxr
import sphn
from scipy.signal import resample_poly

song = np.zeros(88_200, np.float32)
song[20_000:24_000] = 0.2 * np.random.default_rng(0).standard_normal(4_000)
reference = resample_poly(song, 80, 147)


def late(other):
    """By how many samples the other sound is late: the peak of the cross-correlation."""
    size = 1 << 17
    product = np.fft.rfft(other, size) * np.conj(np.fft.rfft(reference, size))
    shift = int(np.argmax(np.fft.irfft(product)))
    return shift if shift < size // 2 else shift - size


sounds = {
    "soxr": soxr.resample(song, 44_100, 24_000),
    "sphn": sphn.resample(song[None], 44_100, 24_000)[0],
}
print(", ".join(f"{name} {late(sound)} of {len(sound)}" for name, sound in sounds.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
