"""Help, messages and docstrings are written in plain English.

The words below mark a style that is hard to read: inverted sentences, and words that make songs
and models into persons. People do hear songs, so `listen` and its guide may use those words.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apex_reward.cli import app

ROOT = Path(__file__).resolve().parents[1]
WORDS = (
    "heard", "hears", "said", "says", "nobody", "at hand", "so many", "so much", "what is no",
    "of one's own", "goes round", "on its way", "on their way", "is there already", "has not",
    "which it has", "such as it is", "by hand of",
)  # fmt: skip
MARKED = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
CODE = re.compile(r"```.*?```|``[^`]*``|`[^`\n]*`|^>>> .*$", re.DOTALL | re.MULTILINE)
ROOMS = ("cli", "report", "runs", "compare")
"""Rooms whose docstrings and messages are checked."""
LISTENING = ("listen.py", "arena.py")
"""Modules in which people listen to songs."""
PAGES = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "space/README.md", "findings/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]  # fmt: skip
COMMANDS = [
    [], ["demo"], ["score"], ["import"], ["serve"], ["pairs"], ["distance"], ["compare"],
    ["prepare"], ["extract"], ["train"], ["grid"], ["evaluate"], ["arena", "score"],
    ["arena", "calibrate"],
]  # fmt: skip


def marked(text: str) -> list[str]:
    return MARKED.findall(" ".join(CODE.sub(" ", text).split()))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings, comments and messages of a module, with their lines."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for number, line in enumerate(source.splitlines(), start=1):
        if comment := re.search(r"(?:^|\s)#\s(.*)", line):
            yield number, comment[1]


def test_the_list_finds_its_words_and_no_code() -> None:
    text = "Silence is heard; nobody SAID so.\nNone at\nhand."
    assert marked(text) == ["heard", "nobody", "SAID", "at hand"]
    assert marked("`said` is a name, and so is\n```\nheard\n```") == []
    assert marked("A song is encoded once.") == []


@pytest.mark.parametrize("room", ROOMS)
def test_modules(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {words}"
        for path in sorted((ROOT / "apex_reward" / room).rglob("*.py"))
        if path.name not in LISTENING
        for line, text in texts(path)
        if (words := marked(text))
    ]
    assert found == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert marked(result.output) == []


@pytest.mark.parametrize("page", PAGES)
def test_pages(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert marked(text) == []
