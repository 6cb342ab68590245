"""Cards of data sets and models: a YAML head that hubs read, and Markdown for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

WEIGHTS = {
    "apex": "see the cards of APEX and MERT",
    "apex-tiny": "Apache-2.0",
    "songeval": "CC BY-NC 4.0 (MuQ)",
    "clap": "see the card of the checkpoint",
    "tunejury": "CC BY-NC 4.0",
    "audiobox": "see its card",
    "muq-eval": "MIT",
}
"""Licences of published weights, as docs/guides/panel.md has them."""
DEMONSTRATION = (
    "> **A demonstration.** It was made with a small model that was trained on synthetic songs "
    "with invented labels. Its scores say nothing about popularity or taste."
)


def card(head: Mapping[str, Any], title: str, parts: Sequence[str]) -> str:
    """The text of a README.md: a YAML head, a title, and the parts that are not empty.

    >>> print(card({"license": "mit"}, "Songs", ["Two.", ""]), end="")
    ---
    license: mit
    ---
    # Songs
    <BLANKLINE>
    Two.
    """
    text = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n" + "\n\n".join([f"# {title}", *filter(None, parts)]) + "\n"


def weights_licence(name: str, source: str = "") -> str:
    """What is known of the licence of a model's weights, by where it is from, else by its name."""
    return WEIGHTS.get(source) or WEIGHTS.get(name) or "not known"


def size_category(rows: int) -> str:
    """The hub's word for a number of rows.

    >>> size_category(3), size_category(20_000)
    ('n<1K', '10K<n<100K')
    """
    names = ("1K", "10K", "100K", "1M", "10M")
    for power, name in enumerate(names, start=3):
        if rows < 10**power:
            return f"n<{name}" if power == 3 else f"{names[power - 4]}<n<{name}"
    return "n>10M"
