#!/usr/bin/env bash
# One would guess: an MP3 that states its encoder's delay gives the samples that were encoded, at
# the same places and as many, in every reader.
# What happens: soundfile and PyAV take the delay off. pedalboard and sphn do not: their sound is
# 1,105 samples (25 ms) late and up to 1,656 samples longer.
# Seen with: numpy 2.3.3, soundfile 0.14.0, pedalboard 0.9.26, av 18.1.0, sphn 0.2.1; 2026-11-30.
set -euo pipefail

guess="soundfile 0 of 88200, PyAV 0 of 88200, pedalboard 0 of 88200, sphn 0 of 88200"
expected="soundfile 0 of 88200, PyAV 0 of 88200, pedalboard 1105 of 89856, sphn 1105 of 89856"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 soundfile==0.14.0 pedalboard==0.9.26 av==18.1.0 sphn==0.2.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import av
import numpy as np
import soundfile
import sphn
from pedalboard.io import AudioFile

rate = 44_100
song = np.zeros(2 * rate)
song[20_000:24_000] = 0.2 * np.random.default_rng(0).standard_normal(4_000)
soundfile.write("song.mp3", song, rate)


def late(other):
    """By how many samples the other sound is late: the peak of the cross-correlation."""
    size = 1 << 18
    product = np.fft.rfft(other, size) * np.conj(np.fft.rfft(song, size))
    shift = int(np.argmax(np.fft.irfft(product)))
    return shift if shift < size // 2 else shift - size


sounds = {"soundfile": soundfile.read("song.mp3")[0]}
with av.open("song.mp3") as file:
    sounds["PyAV"] = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
with AudioFile("song.mp3") as file:
    sounds["pedalboard"] = file.read(file.frames)[0]
sounds["sphn"] = sphn.read("song.mp3")[0][0]
print(", ".join(f"{name} {late(sound)} of {len(sound)}" for name, sound in sounds.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
