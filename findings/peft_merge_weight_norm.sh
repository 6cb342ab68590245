#!/usr/bin/env bash
# One would guess: a model whose adapter was merged gives what it gave with the adapter.
# What happens: on a convolution with weight normalisation, as the decoders of audio codecs have,
# merge_and_unload drops the adapter without an error.
# Seen with: torch 2.13.0, transformers 5.24.0, peft 0.21.2, numpy 2.3.3; 2026-11-30.
set -euo pipefail

guess="adapter changes the output True, merged gives the same True"
expected="adapter changes the output True, merged gives the same False"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 peft==0.21.2 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import weight_norm

torch.manual_seed(0)
codec = nn.Sequential(weight_norm(nn.Conv1d(4, 4, 3)))
sound = torch.randn(1, 4, 32)
plain = codec(sound)
model = get_peft_model(codec, LoraConfig(target_modules=["0"], init_lora_weights=False)).eval()
adapted = model(sound)
merged = model.merge_and_unload()(sound)
print(
    f"adapter changes the output {not torch.allclose(plain, adapted, atol=1e-4)}, "
    f"merged gives the same {torch.allclose(adapted, merged, atol=1e-4)}"
)
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
