"""How far the recipes raise their reward, seed by seed.

    python benchmarks/recipes.py --output benchmarks/results/recipes.md

Each run is the recipe's own command with its seed and the options shown, one after the other. Gain
is in standard deviations of the first songs' rewards; flagged is the share of songs that trip a
guard, where the recipe counts them. Runs that `--folder` has already are read, not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from result_file import write_result

from apex_reward.report.markdown import markdown_table

ROOT = Path(__file__).parents[1]
RUNS = (
    "grpo_musicgen",
    "flow_grpo_audio",
    "online_rounds --strategy expert",
    "online_rounds --strategy dpo",
    "grpo_codec_lm --max_steps 14",
    "reward_backprop --max_steps 8",
    "reward_backprop --max_steps 8 --guards penalty",
)
COLUMNS = ("recipe", "seed", "reward before", "after", "initial deviation",
           "gain in deviations", "flagged before", "after ", "seconds")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="those whose name holds this")
    arguments = parser.parse_args()
    rows = [
        row_of(name, seed, arguments.folder / f"{name}-{seed}".replace(" ", ""))
        for name in RUNS
        if (arguments.only or "") in name
        for seed in range(arguments.seeds)
    ]
    write_result("Recipes", markdown_table(COLUMNS, rows), arguments.output)


def row_of(name: str, seed: int, folder: Path) -> list[str]:
    """The table's row of a run, which is made where it is not there."""
    if not (folder / "summary.json").exists():
        recipe, *options = name.split()
        script = str(ROOT / "recipes" / f"{recipe}.py")
        command = [script, "--output", str(folder), "--seed", str(seed), *options]
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    before, after, deviation = (found[f"reward_{key}"] for key in ("before", "after", "std_before"))
    gain = (after - before) / deviation
    figures = [f"{value:.2f}" for value in (before, after, deviation, gain)]
    flagged = [f"{found[key]:.0%}" if key in found else "" for key in
               ("guard_rate_before", "guard_rate_after")]  # fmt: skip
    return [name, str(seed), *figures, *flagged, f"{found['seconds']:.0f}"]


if __name__ == "__main__":
    main()
