#!/usr/bin/env bash
# One would guess: jiwer takes a line break or a tab for a space between words: lyrics in two
# lines have no error against the same words in one.
# What happens: a line break is a letter of the word around it. Four right words in two lines have
# a word error rate of 0.67. Spaces in a row are one space, and a break at the end is removed.
# Seen with: jiwer 4.0.0; 2026-11-30.
set -euo pipefail

guess="break 0.00, two spaces 0.00, break at the end 0.00"
expected="break 0.67, two spaces 0.00, break at the end 0.00"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jiwer==4.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import jiwer

texts = {
    "break": ("sing a\nsong now", "sing a song now"),
    "two spaces": ("sing a  song now", "sing a song now"),
    "break at the end": ("sing a song now\n", "sing a song now"),
}
print(", ".join(f"{name} {jiwer.wer(*pair):.2f}" for name, pair in texts.items()))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
