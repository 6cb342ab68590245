#!/usr/bin/env bash
# One would guess: the features of a song in a batch (songs, samples) are those of the song alone.
# What happens: the range of 80 dB is counted from the loudest song: a song 80 dB quieter than its
# neighbour has other features in every frame. With a channel axis (songs, 1, samples) they are
# its own.
# Seen with: torch 2.14.1, torchaudio 2.11.1, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="as alone: (songs, samples) True, with a channel True"
expected="as alone: (songs, samples) False, with a channel True"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.14.1 torchaudio==2.11.1 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
import torchaudio

torch.manual_seed(0)
loud = torch.randn(16_000) * 0.1
songs = torch.stack([loud * 1e-4, loud.flip(0)])
features = torchaudio.transforms.MFCC(16_000)


def as_alone(batch):
    return torch.allclose(features(batch)[0], features(batch[:1])[0], atol=1e-3)


print(f"as alone: (songs, samples) {as_alone(songs)}, with a channel {as_alone(songs[:, None])}")
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
