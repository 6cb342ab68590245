from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from apex_reward.cli import app
from apex_reward.cli.common import print_table, reports_errors
from apex_reward.errors import AudioError, UsageError

HEAVY = ("torch", "numpy", "transformers", "pyarrow", "matplotlib", "sklearn")


def test_the_command_line_starts_without_heavy_imports():
    code = f"import sys, apex_reward.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "score",
        "import",
        "pairs",
        "prepare",
        "extract",
        "train",
        "grid",
        "evaluate",
        "arena",
    ],
)
def test_every_command_of_the_contract_has_help(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize("command", ["score", "evaluate", "calibrate", "leaderboard"])
def test_every_arena_command_has_help(command):
    assert CliRunner().invoke(app, ["arena", command, "--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("raised", "code"), [(UsageError("bad option"), 2), (AudioError("bad song"), 1)]
)
def test_known_errors_become_one_message_and_an_exit_code(raised, code, capsys):
    def command() -> None:
        raise raised

    with pytest.raises(typer.Exit) as stop:
        reports_errors(command)()
    assert stop.value.exit_code == code
    assert capsys.readouterr().err == f"error: {raised}\n"


@pytest.mark.parametrize("code", [0, 1, None])
def test_a_returned_code_is_the_exit_code(code):
    with pytest.raises(typer.Exit) as stop:
        reports_errors(lambda: code)()
    assert stop.value.exit_code == (code or 0)


def test_a_table_for_a_person(capsys):
    print_table("Title", ["name", "score"], [["a", 1.23456], ["b", None]])
    out = capsys.readouterr().out
    assert "Title" in out
    assert "1.235" in out
    assert "-" in out
