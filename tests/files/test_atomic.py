"""Files and folders that appear whole, one writer for each, and what a full disk does."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from apex_reward.errors import ApexError, UsageError
from apex_reward.files.atomic import atomic, writing
from apex_reward.files.growing import GrowingTable


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f.csv"
    with writing(path):
        refused = rf"f\.csv is being written by another run \(process {os.getpid()}\); wait for it"
        with pytest.raises(UsageError, match=refused), writing(path):
            pytest.fail("two writers at once")
        assert (tmp_path / "new" / "f.csv.lock").read_text() == f"{os.getpid()}\n"
        with writing(tmp_path / "new" / "g.csv"):
            pass
    assert list((tmp_path / "new").iterdir()) == []
    with writing(path):
        pass


def test_what_a_dead_process_left_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "f.csv.lock").write_text("123456789012\n")
    with writing(tmp_path / "f.csv"):
        assert (tmp_path / "f.csv.lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_that_cannot_be_made_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match="cannot be written: (File exists|Not a directory)"),
        writing(tmp_path / "file" / "f.csv"),
    ):
        pytest.fail("written inside a file")


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    table = GrowingTable(tmp_path / "f.csv")
    for number in (errno.ENOSPC, errno.EDQUOT):
        with (
            pytest.raises(ApexError, match=r"disk is full; .* kept in .*f\.csv\.partial"),
            table.locked(),
        ):
            raise OSError(number, "no room")
    with pytest.raises(PermissionError), table.locked():
        raise PermissionError(errno.EACCES, "no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gone", [1, 2])
def test_a_lock_file_that_vanishes_at_any_look_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: int
) -> None:
    """Other processes take and leave the lock while this one opens it."""
    stat, looks = os.stat, []

    def vanishing(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        looks.extend([path] if str(path).endswith(".lock") else [])
        if len(looks) == gone and str(path).endswith(".lock"):
            raise FileNotFoundError(errno.ENOENT, "gone")
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", vanishing)
    with writing(tmp_path / "f.csv"):
        assert (tmp_path / "f.csv.lock").read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    for text, failing in (("old", False), ("half", True)):
        with suppress(RuntimeError), atomic(target) as temporary:
            temporary.write_text(text)
            if failing:
                raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_two_threads_write_the_same_file(tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def write(_: int) -> None:
        with atomic(tmp_path / "x") as temporary:
            temporary.write_text("same")
            together.wait(10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "best"
    for number in range(2):
        with atomic(folder) as temporary:
            temporary.mkdir()
            (temporary / f"{number}").touch()
            assert folder.is_dir() == (number == 1)
        assert [file.name for file in folder.iterdir()] == [f"{number}"]
    with suppress(ZeroDivisionError), atomic(folder) as temporary:
        temporary.mkdir()
        (temporary / str(1 // 0)).touch()
    assert [file.name for file in folder.iterdir()] == ["1"]
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_kill_left_is_cleared_away(tmp_path: Path) -> None:
    for name in (".best.1-2.tmp", ".best.old", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "left").touch()
    with atomic(tmp_path / "best") as temporary:
        temporary.mkdir()
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
    with atomic(tmp_path, last="a") as temporary:
        temporary.mkdir()
        for name in "cab":
            (temporary / name).write_text("new")
    assert moved == ["b", "c", "a"]
    assert (tmp_path / "b").read_text() == "new"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "c", "own.txt"]
    with pytest.raises(ValueError, match="stop"), atomic(tmp_path / "x", last="a"):
        raise ValueError("stop")
    assert not (tmp_path / "x").exists()
