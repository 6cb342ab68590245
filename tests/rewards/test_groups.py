"""Songs of one prompt, by hand."""

from __future__ import annotations

from apex_reward import Prompt
from apex_reward.rewards.groups import (
    everywhere,
    group_numbers,
    prompt_keys,
    share_without_signal,
)


def test_equal_prompts_have_equal_keys_and_numbers() -> None:
    chat = [{"role": "user", "content": "jazz"}]
    keys = prompt_keys(["rock", chat, list(chat), "rock", "jazz"])
    assert keys[0] == keys[3] == "rock"
    assert keys[1] == keys[2] == '[{"role": "user", "content": "jazz"}]'
    words = prompt_keys(["a", "a", "a"], ["x", "y", None])
    assert words[:2] == prompt_keys([Prompt("a", "x"), Prompt("a", "y")])
    assert (len(set(words)), words[2]) == (3, "a")
    assert group_numbers(keys).tolist() == [0, 1, 1, 0, 2]
    assert group_numbers([]).tolist() == []


def test_groups_of_one_reward_move_no_policy() -> None:
    """a differs, b is equal to the last bit, c has one song that was heard, d none."""
    keys = ["a", "b", "a", "b", "c", "c", "d"]
    rewards = [1.0, 2.0, 1.00001, 2.0 + 1e-9, 3.0, None, None]
    assert share_without_signal(keys, rewards) == 0.75
    assert share_without_signal(["a", "a"], [1.0, 2.0]) == 0.0
    assert share_without_signal([], []) == 0.0


def test_one_process_has_everything() -> None:
    assert everywhere(["a", "b"]) == (["a", "b"], slice(0, 2))
