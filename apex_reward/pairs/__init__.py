"""Preference pairs for DPO: from scored candidates to a dataset, every drop accounted for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apex_reward.pairs.build import build_pairs
    from apex_reward.pairs.forms import to_kto, to_trl

__all__ = ["build_pairs", "to_kto", "to_trl"]


def __getattr__(name: str) -> Any:
    """The public names, imported on first use: the command line reads the options alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "build" if name == "build_pairs" else "forms"
    return getattr(import_module(f"{__name__}.{home}"), name)
