"""What a run was started with, so that a resume never mixes two runs; and what made a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from apex_reward.errors import UsageError
from apex_reward.files.tables import write_json


def text_hash(values: Iterable[object]) -> str:
    """A hash of a sequence of JSON-ready values."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON gives them back: tuples as lists, keys as text."""
    return dict(json.loads(json.dumps(values)))


def provenance_path(output: Path) -> Path:
    """The file beside a result that says what made it.

    >>> provenance_path(Path("out/scores.csv")).name
    'scores.csv.meta.json'
    """
    return output.with_name(output.name + ".meta.json")


def read_provenance(output: Path) -> dict[str, Any] | None:
    """What stands beside a result about what made it; None where nothing readable does."""
    try:
        return dict(json.loads(provenance_path(output).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


class RunStamp:
    """What the rows of a growing file depend on, in a file beside it while it grows.

    Args:
        path: of the stamp.
        values: JSON-ready; a resumed run must have the same.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = plain(values)

    def check(self, partial: Path) -> None:
        """Raises UsageError where the rows in `partial` were made with other values."""
        try:
            former = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            former = {}
        other = [
            _difference(name, former.get(name), value)
            for name, value in self.values.items()
            if former.get(name) != value
        ]
        if other:
            raise UsageError(
                f"{partial} was made with other {' and '.join(other)}; resume with the same, or "
                "leave out --resume to start anew"
            )

    def write(self) -> None:
        """Put it there, once rows of another run are gone."""
        write_json(self.path, self.values)

    def clear(self) -> None:
        """Take it away: the file is whole."""
        self.path.unlink(missing_ok=True)


def _difference(name: str, then: Any, now: Any) -> str:
    """What differs: with both values, where they are numbers or short words."""
    values = str(then), str(now)
    short = then is not None and max(map(len, values)) <= 16
    return f"{name} ({values[0]}, now {values[1]})" if short else name
