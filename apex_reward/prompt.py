"""`Prompt`: the text that a song is made from, with its lyrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from apex_reward.errors import UsageError


class Prompt(str):
    """The text of a prompt; `lyrics` holds the words that the song should sing, or None.

    A prompt is a plain text everywhere else. Half of a surrogate pair, as a cut emoji leaves it,
    becomes a question mark: no tokenizer and no file takes it.

    >>> prompt = Prompt("slow blues", lyrics="woke up this morning")
    >>> prompt.upper(), prompt.lyrics, prompt == "slow blues"
    ('SLOW BLUES', 'woke up this morning', True)
    """

    lyrics: str | None

    def __new__(cls, text: str = "", lyrics: str | None = None) -> Prompt:
        """Copies and pickles keep the lyrics with the rest of the state."""
        prompt = super().__new__(cls, _encodable(text))
        prompt.lyrics = None if lyrics is None else _encodable(lyrics)
        return prompt

    def __repr__(self) -> str:
        words = "" if self.lyrics is None else f", lyrics={self.lyrics!r}"
        return f"Prompt({str(self)!r}{words})"


def prompt_of(value: Any, lyrics: Any = None) -> Prompt:
    """The prompt of one song, in whatever form it comes.

    Args:
        value: a text, a `Prompt`, a mapping with `prompt` and `lyrics`, chat messages (the last
            message of the user counts), a list of texts (the last one counts), or None for an empty
            prompt. Anything else becomes its JSON text.
        lyrics: text or None; they replace lyrics that `value` holds.

    >>> prompt_of([{"role": "user", "content": "slow blues"}])
    Prompt('slow blues')
    >>> prompt_of({"prompt": "slow blues", "lyrics": "woke up"})
    Prompt('slow blues', lyrics='woke up')
    """
    own = getattr(value, "lyrics", None)
    if isinstance(value, Mapping) and ("prompt" in value or "lyrics" in value):
        inner = prompt_of(value.get("prompt"))
        value, own = str(inner), value.get("lyrics") or inner.lyrics
    words = own if _missing(lyrics) else lyrics
    return Prompt(_text(value), None if _missing(words) else _text(words))


def prompts_of(values: Sequence[Any] | None, lyrics: Sequence[Any] | None = None) -> list[Prompt]:
    """The prompts of several songs, each as `prompt_of` reads it.

    Args:
        values: one per song; None where there are lyrics only.
        lyrics: one per song, or None.

    Raises:
        UsageError: one text instead of a list, or lists of different lengths.
    """
    for name, given in (("prompts", values), ("lyrics", lyrics)):
        if isinstance(given, (str, Mapping)):
            raise UsageError(f"{name} is one text; expected a list with one per song")
    values = [None] * len(lyrics or ()) if values is None else values
    words = [None] * len(values) if lyrics is None else lyrics
    if len(words) != len(values):
        raise UsageError(f"{len(words)} lyrics for {len(values)} prompts; expected one each")
    return [prompt_of(value, own) for value, own in zip(values, words, strict=True)]


def same_text(cell: Any) -> str:
    """Text in one case and with single spaces, so that equal prompts compare equal.

    >>> same_text("Calm  piano "), same_text(None)
    ('calm piano', '')
    """
    return "" if cell is None else " ".join(str(cell).split()).casefold()


def _text(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    if _missing(value):
        return ""
    if isinstance(value, Mapping) and "content" in value:
        return _content(value["content"])
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        users: list[Any] = [m for m in value if isinstance(m, Mapping) and m.get("role") == "user"]
        return _text((users or [*value] or [""])[-1])
    return json.dumps(value, default=str)


def _content(content: Any) -> str:
    """The text of a message; of a message in parts, its text parts, a line each."""
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "\n".join(text for text in texts if text)
    return _text(content)


def _missing(value: Any) -> bool:
    """None, NaN, or the missing value of a table library."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
