#!/usr/bin/env bash
# One would guess: GRPOTrainer with three prompts and a batch for four of them takes its three
# steps on what there is, or raises.
# What happens: it ends without an error after 0 steps: the reward is never called and no weight
# changes. With four prompts it takes the three steps.
# Seen with: torch 2.13.0, transformers 5.24.0, trl 1.16.0, datasets 5.2.0, numpy 2.3.3;
# 2026-11-30.
set -euo pipefail

guess="prompts 3: steps 3, prompts 4: steps 3"
expected="prompts 3: steps 0, prompts 4: steps 3"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 trl==1.16.0 datasets==5.2.0 numpy==2.3.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee output
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

words = ["pad", "end", *(f"song{n}" for n in range(8))]
plain = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="pad"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="pad", eos_token="end")
settings = GRPOConfig(
    output_dir="out", max_steps=3, per_device_train_batch_size=8, num_generations=2,
    max_completion_length=4, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
)
config = GPT2Config(
    vocab_size=len(words), n_embd=16, n_layer=1, n_head=2,
    pad_token_id=0, bos_token_id=1, eos_token_id=1,
)
found = []
for prompts in (3, 4):
    torch.manual_seed(0)
    trainer = GRPOTrainer(
        GPT2LMHeadModel(config),
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        train_dataset=Dataset.from_dict({"prompt": words[2 : 2 + prompts]}),
        processing_class=tokenizer,
        args=settings,
    )
    trainer.train()
    found.append(f"prompts {prompts}: steps {trainer.state.global_step}")
print(", ".join(found))
PYTHON
observed=$(tail -n 1 output)
echo "guess:    $guess"
echo "expected: $expected"
echo "observed: $observed"
[ "$observed" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
