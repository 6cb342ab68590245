"""One cell formatter for HTML, Markdown, LaTeX and the terminal."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apex_reward.report.cells import cell, is_numeric, middle_cut, visible
from apex_reward.report.markdown import latex_table, markdown_table, markdown_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (math.inf, "inf"),
        (np.float32(0.5), "0.500"),
        (np.int64(7), "7"),
        (-0.0, "0.000"),
        (0.0005, "0.001"),
        (-0.00003, "-3e-05"),
        (1234567.0, "1234567.000"),
        (2.5e12, "2.500e+12"),
        (False, "no"),
        ([0.5, None], "0.500, -"),
        ("plain é 日本", "plain é 日本"),
        ("tab\tline\n", r"tab\tline\n"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("bad\udcff.wav", r"bad\udcff.wav"),
        ("👩\u200d🎤", "👩\u200d🎤"),
    ],
)
def test_a_cell(value: object, text: str) -> None:
    assert cell(value) == text


def test_decimals_are_a_choice() -> None:
    assert cell(45.678, 1) == "45.7"
    assert cell(0.04, 1) == "4e-02"


@pytest.mark.parametrize(
    ("values", "numeric"),
    [
        ([1, None, 2.5], True),
        (["0.537 .503-.569", "-"], True),
        (["[0.512, 0.561]"], True),
        (["[-24.515, -16.190]"], True),
        (["714.98 ± 1.41", "3:05"], True),
        ([1e-9, math.inf], True),
        (["2pac.wav", "1"], False),
        (["-", None], False),
        ([], False),
        (["..."], False),
        ([True, False], False),
    ],
)
def test_columns_of_numbers(values: list[object], numeric: bool) -> None:
    assert is_numeric(values) is numeric


def test_the_middle_is_cut() -> None:
    assert middle_cut("abcdefghij", 10) == "abcdefghij"
    assert middle_cut("abcdefghij", 6) == "abc…ij"
    assert middle_cut("abcdefghij", 1) == "…"
    assert visible("") == ""


def test_markdown_escapes_pipes_tags_and_links() -> None:
    names = ["a|b", r"c\|d", "<script>alert(1)</script>", "[x](javascript:y)", "*bold*\n"]
    table = markdown_table(["name", "score"], [[name, 1.0] for name in names])
    assert table.splitlines() == [
        "| name | score |",
        "|:--|--:|",
        r"| a\|b | 1.000 |",
        r"| c\\\|d | 1.000 |",
        r"| \<script>alert(1)\</script> | 1.000 |",
        r"| [x\](javascript:y) | 1.000 |",
        r"| \*bold\*\\n | 1.000 |",
    ]
    assert markdown_text("score_likes [0.1, 0.2]") == "score_likes [0.1, 0.2]"


def test_latex_escapes_its_own_characters() -> None:
    lines = latex_table(["a_b", "mse"], [["R&B 100% $5 {x} \\", "1.0 ± 0.5"]]).splitlines()
    assert lines[0] == r"\begin{tabular}{lr}"
    assert lines[2] == r"a\_b & mse \\"
    assert lines[4] == r"R\&B 100\% \$5 \{x\} \textbackslash{} & 1.0 $\pm$ 0.5 \\"
