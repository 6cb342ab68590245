"""README and docs: every Python block runs, every command has the options it is shown with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    DacConfig,
    DacModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from apex_reward.cli import app
from tests.support import write_wav

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


PYTHON = [
    pytest.param(page, number, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, (language, _) in enumerate(blocks(page))
    if language == "python"
]
COMMANDS = sorted(
    {
        line.split("  #")[0].split("<")[0].strip().removesuffix("&").strip()
        for page in PAGES
        for language, text in blocks(page)
        if language in ("bash", "")
        for line in text.replace("\\\n", " ").splitlines()
        if line.strip().startswith("apex-reward ")
    }
)


class Names(dict[str, Any]):
    """What the pages' examples take as given, made where it is first read."""

    def __missing__(self, name: str) -> Any:
        make = getattr(self, f"_{name}", None)
        if make is None:
            raise KeyError(name)
        self[name] = make()
        return self[name]

    def _waveforms(self) -> torch.Tensor:
        return torch.randn(2, 44_100, generator=torch.Generator().manual_seed(0)) * 0.1

    def _rows(self) -> list[dict[str, Any]]:
        return [{"prompt_id": 0, "audio": f"{n}.wav", "musicality": n} for n in (1, 2, 4)]

    def _reward(self) -> Any:
        from apex_reward import Reward

        return Reward("apex-tiny", mix="aesthetics")

    def _noise(self) -> torch.Tensor:
        return torch.zeros(2, 24_000)

    def _step(self) -> Any:
        weight = torch.ones(1, requires_grad=True)
        return lambda state, index: state + 0.001 * weight

    def _to_waveform(self) -> Any:
        return torch.sin

    def _codec(self) -> DacModel:
        sizes = {"encoder_hidden_size": 8, "decoder_hidden_size": 16, "hidden_size": 16}
        codes = {"codebook_size": 8, "n_codebooks": 2, "codebook_dim": 2}
        ratios = {"downsampling_ratios": [2, 4], "upsampling_ratios": [4, 2]}
        return DacModel(DacConfig(**sizes, **codes, **ratios))

    def _offset(self) -> int:
        return 4

    def _end_token(self) -> int:
        return 1

    def _policy(self) -> LlamaForCausalLM:
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=1, **sizes))

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "song": 2, "<unk>": 3}, "<unk>"))
        words.pre_tokenizer = Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>",
                                       eos_token="<eos>", unk_token="<unk>")  # fmt: skip

    def _prompts(self) -> Dataset:
        return Dataset.from_dict({"prompt": ["song", "song song"]})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with `songs/`."""
    (tmp_path / "songs").mkdir()
    for number, name in enumerate("ab"):
        write_wav(tmp_path / "songs" / f"{name}.wav", seconds=0.5, seed=number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "number"), PYTHON)
def test_every_python_block_runs(page: Path, number: int, folder: Path) -> None:
    text = blocks(page)[number][1]
    exec(compile(text, f"{page.name}:{number}", "exec"), Names(__name__="__docs__"))


def test_the_first_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    first = next(text for language, text in blocks(ROOT / "README.md") if language == "python")
    exec(compile(first, "README.md", "exec"), {})
    assert "torch.Size([2, 7])" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_it_is_shown_with(command: str) -> None:
    words = shlex.split(command)[1:]
    name = words[:2] if words[0] == "arena" else words[:1]
    result = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, command
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", result.output), f"{option} in: {command}"


def test_the_readme_is_short_and_there_is_something_to_check() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
    assert len(COMMANDS) > 8
    assert len(PYTHON) > 6
