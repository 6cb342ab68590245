"""What an import costs, beside torch's and transformers' own.

    python benchmarks/start.py [--repeats 5] [--output benchmarks/results/start.md]

Every import in a fresh process, in turn; processor seconds (of which other programs take none) and
the peak resident set.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from result_file import write_result

from apex_reward.report.markdown import markdown_table

IMPORTS = (
    "import torch",
    "from transformers import PreTrainedModel",
    "from transformers import HubertModel",
    "from apex_reward import ApexReward",
    "from apex_reward import Reward",
)
PROGRAM = """{}
import resource, time
print(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"""


def main() -> None:
    """Import everything in turn, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {text: [] for text in IMPORTS}
    for turn in range(options.repeats + 1):
        for text, costs in found.items():
            cost = imported(text)
            if turn:  # the first one fills the file cache
                costs.append(cost)
    least = {text: min(seconds for seconds, _ in costs) for text, costs in found.items()}
    rows = [
        [
            text,
            f"{least[text]:.2f}",
            f"{statistics.median(seconds for seconds, _ in costs):.2f}",
            f"{least[text] / least['from transformers import PreTrainedModel']:.2f}",
            f"{statistics.median(peak for _, peak in costs) / 1024:.0f} MiB",
        ]
        for text, costs in found.items()
    ]
    columns = ["import", "CPU s, least", "median", "against PreTrainedModel", "peak memory"]
    write_result("Import", markdown_table(columns, rows), options.output)


def imported(text: str) -> tuple[float, float]:
    """Processor seconds and KiB of a process that does nothing else."""
    command = [sys.executable, "-c", PROGRAM.format(text)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(said[0]), float(said[1])


if __name__ == "__main__":
    main()
