"""One writer for a file, and what a full disk does to it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from apex_reward.errors import ApexError, UsageError
from apex_reward.files.growing import GrowingTable
from apex_reward.files.locks import writing


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
