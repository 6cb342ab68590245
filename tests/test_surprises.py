"""Findings have one form, and every row of the table of surprises has something that holds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FINDINGS = sorted((ROOT / "findings").glob("*.sh"))
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


def test_there_are_findings() -> None:
    assert len(FINDINGS) >= 12
