"""What the recipes' tests share: recipes as modules, small language models of codec tokens."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from apex_reward.files.tables import read_jsonl

ROOT = Path(__file__).parents[2]


def recipe_module(name: str) -> ModuleType:
    """A recipe as a module; nothing runs yet."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


def run(name: str, output: Path, *options: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run a recipe's `main` in this process; its history and summary."""
    recipe_module(name).main(["--output", str(output), *map(str, options)])
    return results(output)


def results(output: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """History and summary of a finished run; its picture is there."""
    summary = json.loads((output / "summary.json").read_text())
    assert (output / "curves.png").stat().st_size > 5_000
    return read_jsonl(output / "history.jsonl"), summary


def mean(rows: list[dict[str, Any]], column: str) -> float:
    """Of a column."""
    return sum(row[column] for row in rows) / len(rows)


def sound_model(codes: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random language model whose ids from 7 on are codes."""
    words = ["<pad>", "<eos>", "<unk>", "slow", "fast", "piano", "drums"]
    words += [f"<code{n}>" for n in range(codes)]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    return LlamaForCausalLM(config), fast
