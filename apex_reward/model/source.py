"""`Source`: what loads a model again; every loaded model carries one as `.source`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from apex_reward.errors import DataError, UsageError

Model = TypeVar("Model")
KEYS = ("name", "encoder", "segment_tail", "revision")


@dataclass(frozen=True)
class Source:
    """What `load_reward_model` takes to make a model again.

    Args:
        name: hub id, folder, file, address of a server, a known name such as `songeval` (also
            `songeval:FOLDER`), or `package.module:Class`.
        encoder: hub id or folder of an encoder that replaces the model's own; None keeps that.
        segment_tail: `pad`, `mask` or `drop` of an APEX model; None takes the checkpoint's.
        revision: of a hub id; None takes the newest.
        changed: settings that were changed in code and that no name brings back. A reward with
            such a model cannot be saved.
        loaded_tail: the segment tail that the model had when it was loaded.
    """

    name: str
    encoder: str | None = None
    segment_tail: str | None = None
    revision: str | None = None
    changed: tuple[str, ...] = ()
    loaded_tail: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of_kind(cls, kind: str, name: str | Path, **options: Any) -> Source:
        """The source of a foreign model: `kind` alone, or `kind:name`."""
        text = str(name)
        known: dict[str, Any] = {
            key: str(options[key]) for key in KEYS[1:] if options.get(key) is not None
        }
        return cls(kind if text == kind else f"{kind}:{text}", **known)

    def plain(self) -> str | dict[str, str]:
        """The name, or a mapping with the other fields that are set; for reward files.

        Raises:
            UsageError: settings were changed in code.
        """
        if self.changed:
            raise UsageError(
                f"the model {self.name} was loaded with {', '.join(self.changed)}, which a reward "
                "file cannot hold; save the model (save_pretrained) and name the folder"
            )
        values = {key: getattr(self, key) for key in KEYS if getattr(self, key) is not None}
        return self.name if len(values) == 1 else values

    @classmethod
    def of_plain(cls, value: Any) -> Source:
        """Inverse of `plain`.

        Raises:
            DataError: neither a name nor a mapping of the fields.
        """
        if isinstance(value, str) and value:
            return cls(value)
        if not isinstance(value, Mapping) or "name" not in value or set(value) - set(KEYS):
            raise DataError(
                f"a model is {value!r}; expected a name, or a mapping with the keys "
                f"{', '.join(KEYS)}"
            )
        options = {key: None if text is None else str(text) for key, text in value.items()}
        return cls(str(options.pop("name")), **options)  # type: ignore[arg-type]

    def located(self, beside: Path, known: Collection[str]) -> Source:
        """The source with names of files and folders as absolute paths.

        Args:
            beside: a relative name is looked for in this folder first, then in the working one.
            known: names that are no files, such as `songeval`.
        """
        encoder = None if self.encoder is None else _located(self.encoder, beside)
        kind, _, rest = self.name.partition(":")
        name = f"{kind}:{_located(rest, beside)}" if rest else kind
        name = name if kind in known else _located(self.name, beside)
        return replace(self, name=name, encoder=encoder)

    def seen_from(self, folder: Path | None) -> Source:
        """The source with absolute paths inside the folder as paths from there (`./model`)."""
        inside = re.compile(rf"^([\w-]+:)?{re.escape(f'{folder}{os.sep}')}")
        encoder = None if self.encoder is None else inside.sub(r"\1./", self.encoder)
        return replace(self, name=inside.sub(r"\1./", self.name), encoder=encoder)


def with_source(model: Model, source: Source) -> Model:
    """The model itself, which carries its source from now on where it takes attributes."""
    source = replace(source, loaded_tail=_tail(model))
    with suppress(AttributeError):  # slots, or a frozen dataclass: its reward cannot be saved
        model.source = source  # type: ignore[attr-defined]
    return model


def source_of(model: Any) -> Source:
    """What loads a model again, with the segment tail that it has now.

    Raises:
        UsageError: the model was made in code and no name brings it back.
    """
    found = getattr(model, "source", None)
    if not isinstance(found, Source):
        kind = type(model)
        module = sys.modules.get(kind.__module__)
        # An object without attributes of its own is what its class makes again.
        named = kind.__module__ != "__main__" and getattr(module, kind.__qualname__, None) is kind
        if named and getattr(model, "__dict__", None) == {}:
            return Source(f"{kind.__module__}:{kind.__qualname__}")
        raise UsageError(
            f"the model {getattr(model, 'name', type(model).__name__)} was made in code and has "
            "no name to load it by; save it (save_pretrained) and load the folder, or load it with "
            "load_reward_model('package.module:Class')"
        )
    tail = _tail(model)
    return found if tail == found.loaded_tail else replace(found, segment_tail=tail)


def _tail(model: Any) -> str | None:
    return getattr(getattr(model, "config", None), "segment_tail", None)


def _located(name: str, beside: Path) -> str:
    """An absolute path where the name is a file or folder; hub ids and known names as they are."""
    for folder in (beside, Path()):
        if (folder / name).expanduser().exists():
            return str((folder / name).expanduser().resolve())
    return name
