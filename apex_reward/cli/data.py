"""`apex-reward prepare` and `apex-reward extract`."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
