#!/usr/bin/env bash
# One would guess: FFmpeg's resampler mixes stereo with two equal channels to mono at the same
# level, whatever the sample format.
# What happens: the level depends on the format that comes out. Integers keep a peak of 0.5.
# Floats get 0.7071, 3 dB more, and can exceed full scale. The format that goes in does not
# matter.
# Seen with: numpy 2.3.3, av 18.1.0; 2026-11-30.
set -euo pipefail

guess="s16 to s16p 0.50, s16 to fltp 0.50, fltp to s16p 0.50, fltp to fltp 0.50"
expected="s16 to s16p 0.50, s16 to fltp 0.71, fltp to s16p 0.50, fltp to fltp 0.71"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 av==18.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import av
import numpy as np

rate = 44_100
song = 0.5 * np.sin(0.05 * np.arange(rate))
inputs = {
    "s16": np.repeat((song * 32_768).astype(np.int16), 2)[None],
    "fltp": np.stack([song, song]).astype(np.float32),
}
peaks = {}
for kind, samples in inputs.items():
    for wanted in ("s16p", "fltp"):
        frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="stereo")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=wanted, layout="mono", rate=rate)
        mono = resampler.resample(frame)[0].to_ndarray()[0]
        peak = np.abs(mono.astype(float)).max()
        peaks[f"{kind} to {wanted}"] = peak / 32_768 if wanted == "s16p" else peak
print(", ".join(f"{name} {peak:.2f}" for name, peak in peaks.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
