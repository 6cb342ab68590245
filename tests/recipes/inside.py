"""Recipes as modules and as runs inside this process, which has loaded what they import."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from apex_reward.files.tables import read_jsonl

RECIPES = Path(__file__).parents[2] / "recipes"


def load_recipe(name: str) -> ModuleType:
    """The module of a recipe, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_recipe(
    patch: pytest.MonkeyPatch, name: str, output: Path, *options: object
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """History and summary of a run with these options."""
    module = load_recipe(name)
    patch.setattr(sys, "argv", [f"{name}.py", "--output", str(output), *map(str, options)])
    module.main()
    assert (output / "curves.png").stat().st_size > 5_000
    return read_jsonl(output / "history.jsonl"), json.loads((output / "summary.json").read_text())
