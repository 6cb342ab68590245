"""Cards of data sets and models: a YAML head that hubs read, and Markdown for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

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
