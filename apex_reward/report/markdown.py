"""Tables as Markdown and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

from apex_reward.report.cells import cell, is_numeric

_MARKDOWN = re.compile(r"[\\`*|<]|\](?=\()")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


def markdown_text(text: str) -> str:
    r"""Text in which nothing is read as a table's border, a tag, a link or emphasis.

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
    right = [is_numeric(row[i] for row in rows) for i in range(len(columns))]
    rule = "|" + "|".join("--:" if number else ":--" for number in right) + "|"
    return "\n".join([_line(columns), rule, *map(_line, rows)])


def _line(values: Sequence[object]) -> str:
    return "| " + " | ".join(markdown_text(cell(value)) for value in values) + " |"


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
    right = "".join("r" if is_numeric(row[i] for row in rows) else "l" for i in range(len(columns)))
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{right}}}",
            r"\toprule",
            _latex_line(columns),
            r"\midrule",
            *map(_latex_line, rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex_line(values: Sequence[object]) -> str:
    texts = ("".join(_LATEX.get(c, c) for c in cell(value)) for value in values)
    return " & ".join(texts) + r" \\"
