"""The card of a saved model: heads, use, licences, what was measured, limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apex_reward.files.tables import write_text
from apex_reward.model.config import ApexConfig
from apex_reward.model.licences import apex_licences, stated
from apex_reward.report.markdown import DEMONSTRATION, card, markdown_table

FILE = "README.md"
USE = (
    "## Use it\n\n```python\nfrom apex_reward import Reward\n\n"
    'reward = Reward("THIS")\nprint(reward.judge(["song.mp3"]))\n```'
)
UNMEASURED = (
    "## Measured\n\nNothing is on record with these weights. `apex-reward evaluate` measures them "
    "against labels, `apex-reward arena evaluate` against votes of people."
)
LIMITS = (
    "## Limits\n\n"
    "- A score is a model's guess, not an opinion of people: measure how far it agrees with them "
    "(`apex-reward arena evaluate`) before you optimise it.\n"
    "- Gain, length and silence move the scores; see the loudness option, the guards and "
    "`segment_tail`.\n"
    "- Like any differentiable reward it can be gamed: keep guards on, and listen."
)


def model_card(config: ApexConfig, measured: Sequence[str] = ()) -> str:
    """The README.md of a model.

    Args:
        config: of the model.
        measured: parts in Markdown about its data and figures; none where nothing is on record.
    """
    origin = str(config.name_or_path or "")
    licences = apex_licences(origin, str(config.encoder_name))
    free = all(one["licence"] == "Apache-2.0" for one in licences)
    head = {
        "library_name": "apex-reward",
        "license": "apache-2.0" if free else "other",
        "tags": ["music", "audio", "reward-model", *["demonstration"] * config.demonstration],
    }
    ranges = [(head.name, f"{head.low:g} to {head.high:g}") for head in config.heads]
    heads = markdown_table(("head", "range"), ranges)
    parts = [
        DEMONSTRATION if config.demonstration else "",
        f"It gives a song these scores; higher is better.\n\n{heads}",
        USE,
        f"Started from {origin or 'no other model'}. Licences: {stated(licences)}.",
        *(measured or [UNMEASURED]),
        LIMITS,
    ]
    return card(head, "A reward model for songs", parts)


def write_card(folder: Path, measured: Sequence[str] = (), started_from: str = "") -> None:
    """Write the card into a saved model's folder, in place of one that is there."""
    config = ApexConfig.from_pretrained(folder)
    config.name_or_path = started_from
    write_text(folder / FILE, model_card(config, measured))
