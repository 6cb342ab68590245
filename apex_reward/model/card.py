"""The card of a saved model: what it gives, what it was made of, what was measured, its limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apex_reward.files.tables import write_text
from apex_reward.model.config import ApexConfig
from apex_reward.model.licences import apex_licences, stated
from apex_reward.report.markdown import DEMONSTRATION, card, markdown_table

FILE = "README.md"
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
    licences = apex_licences(str(config.name_or_path or ""), str(config.encoder_name))
    free = all(one["licence"] == "Apache-2.0" for one in licences)
    head = {
        "library_name": "apex-reward",
        "license": "apache-2.0" if free else "other",
        "tags": ["music", "audio", "reward-model", *["demonstration"] * config.demonstration],
    }
    parts = [
        DEMONSTRATION if config.demonstration else "",
        _gives(config),
        _use(config),
        _made_of(config, stated(licences)),
        *(measured or [UNMEASURED]),
        LIMITS,
    ]
    return card(head, "A reward model for songs", parts)


def write_card(folder: Path, measured: Sequence[str] = (), started_from: str = "") -> None:
    """Write the card into a saved model's folder, in place of one that is there."""
    config = ApexConfig.from_pretrained(folder)
    config.name_or_path = started_from
    write_text(folder / FILE, model_card(config, measured))


def _gives(config: ApexConfig) -> str:
    rows = [(head.name, f"{head.low:g} to {head.high:g}") for head in config.heads]
    text = "It gives a song these scores; higher is better."
    if config.members > 1:
        text += f" They are means over {config.members} members, whose spread comes with them."
    return f"{text}\n\n{markdown_table(('head', 'range'), rows)}"


def _use(config: ApexConfig) -> str:
    mix = ', mix="preference"' if config.preference else ""
    return (
        "## Use it\n\n```python\nfrom apex_reward import Reward\n\n"
        f'reward = Reward("THIS"{mix})\nprint(reward.judge(["song.mp3"]))\n```'
    )


def _made_of(config: ApexConfig, licence: str) -> str:
    rows: list[tuple[str, Any]] = [
        ("started from", config.name_or_path or None),
        ("licences of what it started from", licence),
        ("encoder", config.encoder_name),
        ("width of an embedding", config.width),
        ("hidden states kept", ", ".join(map(str, config.layers))),
        ("task", config.task),
        ("trunk layers", config.shared),
        ("input", f"segments of {config.segment_seconds:g} s at {config.sample_rate} Hz"),
        ("last segment", config.segment_tail),
        ("mix", None if config.mix is None else str(config.mix.get("weights"))),
    ]
    known = [(name, str(value)) for name, value in rows if value is not None]
    return f"## Made of\n\n{markdown_table(('part', 'is'), known)}"
