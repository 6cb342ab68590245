"""What a model reads of the texts that travel beside songs: the prompt, or the lyrics."""

from __future__ import annotations

from apex_reward.errors import UsageError, listed
from apex_reward.model.encode import Prompts
from apex_reward.prompt import Prompt


def texts_of(name: str, prompts: Prompts, key: str, *, empty: bool = False) -> list[str]:
    """One text per song: a plain text stands for itself, a mapping for its `key`.

    Args:
        name: of the model, for messages.
        prompts: texts, or mappings such as `{"prompt": ..., "lyrics": ...}`.
        key: `prompt` or `lyrics`.
        empty: whether a text may be empty or missing.

    Raises:
        UsageError: no texts, something else than a text, or songs without one.
    """
    if prompts is None:
        raise UsageError(f"{name} needs the {key} of every song; pass prompts=, one per song")
    texts, without = [], []
    for song, item in enumerate(prompts):
        text = item.lyrics if key == "lyrics" and isinstance(item, Prompt) else item
        if not isinstance(text, str | None):
            text = _of_mapping(name, item, key)
        texts.append((text or "").strip())
        if not texts[-1]:
            without.append(song)
    if without and not empty:
        raise UsageError(
            f"{name} needs the {key} of every song; empty for songs {listed(without)} of the batch"
        )
    return texts


def _of_mapping(name: str, item: object, key: str) -> str | None:
    text = item.get(key) if hasattr(item, "get") else item
    if not isinstance(text, str | None):
        raise UsageError(
            f"{name} was given {type(item).__name__} {item!r} as a prompt; expected a text or a "
            f"mapping with '{key}'"
        )
    return text
