"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# One thread for each of the processes that share the cores; what they start inherits it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell ignores Ctrl-C for what it starts in the background; what tests interrupt must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_VARIABLE = "APEX_REWARD_SHARED"

# Machines are noisy, so no deadlines; continuous checks see the same examples every time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if "CI" in os.environ else "default")


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
