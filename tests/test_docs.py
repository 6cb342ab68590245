"""README and docs: every Python block runs and prints what is shown; every shown option exists.

A block ``text`` directly below a Python block is that block's output. The blocks of README run one
after another in one namespace, as a reader copies them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
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


def check_block(page: Path, number: int, names: dict[str, Any]) -> None:
    """Run a Python block; its output is the block ``text`` below it, where there is one."""
    found = blocks(page)
    output = StringIO()
    with redirect_stdout(output):
        exec(compile(found[number][1], f"{page.name}:{number}", "exec"), names)
    if [language for language, _ in found[number + 1 : number + 2]] == ["text"]:
        assert output.getvalue() == found[number + 1][1]


PYTHON = [
    pytest.param(page, number, id=f"{page.stem}-{number}")
    for page in PAGES[1:]
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
    check_block(page, number, Names(__name__="__docs__"))


def test_the_blocks_of_the_readme_run_one_after_another(folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__docs__"}
    numbers = [n for n, (language, _) in enumerate(blocks(PAGES[0])) if language == "python"]
    for number in numbers:
        check_block(PAGES[0], number, names)
    assert len(numbers) >= 3


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
