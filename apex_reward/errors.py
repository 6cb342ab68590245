"""The few exceptions this package raises.

Each message says what was given, what was expected and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pkgutil import resolve_name
from typing import Any


class ApexError(Exception):
    """Base of every error raised on purpose by this package."""


class UsageError(ApexError, ValueError):
    """A wrong argument or option: the caller has to change the call. Command-line exit code 2."""


class AudioError(ApexError, ValueError):
    """A song that cannot be decoded or scored (empty, not finite, not audio)."""


class CheckpointError(ApexError, ValueError):
    """A checkpoint that is not what it should be; names the file and the tensor."""


class DataError(ApexError, ValueError):
    """A table, manifest or shard with missing columns or impossible values.

    All problems found are listed together, so that one run shows everything to be mended.
    """

    @classmethod
    def listing(cls, subject: str, problems: list[str]) -> DataError:
        """One error for several problems, a line each."""
        return cls(f"{subject}:\n" + "\n".join(f"  - {problem}" for problem in problems))


def expect(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raise UsageError with `NAME is VALUE; expected WANTED` unless the value holds.

    >>> expect(0.5 < 1, "alpha", 0.5, "a share below 1")
    """
    if not holds:
        raise UsageError(f"{name} is {value!r}; expected {wanted}")


def expect_one_of(name: str, value: object, known: Iterable[str]) -> None:
    """`expect` that the value is one of the known names."""
    names = tuple(known)
    expect(value in names, name, value, f"one of {', '.join(names)}")


def listed(names: Iterable[object], limit: int = 8) -> str:
    """Join names for a message: the first `limit`, then how many more.

    >>> listed(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    items = [str(name) for name in names]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


def named(name: str, kind: str) -> Any:
    """The object at `package.module:name`.

    Args:
        name: the place of the object.
        kind: what it should be, for the message.

    Raises:
        UsageError: the module cannot be imported, or has no such name.

    >>> named("math:floor", "function")(1.5)
    1
    """
    try:
        return resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{name}: {error}; expected package.module:{kind}") from error
