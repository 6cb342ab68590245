"""Folders that appear whole, and files that arrive with the one that names them last."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_reward.files.run_state import atomic_folder, whole_files


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "best"
    for number in range(2):
        with atomic_folder(folder) as temporary:
            (temporary / f"{number}").touch()
            assert folder.is_dir() == (number == 1)
        assert [file.name for file in folder.iterdir()] == [f"{number}"]
    with pytest.raises(ZeroDivisionError), atomic_folder(folder) as temporary:
        (temporary / str(1 // 0)).touch()
    assert [file.name for file in folder.iterdir()] == ["1"]
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_kill_left_is_cleared_away(tmp_path: Path) -> None:
    for name in (".best.tmp", ".best.old", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "left").touch()
    with atomic_folder(tmp_path / "best") as temporary:
        assert list(temporary.iterdir()) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "best"]
    assert list((tmp_path / "best").iterdir()) == []


def test_the_last_file_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = Path.replace

    def noted(self: Path, target: Path) -> Path:
        moved.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    (tmp_path / "own.txt").touch()
    (tmp_path / "b").write_text("old")
    with whole_files(tmp_path, last="a") as temporary:
        for name in "cab":
            (temporary / name).write_text("new")
    assert moved == ["b", "c", "a"]
    assert (tmp_path / "b").read_text() == "new"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "c", "own.txt"]
    with pytest.raises(ValueError, match="stop"), whole_files(tmp_path / "x", last="a"):
        raise ValueError("stop")
    assert not (tmp_path / "x").exists()
