"""Options are generated from annotated functions and dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner, Result

from apex_reward.cli.common import add_command
from apex_reward.cli.generate import arguments

SEEN: list[Any] = []


@dataclass(frozen=True)
class Sound:
    """How it sounds. This sentence is not a heading.

    Args:
        level: loudness of the song, in `LUFS`. None: unchanged.
        low, high: a bound of the range.
        tail: the end of the song.
        layers: trunk layers.
        names: names of heads.
        models: a model; repeat it.
        limits: a limit per head.
        balance: balance the sides.
        quiet: print nothing.
        rule: a rule, by name.
    """

    level: Annotated[float | None, "LUFS", "-l"] = None
    low: float | str | None = None
    high: Annotated[int, (1, 9)] = 2
    tail: Literal["pad", "drop"] = "pad"
    layers: Literal[2, 3] = 2
    names: Sequence[str] = ()
    models: list[str] | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    balance: bool = True
    quiet: bool = False
    rule: str | Path = "best"


def play(
    song: Path, /, sound: Sound, *, output: Annotated[Path | None, "FILE", "-o"] = None
) -> int:
    """Play a song.

    Example: apex-reward play song.wav

    Args:
        song: a song to play.
        output: result file. None: the terminal.
    """
    SEEN.append((song, sound, output))
    return 0


def run(*words: str) -> Result:
    app = typer.Typer()
    add_command(app, play)
    return CliRunner().invoke(app, words, env={"COLUMNS": "140"})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], Sound()),
        (["-l", "-18"], Sound(level=-18.0)),
        (["--low", "q0.8", "--high", "3"], Sound(low="q0.8", high=3)),
        (["--tail", "drop", "--layers", "3"], Sound(tail="drop", layers=3)),
        (["--names", "a, b", "--models", "m", "--models", "n"],
         Sound(names=("a", "b"), models=["m", "n"])),
        (["--limits", "a=1=2.5", "--limits", "b=-1"], Sound(limits={"a=1": 2.5, "b": -1.0})),
        (["--no-balance", "--quiet", "--rule", "all"],
         Sound(balance=False, quiet=True, rule="all")),
    ],
)  # fmt: skip
def test_words_become_the_dataclass_that_python_users_pass(
    words: list[str], expected: Sound
) -> None:
    result = run("a.wav", "-o", "out.csv", *words)
    assert result.exit_code == 0, result.output
    assert SEEN[-1] == (Path("a.wav"), expected, Path("out.csv"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tail", "mask"], "'mask' is not one of"),
        (["--layers", "4"], "'4' is not one of"),
        (["--high", "10"], "than or equal to 9"),
        (["--limits", "a"], "--limits is 'a'; expected NAME=NUMBER"),
        (["--limits", "=1"], "--limits is '=1'; expected NAME=NUMBER"),
        (["--no-quiet"], "No such option"),
    ],
)
def test_wrong_words_exit_with_two(words: list[str], message: str) -> None:
    result = run("a.wav", *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_help_is_the_docstrings_entry() -> None:
    output = run("--help").output
    lines = {" ".join(line.strip(" │").split()) for line in output.splitlines()}
    assert "How it sounds ─" in output
    assert "This sentence is not a heading" not in output
    assert any("Loudness of the song, in LUFS. [default: (unchanged)]" in line for line in lines)
    assert any(line.startswith("--low TEXT A bound of the range.") for line in lines)
    assert any(line.startswith("--balance --no-balance <bool> Balance the") for line in lines)
    assert any("--output -o FILE Result file. [default: (the terminal)]" in line for line in lines)
    assert "Args:" not in output
    assert "A song to play." in output


def test_entries_of_a_docstring() -> None:
    document = (
        "Do it.\n\nArgs:\n    a, b: two\n        numbers.\n    c: text.\n\nReturns:\n    d: e."
    )
    assert arguments(document) == {"a": "two numbers.", "b": "two numbers.", "c": "text."}
    assert arguments("No section.") == {}
