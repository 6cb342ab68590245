#!/usr/bin/env bash
# One would guess: an MP3 of 20 s that lameenc writes with a variable bit rate is 20 s long for
# every reader.
# What happens: lameenc leaves out the frame that states the length. soundfile and pedalboard take
# the bit rate of the first frames for the whole file and give the first 5.5 s, without an error.
# PyAV and sphn.read give all 20 s, and sphn.durations gives 25.6 s.
# Seen with: numpy 2.3.3, soundfile 0.14.0, lameenc 1.9.0, pedalboard 0.9.26, av 18.1.0, sphn
# 0.2.1; 2026-11-30.
set -euo pipefail

guess="soundfile 20.0, pedalboard 20.0, PyAV 20.0, sphn 20.0, sphn.durations 20.0"
expected="soundfile 5.5, pedalboard 5.5, PyAV 20.0, sphn 20.0, sphn.durations 25.6"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 soundfile==0.14.0 lameenc==1.9.0 pedalboard==0.9.26 av==18.1.0 sphn==0.2.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import av
import lameenc
import numpy as np
import soundfile
import sphn
from pedalboard.io import AudioFile

rate = 44_100
seconds = np.arange(20 * rate) / rate
# Ten quiet seconds, then ten of noise: the second half needs far more bits.
noise = 0.3 * np.random.default_rng(0).standard_normal(seconds.size)
song = np.where(seconds < 10, 0.01 * np.sin(2 * np.pi * 440 * seconds), noise).clip(-1, 1)

encoder = lameenc.Encoder()
encoder.set_vbr(4)
encoder.set_vbr_quality(4)
encoder.set_in_sample_rate(rate)
encoder.set_channels(1)
encoder.silence()
with open("song.mp3", "wb") as file:
    file.write(encoder.encode((song * 32_767).astype(np.int16).tobytes()) + encoder.flush())

lengths = {"soundfile": len(soundfile.read("song.mp3")[0]) / rate}
with AudioFile("song.mp3") as file:
    lengths["pedalboard"] = file.read(file.frames).shape[1] / rate
with av.open("song.mp3") as file:
    lengths["PyAV"] = sum(frame.samples for frame in file.decode(audio=0)) / rate
lengths["sphn"] = sphn.read("song.mp3")[0].shape[1] / rate
lengths["sphn.durations"] = sphn.durations(["song.mp3"])[0]
print(", ".join(f"{name} {length:.1f}" for name, length in lengths.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
