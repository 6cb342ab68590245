"""The package's files import each other one way only."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imports_of(root: Path, package: str) -> dict[str, set[str]]:
    """The modules of the package that each module imports, wherever the import stands."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / package).rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                inner = whole & files.keys()
                names |= inner
                # `from package import submodule` imports no name of the package itself.
                names |= {node.module} if len(inner) < len(whole) else set()
        found[module] = names & files.keys() - {module}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other (strongly connected components, Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == order[node]:
            at = stack.index(node)
            groups.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return [group for group in groups if len(group) > 1]


def test_a_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for name, text in {
        "__init__": "",
        "a": "from p import b",
        "b": "def f():\n    from p.c import x",
        "c": "import p.a\nx = 1",
        "d": "from p.a import b",
    }.items():
        (tmp_path / "p" / f"{name}.py").write_text(text)
    assert circles(imports_of(tmp_path, "p")) == [["p.a", "p.b", "p.c"]]


def test_no_circle_between_files() -> None:
    assert circles(imports_of(ROOT, "apex_reward")) == []
