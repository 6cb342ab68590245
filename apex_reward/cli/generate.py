"""Commands from annotated functions and dataclasses: each option is written once, as a field.

A parameter of a command is an argument where it is positional-only, else an option. A parameter
whose type is a dataclass stands for its fields. The help of an option is its entry in the `Args`
section of the docstring; the heading of a dataclass' options is the first sentence of its
docstring. An entry may end with `None: ...`, the meaning of a default of None.

| annotation | on the command line |
|---|---|
| `bool` | `--name`; `--name/--no-name` where the default is True |
| `Literal[...]` | one of these values |
| `list[T]` | repeatable |
| `Sequence[T]`, `tuple[T, ...]` | values joined by commas |
| `Mapping[str, float]` | repeatable `NAME=X` |
| `Annotated[T, "SECONDS", "-s", (0, None)]` | the placeholder, a short or another name, the range |
| `Annotated[Sequence[T], function]` | the text of the option, or None, read by the function |
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from apex_reward.errors import UsageError

PLACEHOLDERS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
Read = Callable[[Any], Any]


def generated(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with one parameter per option, as typer expects it.

    Args:
        command: its docstring has an `Args` section, and it returns an exit code or None.
    """
    parameters: list[inspect.Parameter] = []
    reads: dict[str, Read] = {}
    groups: dict[str, Any] = {}
    positional: list[str] = []
    hints = get_type_hints(command, include_extras=True)
    texts = arguments(command.__doc__ or "")
    for name, parameter in inspect.signature(command).parameters.items():
        made = []
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            made = _of_group(groups[name])
        else:
            is_argument = parameter.kind is parameter.POSITIONAL_ONLY
            positional += [name] * is_argument
            text = texts.get(name, "")
            made = [_made(name, hints[name], parameter.default, text, is_argument)]
        parameters += [part for part, _ in made]
        reads |= {part.name: read for part, read in made}

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        values = {name: read(given[name]) for name, read in reads.items()}
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        first = [values.pop(name) for name in positional]
        return command(*first, **values, **made)

    run.__doc__ = re.sub(r"\n *Args:\n(?: {8,}.*\n|\s*\n)+", "\n", command.__doc__ or "")
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {part.name: part.annotation for part in parameters}
    return run


def _of_group(group: type) -> list[tuple[inspect.Parameter, Read]]:
    """The options of a dataclass' fields, under its heading."""
    panel = re.split(r"\.(?:\s|$)", inspect.cleandoc(group.__doc__ or ""))[0]
    hints = get_type_hints(group, include_extras=True)
    texts: dict[str, str] = {}
    for base in reversed(group.__mro__):
        texts |= arguments(base.__doc__ or "")
    made = []
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        text = texts.get(field.name, "")
        made.append(_made(field.name, hints[field.name], default, text, panel=panel))
    return made


def arguments(document: str) -> dict[str, str]:
    r"""The entries of a docstring's `Args` section, by name.

    >>> arguments("Do it.\n\nArgs:\n    a, b: two\n        numbers.\n    c: a text.")
    {'a': 'two numbers.', 'b': 'two numbers.', 'c': 'a text.'}
    """
    found: dict[str, str] = {}
    _, _, section = inspect.cleandoc(document).partition("Args:\n")
    section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
    for names, text in re.findall(r"^ {4}([\w, ]+): (.+(?:\n {5,}.+)*)", section, re.MULTILINE):
        found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def _made(
    name: str, hint: Any, default: Any, text: str, argument: bool = False, panel: str | None = None
) -> tuple[inspect.Parameter, Read]:
    """The parameter of one option, and the function that reads its value."""
    hint, extras = _unwrapped(hint)
    kind, placeholder, read = _kind(name, hint)
    read = next(filter(callable, extras), read)
    text, _, unset = text.partition("None: ")
    settings: dict[str, Any] = {"help": _sentence(text), "rich_help_panel": panel}
    if default is None and unset:
        settings["show_default"] = unset.rstrip(".").replace("`", "")
    words = [extra for extra in extras if isinstance(extra, str)]
    named = (word for word in words if not word.startswith("-"))
    settings["metavar"] = next(named, name.upper() if argument else placeholder)
    for low, high in (extra for extra in extras if isinstance(extra, tuple)):
        settings |= {"min": low, "max": high}
    if isinstance(default, (Mapping, Sequence)) and not isinstance(default, str):
        default = ",".join(map(str, default)) or None if kind is str else list(default) or None
    flags = [word for word in words if word.startswith("-")]
    if not argument and not any(flag.startswith("--") for flag in flags):
        option = "--" + name.replace("_", "-")
        flags.append(f"{option}/--no-{option[2:]}" if kind is bool and default else option)
    made = typer.Argument(**settings) if argument else typer.Option(*flags, **settings)
    only, optional = inspect.Parameter.KEYWORD_ONLY, kind | None if default is None else kind
    return inspect.Parameter(
        name, only, default=default, annotation=Annotated[optional, made]
    ), read


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without `Annotated`, also inside `| None`, and what `Annotated` adds."""
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        return hint, tuple(extras)
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_unwrapped(member) for member in get_args(hint)]
        kinds = functools.reduce(lambda one, other: one | other, (kind for kind, _ in parts))
        return kinds, tuple(extra for _, more in parts for extra in more)
    return hint, ()


def _kind(name: str, hint: Any) -> tuple[Any, str | None, Read]:
    """What typer reads for a type: its own type, a placeholder, and how to go on from there."""
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        kind, placeholder, read = _kind(name, str if str in members else members[0])
        return kind, placeholder, lambda value: None if value is None else read(value)
    origin, of = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        by_text = {str(choice): choice for choice in of}
        return Literal[*by_text], None, lambda value: by_text.get(value, value)
    if origin is Mapping or origin is dict:
        return list[str], "NAME=X", lambda value: _numbers(name, value or [])
    if origin is list:
        kind, placeholder, read = _kind(name, of[0])
        return list[kind], placeholder, lambda value: [read(part) for part in value or []]  # type: ignore[valid-type]
    if origin in (Sequence, tuple):
        return str, "A,B", lambda value: _listed(name, of[0], value)
    return hint, PLACEHOLDERS.get(hint), lambda value: value


def _numbers(name: str, texts: Sequence[str]) -> dict[str, float]:
    """`NAME=X` texts as a mapping. The name may be a mix, so the last `=` separates."""
    numbers: dict[str, float] = {}
    for text in texts:
        key, _, number = text.rpartition("=")
        try:
            numbers[key.strip()] = float(number)
        except ValueError:
            key = ""
        if not key.strip():
            raise _wrong(name, text, "NAME=NUMBER")
    return numbers


def _listed(name: str, of: Any, text: str | None) -> tuple[Any, ...]:
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    try:
        return tuple(of(part) for part in parts)
    except ValueError:
        raise _wrong(name, text, "numbers, such as 0,10,30") from None


def _wrong(name: str, text: str | None, expected: str) -> UsageError:
    return UsageError(f"--{name.replace('_', '-')} is {text!r}; expected {expected}")


def _sentence(text: str) -> str:
    """An entry as a sentence: a capital first, a full stop last, no backticks."""
    text = text.replace("`", "").strip().rstrip(".")
    return f"{text[0].upper()}{text[1:]}." if text else ""
