"""What a model reads of the prompts beside songs: their text, or their lyrics."""

from __future__ import annotations

from typing import Literal

from apex_reward.errors import UsageError, listed
from apex_reward.model.encode import Prompts
from apex_reward.prompt import prompt_of


def texts_of(
    name: str, prompts: Prompts, key: Literal["prompt", "lyrics"], *, empty: bool = False
) -> list[str]:
    """One text per song.

    Args:
        name: of the model, for messages.
        prompts: as `apex_reward.prompt.prompt_of` reads them. For lyrics, a plain `str` that is no
            `Prompt` is the lyrics themselves.
        key: which text.
        empty: whether a text may be empty or missing.

    Raises:
        UsageError: no prompts, or songs without the text.
    """
    if prompts is None:
        raise UsageError(f"{name} needs the {key} of every song; pass prompts=, one per song")
    texts = [
        str(prompt_of(item)) if key == "prompt" or type(item) is str else prompt_of(item).lyrics
        for item in prompts
    ]
    stripped = [(text or "").strip() for text in texts]
    if not empty and (without := [song for song, text in enumerate(stripped) if not text]):
        raise UsageError(
            f"{name} needs the {key} of every song; empty for songs {listed(without)} of the batch"
        )
    return stripped
