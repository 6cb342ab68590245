"""What models made of encoders are told about the songs: one text each, or none."""

from __future__ import annotations

import pytest

from apex_reward.errors import UsageError
from apex_reward.model.encode import check_prompts


def test_a_model_that_reads_text_gets_one_per_song() -> None:
    assert check_prompts("m", True, ["a", "b"], 2) == ["a", "b"]
    assert check_prompts("m", False, ["a", "b"], 5) is None
    with pytest.raises(UsageError, match="^m judges songs by their prompts and none were given"):
        check_prompts("m", True, None, 2)
    with pytest.raises(UsageError, match="^3 prompts for 2 songs; expected a list with one per"):
        check_prompts("m", True, ["a", "b", "c"], 2)
    with pytest.raises(UsageError, match="^one text for 2 songs"):
        check_prompts("m", True, "ab", 2)
