"""What an import and the command cost, beside torch's and transformers' own imports.

    python benchmarks/start.py [--repeats 5] [--former FOLDER]
                               [--output benchmarks/results/start.md]

Each in fresh processes, in turn; processor seconds (of which other programs take none) and the
peak resident set, with those of the decoding process. `apex-reward score` scores one song of 10 s.
`--former` names a checkout of an earlier build, which does the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from builds import builds, in_turns
from result_file import write_result

from apex_reward.report.markdown import markdown_table

LIBRARIES = (
    "import torch",
    "from transformers import PreTrainedModel",
    "from transformers import HubertModel",
)
OURS = ("from apex_reward import ApexReward", "from apex_reward import Reward")
SCORE = "apex-reward score song.wav --model apex-tiny"
YARDSTICK = "from transformers import HubertModel"


def main() -> None:
    """Start everything in turn, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--former", type=Path, help="checkout of an earlier build")
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    places = builds(options.former)
    with tempfile.TemporaryDirectory() as folder:
        song = f"{folder}/song.wav"
        rng = np.random.default_rng(0)
        soundfile.write(song, 0.1 * rng.standard_normal((441_000, 2)), 44_100)
        score = ["-m", "apex_reward", "score", song, "--model", "apex-tiny"]
        works = [("", places["this build"], text, ["-c", text]) for text in LIBRARIES]
        for name, place in places.items():
            works += [(name, place, text, ["-c", text]) for text in OURS]
            works.append((name, place, SCORE, score))
        found = in_turns([(place, command) for _, place, _, command in works], options.repeats)
    seconds = {
        text: least.seconds for (_, _, text, _), (least, _) in zip(works, found, strict=True)
    }
    rows = [
        [
            name,
            text,
            f"{least.seconds:.2f}",
            f"{statistics.median(run.seconds for run in runs):.2f}",
            f"{least.seconds / seconds[YARDSTICK]:.2f}",
            f"{least.peak / 1024:.0f} MiB",
        ]
        for (name, _, text, _), (least, runs) in zip(works, found, strict=True)
    ]
    columns = ["build", "work", "CPU s, least", "median", "against HubertModel", "peak memory"]
    write_result("Import", markdown_table(columns, rows), options.output)


if __name__ == "__main__":
    main()
