"""Cards: their head, their parts, and the words of the hub."""

from __future__ import annotations

from apex_reward.report.markdown import card


def test_a_card_has_a_head_a_title_and_parts() -> None:
    text = card({"license": "mit", "tags": ["müsik"]}, "Songs", ["One.", "", "Two."])
    assert text == "---\nlicense: mit\ntags:\n- müsik\n---\n# Songs\n\nOne.\n\nTwo.\n"
    assert card({"b": 1, "a": 2}, "Songs", []) == "---\nb: 1\na: 2\n---\n# Songs\n"
