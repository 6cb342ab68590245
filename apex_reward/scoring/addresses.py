"""Inputs that are addresses: `hf://datasets/USER/NAME/...` and what else fsspec reads."""

from __future__ import annotations

import glob
import hashlib
import re
from pathlib import Path
from typing import Any

from apex_reward.audio import AUDIO_ENDINGS
from apex_reward.errors import DataError
from apex_reward.files.atomic import atomic
from apex_reward.files.songs_inside import Unheard, songs_folder
from apex_reward.scoring.lists import LIST_ENDINGS
from apex_reward.scoring.tar_shards import TAR_ENDINGS

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
TAKEN = (*AUDIO_ENDINGS, *LIST_ENDINGS, *TAR_ENDINGS)


def is_address(given: str) -> bool:
    """Whether an input is an address and no path."""
    return ADDRESS.match(given) is not None


def fetched(address: str, songs: Path | None = None) -> list[tuple[str, str]]:
    """What an address names, as files here: (its address, the file) in order of the addresses.

    A folder and a glob stand for their songs and tar shards, a file for itself. A file that is here
    already, from a run before, is not fetched again. A song that does not exist is `Unheard`.

    Args:
        address: `hf://datasets/USER/NAME/folder`, or another that fsspec has a file system for.
        songs: folder of the files; None: a temporary one.

    Raises:
        DataError: nothing there, or it cannot be reached.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
        if glob.has_magic(path):
            names = sorted(system.glob(path))
        elif system.isdir(path):
            names = sorted(system.find(path))
            names = [n for n in names if n.lower().endswith((*AUDIO_ENDINGS, *TAR_ENDINGS))]
        else:
            names = [path]
        return [
            (system.unstrip_protocol(name), _fetched(system, name, songs_folder(songs)))
            for name in names
        ]
    except FileNotFoundError:
        if address.lower().endswith(AUDIO_ENDINGS):
            return [(address, Unheard(address, "does not exist"))]
        raise DataError(f"{address} does not exist") from None
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{address} cannot be read: {error or type(error).__name__}") from error


def _fetched(system: Any, name: str, folder: Path) -> str:
    """The file of one address, under a name that says which."""
    digest = hashlib.blake2b(system.unstrip_protocol(name).encode(), digest_size=8).hexdigest()
    file = folder / f"{digest}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name.rpartition('/')[2])[-80:]}"
    if not file.is_file():
        with atomic(file) as temporary:
            system.get_file(name, str(temporary))
    return str(file)
