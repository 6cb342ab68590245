"""Later parts of the tour: each takes the folder, the audio files and their score rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apex_reward.demo import step_arena, step_gold, step_pairs

Step = Callable[[Path, list[Path], list[dict[str, Any]]], str]

STEPS: list[tuple[str, Step]] = [
    ("Gold against proxy: what choosing by the score does to the truth", step_gold.run),
    ("Preference pairs from the scores", step_pairs.run),
    ("Arena: agreement with votes", step_arena.run),
]
