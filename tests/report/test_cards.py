"""Cards: their head, their parts, and the words of the hub."""

from __future__ import annotations

import pytest

from apex_reward.report.markdown import card, size_category


def test_a_card_has_a_head_a_title_and_parts() -> None:
    text = card({"license": "mit", "tags": ["müsik"]}, "Songs", ["One.", "", "Two."])
    assert text == "---\nlicense: mit\ntags:\n- müsik\n---\n# Songs\n\nOne.\n\nTwo.\n"
    assert card({"b": 1, "a": 2}, "Songs", []) == "---\nb: 1\na: 2\n---\n# Songs\n"


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (9999, "1K<n<10K"), (10**4, "10K<n<100K"),
        (10**5, "100K<n<1M"), (10**7 - 1, "1M<n<10M"), (10**7, "n>10M"),
    ],
)  # fmt: skip
def test_sizes_in_the_hub_s_words(rows: int, size: str) -> None:
    assert size_category(rows) == size
