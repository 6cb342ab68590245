"""Figures: formats, bytes, colours of the page, names that are hostile."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from apex_reward.errors import UsageError
from apex_reward.report import charts
from apex_reward.report.charts import Entry, Line
from apex_reward.report.figures import inline_svg, new_figure, parse_formats, save_figure

HOSTILE = '<script>alert("1")</script> $\\frac & \u202e\x1b ünï'


def figures() -> dict[str, Figure]:
    return {
        "histogram": charts.histogram([-1.0, 0.5, np.nan, 2.0], HOSTILE, "songs"),
        "one value": charts.histogram([3.0], "margin", "pairs"),
        "no value": charts.histogram([np.nan], "margin", "pairs"),
        "bars": charts.bars({HOSTILE: 4, "few": 1}, "candidates"),
        "no bars": charts.bars({}, "candidates"),
        "paired": charts.bars({HOSTILE: (3, 1)}, "times", ("chosen", "rejected")),
        "forest": charts.forest([Entry(HOSTILE, 0.6, (0.5, 0.7), "good", "n 3")], "accuracy", 0.5),
        "no forest": charts.forest([], "accuracy"),
        "curves": charts.curves({HOSTILE: Line([0, 1], [0.2, 0.9], [0, 0.5], [0.4, 1])}, "x", "y"),
        "diagonal": charts.curves(
            {"a": Line([0], [1]), "b": Line([1], [0])}, "x", "y", diagonal=True
        ),
        "no curve": charts.curves({"a": Line([], [])}, "x", "y"),
        "heat": charts.heat_map([HOSTILE, "b"], {("b", HOSTILE): (0.75, 4)}),
    }


@pytest.mark.parametrize("kind", figures())
def test_every_kind_is_a_sound_element_of_a_page(kind: str) -> None:
    svg = inline_svg(figures()[kind], "plot-1")
    root = ET.fromstring(svg)  # well formed, whatever the names are
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]
    assert "<script" not in svg
    assert "\x1b" not in svg
    assert "\u202e" not in svg
    assert "width=" not in svg[: svg.index(">")]
    ids = re.findall(r'id="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("plot-1-") for name in ids)
    used = re.findall(r"#(plot-1-[^)\"]*)", svg)
    assert set(used) <= set(ids)
    # Only what a page's style sheet names: no colour stays behind on a dark page.
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#000000"}


def test_what_pictures_say() -> None:
    said = {kind: figure.get_label() for kind, figure in figures().items()}
    assert said["one value"] == "Histogram of margin: 1 pairs from 3 to 3, median 3"
    assert said["no value"] == "margin: no value is known"
    assert said["forest"].startswith("accuracy: <script>")
    assert said["forest"].endswith("0.6 (0.5 to 0.7)")
    many = charts.bars({f"reason {n:02d}": n for n in range(1, 21)}, "candidates").get_label()
    assert many.startswith(
        "Bars of candidates: 13 others 91; reason 20 20; ".replace("13 others 91; ", "")
    )
    assert many.endswith("13 others 91")  # 1 + 2 + ... + 13


def test_bars_of_a_histogram_are_counts() -> None:
    figure = charts.histogram([0.0, 0.0, 1.0, np.nan], "margin", "pairs")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [2, 0, 0, 0, 0, 0, 0, 0, 1]


def test_formats_are_parsed_or_refused() -> None:
    assert parse_formats("pdf, SVG,png") == ("png", "pdf", "svg")
    assert parse_formats("") == ("png",)
    with pytest.raises(UsageError, match="jpeg; choose from png, svg, pdf"):
        parse_formats("pdf,jpeg")


def test_a_figure_is_saved_with_the_same_bytes(tmp_path: Path) -> None:
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    first = save_figure(figures()["curves"], tmp_path / "a.b", parse_formats("svg,pdf"))
    again = save_figure(figures()["curves"], tmp_path / "again", parse_formats("svg,pdf"))
    assert [path.name for path in first] == ["a.b.png", "a.b.svg", "a.b.pdf"]
    for one, two in zip(first, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes().startswith(starts[one.suffix[1:]])


def test_a_figure_is_as_large_as_asked(tmp_path: Path) -> None:
    figure, _ = new_figure(4.0, 2.0)
    (path,) = save_figure(figure, tmp_path / "size", dpi=100)
    header = path.read_bytes()[16:24]
    assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (400, 200)


def test_one_value_stands_in_the_middle_of_its_histogram() -> None:
    (axis,) = charts.histogram([3.0, 3.0], "margin", "pairs").axes
    edges = [axis.patches[0].get_x(), axis.patches[-1].get_x() + axis.patches[-1].get_width()]
    assert edges == pytest.approx([2.5, 3.5], abs=0.02)


def test_names_of_a_forest_stand_left_and_notes_right() -> None:
    """Values and intervals reach from 0.5 to 0.75: a margin of 4% on both sides."""
    entries = [Entry("one", 0.6, (0.55, 0.75), "good", "n 3"), Entry("two", 0.7, None, "bad", "")]
    (axis,) = charts.forest(entries, "accuracy", 0.5).axes
    assert axis.get_xlim() == pytest.approx((0.49, 0.76))
    places = {text.get_text(): text.get_position()[0] for text in axis.texts}
    assert (places["one"], places["two"]) == pytest.approx((0.49, 0.49))
    assert places["n 3"] == pytest.approx(0.76)
