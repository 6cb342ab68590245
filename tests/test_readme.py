"""The README's code: its first example runs, its imports resolve, its commands' options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apex_reward.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for language, text in BLOCKS
        if language in ("bash", "")
        for line in text.replace("\\\n", " ").splitlines()
        if line.strip().startswith("apex-reward ")
    }
)


def test_the_first_example_runs(capsys):
    exec(compile(PYTHON[0], "README.md", "exec"), {})
    assert "torch.Size([2, 7])" in capsys.readouterr().out


def test_every_import_resolves():
    lines = [
        statement
        for text in PYTHON
        for statement in re.findall(r"^from apex_reward[\w.]* import (?:\([^)]*\)|.*)$", text, re.M)
    ]
    assert len(lines) >= 3
    for line in lines:
        exec(line, {})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_it_is_shown_with(command):
    words = shlex.split(command)[1:]
    name = words[:2] if words[0] == "arena" else words[:1]
    result = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, command
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", result.output), f"{option} in: {command}"


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 8
