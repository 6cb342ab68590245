"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_VARIABLE = "APEX_REWARD_SHARED"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the folder of real songs and votes, leave out the tests that need it."""
    if SHARED_VARIABLE not in os.environ:
        items[:] = [item for item in items if "shared_folder" not in item.fixturenames]


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder of real songs (`audio/`) and votes (`battles/`), named by APEX_REWARD_SHARED."""
    folder = Path(os.environ[SHARED_VARIABLE])
    assert (folder / "audio").is_dir(), f"{SHARED_VARIABLE}={folder} has no folder 'audio'"
    return folder
