"""Tables as Markdown and as LaTeX, and cards: a YAML head for the hub, then Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from apex_reward.report.cells import cell, is_numeric

_MARKDOWN = re.compile(r"[\\`*|<]|\](?=\()")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
    | {sign: f"\\{sign}" for sign in "&%$#_{}"}
)
DEMONSTRATION = (
    "> **A demonstration.** It was made with a small model that was trained on synthetic songs "
    "with invented labels. Its scores say nothing about popularity or taste."
)


def markdown_text(text: str) -> str:
    r"""Text with escapes, so that Markdown reads no table border, tag, link or emphasis in it.

    >>> print(markdown_text("a|b <script> [x](y)"))
    a\|b \<script> [x\](y)
    """
    return _MARKDOWN.sub(lambda found: "\\" + found[0], text)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table without a final newline; columns of numbers are right-aligned.

    >>> print(markdown_table(["score", "auc"], [["tj", 0.5516], ["other", None]]))
    | score | auc |
    |:--|--:|
    | tj | 0.552 |
    | other | - |
    """
    rule = "|" + "|".join("--:" if number else ":--" for number in _numeric(columns, rows)) + "|"
    lines = [
        "| " + " | ".join(markdown_text(cell(value)) for value in values) + " |"
        for values in (columns, *rows)
    ]
    return "\n".join([lines[0], rule, *lines[1:]])


def latex_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    r"""A `booktabs` table without a final newline; columns of numbers are right-aligned.

    >>> print(latex_table(["head", "mse"], [["score_likes", 1.5]]))
    \begin{tabular}{lr}
    \toprule
    head & mse \\
    \midrule
    score\_likes & 1.500 \\
    \bottomrule
    \end{tabular}
    """
    sides = "".join("r" if number else "l" for number in _numeric(columns, rows))
    head, *body = (
        " & ".join(cell(value).translate(_LATEX) for value in values) + r" \\"
        for values in (columns, *rows)
    )
    top = rf"\begin{{tabular}}{{{sides}}}"
    return "\n".join([top, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _numeric(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[bool]:
    return [is_numeric(row[position] for row in rows) for position in range(len(columns))]


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
