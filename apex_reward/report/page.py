"""HTML pages from templates: everything is escaped, and one base gives all of them their look."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from matplotlib.figure import Figure

from apex_reward.files.tables import json_ready
from apex_reward.report.cells import cell, is_numeric
from apex_reward.report.figures import inline_svg
from apex_reward.report.songs import Player


def render(template: str, **values: Any) -> str:
    """A template of the package, filled in.

    Args:
        template: its path in the package, such as `report/templates/document.html`. It finds the
            filters `cell`, `drawing` (a figure as an SVG element), `numeric_columns` and
            `has_player` (of rows), `script_json` (a value for a script element, NaN as null), and
            the test `player`.
        values: what it names; one it names and does not get is an error.
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("apex_reward", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"cell": cell, "drawing": _drawing, "numeric_columns": _numeric_columns}
    made.filters |= {"script_json": _script_json, "has_player": _has_player}
    made.tests["player"] = lambda value: isinstance(value, Player)
    return made


def _script_json(value: object) -> Markup:
    return htmlsafe_json_dumps(json_ready(value), ensure_ascii=False, allow_nan=False)


def _numeric_columns(rows: Sequence[Sequence[object]], number: int) -> list[bool]:
    return [is_numeric(row[position] for row in rows) for position in range(number)]


def _has_player(rows: Sequence[Sequence[object]]) -> bool:
    return any(isinstance(value, Player) for row in rows for value in row)


def _drawing(figure: Figure, name: str) -> Markup:
    return Markup(inline_svg(figure, name))
