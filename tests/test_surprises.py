"""Findings have one form, and every row of the table of surprises has something that holds it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FINDINGS = sorted((ROOT / "findings").glob("*.sh"))
TABLE = ROOT / "docs" / "surprises.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| library |")
]
PINNED = re.compile(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*")


@pytest.mark.parametrize("script", FINDINGS, ids=lambda path: path.stem)
def test_a_finding_has_the_form(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    header = " ".join(line[2:] for line in text.splitlines()[1:] if line.startswith("# "))
    assert text.startswith("#!/usr/bin/env bash\n# One would guess: ")
    assert "\nset -euo pipefail\n" in text
    assert "folder=$(mktemp -d)\ntrap 'rm -rf \"$folder\"' EXIT\n" in text
    guess, expected = (re.search(rf'^{name}="(.+)"$', text, re.MULTILINE)
                       for name in ("guess", "expected"))  # fmt: skip
    assert guess
    assert expected
    assert guess[1] != expected[1]
    install = re.search(r"pip\" install --quiet --disable-pip-version-check \\\n(.*)\n", text)
    assert install
    packages = install[1].split()
    assert all(PINNED.fullmatch(package) for package in packages)
    for package in packages:
        assert package.replace("==", " ") in header
    assert re.search(r"\b20\d\d-\d\d-\d\d\.", header)
    assert "apex" not in text
    assert "index-url" not in text


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_what_shows_it(row: list[str]) -> None:
    library, guess, happens, ours, shown = row
    assert re.search(r"\d+\.\d+", library)
    assert all((guess, happens, ours))
    places = re.findall(r"`([^`]+)`", shown)
    assert places
    for place in places:
        path, _, name = place.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert path.endswith(".sh") or f"def {name}(" in text, place


def test_every_finding_has_a_row() -> None:
    table = TABLE.read_text(encoding="utf-8")
    assert [path.stem for path in FINDINGS if f"`findings/{path.name}`" not in table] == []
    assert len(FINDINGS) >= 12
    assert len(ROWS) >= 25


def attributes(*folders: str) -> list[str]:
    """Every attribute that the code of some folders uses, as it is written."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 5
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return [ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)]


def test_no_audio_is_written_or_read_by_torchaudio() -> None:
    """Its `save` changes samples and formats without an error."""
    used = attributes("apex_reward", "recipes", "space", "benchmarks")
    assert {"torchaudio.save", "torchaudio.load", "torchaudio.info"}.isdisjoint(used)
    assert len(used) > 10_000


def test_samples_of_a_frame_are_read_channel_by_channel() -> None:
    """PyAV's own conversions can end the process for some surround layouts."""
    used = attributes("apex_reward/audio")
    assert [name for name in used if name.endswith((".planes", ".to_ndarray"))] == []
