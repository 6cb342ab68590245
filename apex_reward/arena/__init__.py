"""Agreement with human votes.

`load_battles` reads votes, `evaluate_battles` measures how far scores agree with them, `calibrate`
fits a preference head, `leaderboards` ranks systems, `findings` puts figures into words. The
command line `apex-reward arena` does the same.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apex_reward.arena.agreement import evaluate_battles as evaluate_battles
    from apex_reward.arena.battles import Battles as Battles
    from apex_reward.arena.battles import battles_of as battles_of
    from apex_reward.arena.calibration import calibrate as calibrate
    from apex_reward.arena.calibration import learning_curve as learning_curve
    from apex_reward.arena.leaderboard import arena_scores as arena_scores
    from apex_reward.arena.leaderboard import leaderboards as leaderboards
    from apex_reward.arena.options import BattleFilter as BattleFilter
    from apex_reward.arena.sources import load_battles as load_battles
    from apex_reward.arena.sources import load_embeddings as load_embeddings
    from apex_reward.arena.words import findings as findings

_PUBLIC = {
    name: home
    for home, names in {
        "agreement": ["evaluate_battles"],
        "battles": ["Battles", "battles_of"],
        "calibration": ["calibrate", "learning_curve"],
        "leaderboard": ["arena_scores", "leaderboards"],
        "options": ["BattleFilter"],
        "sources": ["load_battles", "load_embeddings"],
        "words": ["findings"],
    }.items()
    for name in names
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    """The public names, imported on first use: the command line reads the options alone."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
