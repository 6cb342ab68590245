"""What a run was started with, and what made a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apex_reward.errors import UsageError
from apex_reward.files.stamps import RunStamp, provenance_path, read_provenance, text_hash

VALUES = {"epochs": 3, "sizes": (1, 2), "songs": "0123456789abcdefg"}


def test_a_resume_names_what_differs(tmp_path: Path) -> None:
    stamp = RunStamp(tmp_path / "s.json", VALUES)
    stamp.write()
    stamp.check(tmp_path / "rows")
    RunStamp(tmp_path / "s.json", {"epochs": 3}).check(tmp_path / "rows")
    other = RunStamp(tmp_path / "s.json", {**VALUES, "epochs": 4, "songs": "another", "new": 1})
    with pytest.raises(UsageError) as error:
        other.check(tmp_path / "rows")
    assert str(error.value).startswith(
        f"{tmp_path / 'rows'} was made with other epochs (3, now 4) and songs and new; resume"
    )
    stamp.clear()
    stamp.clear()
    with pytest.raises(UsageError, match="made with other epochs and sizes and songs; resume"):
        stamp.check(tmp_path / "rows")


def test_words_of_sixteen_letters_are_shown_and_longer_ones_not(tmp_path: Path) -> None:
    RunStamp(tmp_path / "s.json", {"a": "x" * 16, "b": "x" * 17}).write()
    with pytest.raises(UsageError, match=r"other a \(x{16}, now y\) and b; resume"):
        RunStamp(tmp_path / "s.json", {"a": "y", "b": "y"}).check(tmp_path / "rows")


def test_hashes_tell_sequences_apart() -> None:
    assert text_hash([{"a": 1, "b": 2}]) == text_hash([{"b": 2, "a": 1}])
    assert len({text_hash(values) for values in (["a", "b"], ["b", "a"], ["ab"], [], [["a"]])}) == 5


def test_what_stands_beside_a_result(tmp_path: Path) -> None:
    result = tmp_path / "scores.csv"
    assert read_provenance(result) is None
    provenance_path(result).write_text("{half")
    assert read_provenance(result) is None
    provenance_path(result).write_text(json.dumps({"model": "tiny"}))
    assert read_provenance(result) == {"model": "tiny"}
