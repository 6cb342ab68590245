"""Print the code lines, files and functions of each room of a package.

    python .ci/count.py [PACKAGE]

A code line is a line that is not blank, not a comment and not part of a docstring.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(text: str) -> tuple[int, int]:
    r"""The code lines and functions of a source text.

    >>> code_lines('"A docstring."\n\ndef f():\n    # A comment.\n    return 1\n')
    (2, 1)
    """
    tree = ast.parse(text)
    documented = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef)))
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    skipped: set[int] = set()
    for node in (*documented, *functions):
        if ast.get_docstring(node, clean=False) is not None:
            skipped.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    count = sum(bool(line) and line[0] != "#" and at not in skipped for at, line in lines)
    return count, len(functions)


def main(root: Path) -> None:
    """Print the table of a package's rooms."""
    rooms: dict[str, Counter[str]] = {}
    for path in sorted(root.rglob("*.py")):
        lines, functions = code_lines(path.read_text(encoding="utf-8"))
        parts = path.relative_to(root).parts
        room = parts[0] if len(parts) > 1 else "(top)"
        for name in (room, "total"):
            rooms.setdefault(name, Counter()).update(lines=lines, files=1, functions=functions)
    rooms["total"] = rooms.pop("total")
    print(f"{'room':10} {'lines':>7} {'files':>6} {'functions':>10}")
    for room, counts in rooms.items():
        print(f"{room:10} {counts['lines']:7} {counts['files']:6} {counts['functions']:10}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "apex_reward"))
