"""Prompts: every form of a text, and its lyrics."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest

from apex_reward import Prompt
from apex_reward.errors import UsageError
from apex_reward.prompt import prompt_of, prompts_of

PARTS = [{"type": "text", "text": "one"}, {"type": "audio"}, {"type": "text", "text": "two"}]


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("value", "text", "lyrics"),
    [
        ("plain", "plain", None),
        (Prompt("a", "la"), "a", "la"),
        ({"prompt": "a", "lyrics": "la"}, "a", "la"),
        ({"prompt": "a", "lyrics": None}, "a", None),
        ({"prompt": [message("user", "a")], "lyrics": "la"}, "a", "la"),
        ({"prompt": Prompt("a", "la")}, "a", "la"),
        (message("user", "a"), "a", None),
        ([message("user", "first"), message("user", "last"), message("assistant", "x")],
         "last", None),
        ([message("system", "only")], "only", None),
        ([message("user", PARTS)], "one\ntwo", None),
        (["a", "b"], "b", None),
        ([], "", None),
        (None, "", None),
        (math.nan, "", None),
        ({"style": "jazz"}, '{"style": "jazz"}', None),
        (3, "3", None),
        ("cut \ud83c", "cut ?", None),
    ],
    ids=str,
)  # fmt: skip
def test_every_form_of_a_prompt(value: Any, text: str, lyrics: str | None) -> None:
    prompt = prompt_of(value)
    assert (str(prompt), prompt.lyrics) == (text, lyrics)
    assert json.dumps(prompt) == json.dumps(text)


def test_lyrics_survive_copies_and_pickles() -> None:
    prompt = Prompt("blues", "woke up")
    for same in (pickle.loads(pickle.dumps(prompt)), copy.deepcopy(prompt), copy.copy(prompt)):
        assert (type(same), same, same.lyrics) == (Prompt, "blues", "woke up")
    assert prompt == "blues"
    assert repr(prompt) == "Prompt('blues', lyrics='woke up')"


def test_prompts_of_a_batch_take_lyrics_beside_them() -> None:
    prompts = prompts_of(["a", {"prompt": "b", "lyrics": "own"}], ["la", None])
    assert [(p, p.lyrics) for p in prompts] == [("a", "la"), ("b", "own")]
    assert [(p, p.lyrics) for p in prompts_of(None, ["la"])] == [("", "la")]
    with pytest.raises(UsageError, match="prompts is one text"):
        prompts_of("a")
    with pytest.raises(UsageError, match="1 lyrics for 2 prompts"):
        prompts_of(["a", "b"], ["la"])
