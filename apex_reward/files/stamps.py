"""What made a result, in a file beside it, so that a resume never mixes two runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import read_json, write_json
from apex_reward.version import package_version

PIECE = 1 << 16  # bytes of a file that are read at its beginning, middle and end


def text_hash(values: Iterable[object]) -> str:
    """A hash of a sequence of JSON-ready values."""
    return hashlib.sha256(json.dumps(list(values), sort_keys=True).encode()).hexdigest()


def provenance_path(output: Path) -> Path:
    """The file beside a result that holds what made it.

    >>> provenance_path(Path("out/scores.csv")).name
    'scores.csv.meta.json'
    """
    return output.with_name(output.name + ".meta.json")


def read_provenance(output: Path) -> dict[str, Any] | None:
    """What made a result, from the file beside it; None where there is no readable one."""
    with suppress(DataError):
        return read_json(provenance_path(output))
    return None


class Stamp:
    """Everything that a result depends on: code version, settings, and inputs with their content.

    Args:
        values: JSON-ready settings.
        files: paths of the inputs. Their content counts by size and by 64 KiB at the beginning,
            the middle and the end. It is read again only where sizes or times of change differ.
    """

    def __init__(
        self, values: Mapping[str, Any], files: Sequence[str | Path] | None = None
    ) -> None:
        stamped = {"version": package_version(), **values}
        self.values: dict[str, Any] = json.loads(json.dumps(stamped))
        self.files = files

    def check(self, path: Path, result: Path) -> None:
        """Compare with the stamp that a former run left at `path`.

        Raises:
            UsageError: `result` was made from something else; every difference is named.
        """
        former: dict[str, Any] = {}
        with suppress(DataError):
            former = read_json(path)
        other = [name for name, value in self.values.items() if former.get(name) != value]
        if self.files is not None:
            if former.get("times") == self._times:
                self._content = former.get("content", "")
            if former.get("content") != self._content:
                other.append("content of the inputs")
        if other:
            raise UsageError(
                f"{result} was made with other {' and '.join(other)}; resume with the same, or "
                "leave out --resume to start anew"
            )

    def write(self, path: Path) -> None:
        """Write the stamp; call it when no rows of another run are left beside it."""
        files = {"content": self._content, "times": self._times} if self.files is not None else {}
        write_json(path, self.values | files)

    @cached_property
    def _times(self) -> str:
        return text_hash(_size_and_time(file) for file in self.files or ())

    @cached_property
    def _content(self) -> str:
        return text_hash(_pieces(file) for file in self.files or ())


def _size_and_time(file: str | Path) -> list[int]:
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def _pieces(file: str | Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(file, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            digest.update(str(size).encode())
            for start in (0, size // 2, max(0, size - PIECE)):
                opened.seek(start)
                digest.update(opened.read(PIECE))
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()
