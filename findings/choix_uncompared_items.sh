#!/usr/bin/env bash
# One would guess: the difference between two systems depends on their own comparisons. Systems
# that nobody compared, added to the list, change nothing.
# What happens: with alpha, which choix asks for where a system is unbeaten, 48 systems without a
# comparison pull the two together: 1.08 becomes 0.85. The optimiser of the same package keeps the
# difference.
# Seen with: numpy 2.3.3, scipy 1.17.1, choix 0.4.1; 2026-11-30.
set -euo pipefail

guess="ilsr 1.08 and 1.08, optimiser 1.08 and 1.08"
expected="ilsr 1.08 and 0.85, optimiser 1.08 and 1.08"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.3.3 scipy==1.17.1 choix==0.4.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import choix

wins = [(0, 1)] * 3 + [(1, 0)]
gaps = []
for fit in (choix.ilsr_pairwise, choix.opt_pairwise):
    for systems in (3, 50):
        strength = fit(systems, wins, alpha=0.01)
        gaps.append(strength[0] - strength[1])
print("ilsr {:.2f} and {:.2f}, optimiser {:.2f} and {:.2f}".format(*gaps))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
