"""What a run was started with, and what made a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from apex_reward.errors import UsageError
from apex_reward.files.stamps import Stamp, provenance_path, read_provenance, text_hash

VALUES = {"epochs": 3, "sizes": (1, 2), "songs": "0123456789abcdefg"}


def test_a_resume_names_what_differs(tmp_path: Path) -> None:
    stamp, path, rows = Stamp(VALUES), tmp_path / "s.json", tmp_path / "rows"
    stamp.write(path)
    stamp.check(path, rows)
    Stamp({"epochs": 3}).check(path, rows)
    other = Stamp({**VALUES, "epochs": 4, "songs": "another", "new": 1})
    with pytest.raises(UsageError) as error:
        other.check(path, rows)
    assert str(error.value).startswith(
        f"{rows} was made with other epochs and songs and new; resume"
    )
    path.unlink()
    with pytest.raises(UsageError, match="with other version and epochs and sizes and songs; "):
        stamp.check(path, rows)


@pytest.mark.parametrize("size", [10, 300_000])
@pytest.mark.parametrize("place", [0, 0.5, 0.99])
def test_the_content_of_the_inputs_counts_and_not_their_times(
    tmp_path: Path, size: int, place: float
) -> None:
    files = [tmp_path / "a", tmp_path / "gone"]
    content = bytearray(size)
    files[0].write_bytes(content)
    Stamp({}, files).write(tmp_path / "s.json")
    os.utime(files[0], (1, 1))
    Stamp({}, files).check(tmp_path / "s.json", tmp_path / "rows")
    content[int(place * size)] = 1
    files[0].write_bytes(content)
    with pytest.raises(UsageError, match="made with other content of the inputs; resume"):
        Stamp({}, files).check(tmp_path / "s.json", tmp_path / "rows")


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
