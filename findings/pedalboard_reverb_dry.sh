#!/usr/bin/env bash
# One would guess: pedalboard's Reverb with wet_level=0 and dry_level=1 gives its input, as Delay
# and Chorus with mix=0 do.
# What happens: Reverb doubles every sample: a dry level of 1 is a gain of 2. A dry level of 0.5
# gives the input.
# Seen with: numpy 2.3.3, pedalboard 0.9.26; 2026-11-30.
set -euo pipefail

guess="Delay 1.00, Reverb at 1 1.00, Reverb at 0.5 0.50"
expected="Delay 1.00, Reverb at 1 2.00, Reverb at 0.5 1.00"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 pedalboard==0.9.26
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import numpy as np
from pedalboard import Delay, Reverb

song = (0.1 * np.random.default_rng(0).standard_normal(88_200)).astype(np.float32)
effects = {
    "Delay": Delay(mix=0),
    "Reverb at 1": Reverb(wet_level=0, dry_level=1),
    "Reverb at 0.5": Reverb(wet_level=0, dry_level=0.5),
}
gains = {}
for name, effect in effects.items():
    # The last second: the first samples are a fade between settings.
    output, given = effect(song, 44_100)[44_100:], song[44_100:]
    gains[name] = output @ given / (given @ given)
print(", ".join(f"{name} {gain:.2f}" for name, gain in gains.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
