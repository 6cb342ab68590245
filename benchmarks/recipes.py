"""How far the recipes that no trainer of TRL runs by itself raise their reward, seed by seed.

    python benchmarks/recipes.py --output benchmarks/results/recipes.md

Each run is the recipe's own command with no option but its seed, one after the other. Gain is in
standard deviations of the first songs' rewards. Runs that `--folder` has already are read, not
run again.
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
RUNS: dict[str, list[str]] = {
    "grpo_musicgen": [],
    "flow_grpo_audio": [],
    "online_rounds expert": ["--strategy", "expert"],
    "online_rounds dpo": ["--strategy", "dpo"],
}
COLUMNS = ("recipe", "seed", "reward before", "after", "initial deviation",
           "gain in deviations", "seconds")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=RUNS, help="one recipe")
    arguments = parser.parse_args()
    rows = [
        row_of(name, seed, arguments.folder / f"{name}-{seed}".replace(" ", "-"))
        for name in ([arguments.only] if arguments.only else RUNS)
        for seed in range(arguments.seeds)
    ]
    write_result("Recipes", markdown_table(COLUMNS, rows), arguments.output)


def row_of(name: str, seed: int, folder: Path) -> list[str]:
    """The table's row of a run, which is made where it is not there."""
    if not (folder / "summary.json").exists():
        recipe = ROOT / "recipes" / f"{name.split()[0]}.py"
        command = [str(recipe), "--output", str(folder), "--seed", str(seed), *RUNS[name]]
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    before, after, deviation = (found[f"reward_{key}"] for key in ("before", "after", "std_before"))
    gain = (after - before) / deviation
    figures = [f"{value:.2f}" for value in (before, after, deviation, gain)]
    return [name, str(seed), *figures, f"{found['seconds']:.0f}"]


if __name__ == "__main__":
    main()
