"""The card of a data set of pairs: how it was made, by which reward, under which licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from apex_reward.model.licences import stated
from apex_reward.pairs.build import PairSet
from apex_reward.pairs.options import PairOptions
from apex_reward.report.markdown import DEMONSTRATION, card, markdown_table, size_category
from apex_reward.version import package_version

TRAINERS = {"trl": "DPOTrainer", "kto": "KTOTrainer"}
COLUMNS = (
    ("prompt", "what was asked for"),
    ("prompt_id", "which candidates competed"),
    ("chosen, rejected", "the preferred song and the other one"),
    ("chosen_AXIS, rejected_AXIS", "their values on each axis; higher is better"),
    ("margin", "lead of the chosen on the primary axis"),
    ("strategy, split", "how the pair was found; which part it is in"),
)


def pairs_card(
    result: PairSet, counts: Mapping[str, Any], form: str, configs: Sequence[str],
    made_by: Mapping[str, Any] | None,
) -> str:  # fmt: skip
    """The README.md of `write_dataset`'s folder.

    Args:
        counts: `summary(result)`.
        form: `trl` or `kto`.
        configs: names of the configs in the folder.
        made_by: `provenance` of the reward that scored the candidates; None where it is not known.
    """
    splits = [name for name in ("train", "test") if name == "train" or counts[f"n_{name}"]]
    head = {
        "license": "unknown",
        "task_categories": ["text-to-audio"],
        "tags": ["music", "preference", "reward-model", "trl", "apex-reward"],
        "size_categories": [size_category(counts["n_pairs"])],
        "configs": [
            {
                "config_name": name,
                "data_files": [
                    {"split": split, "path": f"{_folder(name)}/{split}-*"} for split in splits
                ],
            }
            for name in configs
        ],
    }
    parts = [
        DEMONSTRATION if (made_by or {}).get("demonstration") else "",
        f"{counts['n_pairs']:,} pairs of songs ({counts['n_train']:,} train, {counts['n_test']:,} "
        f"test) of {counts['n_prompts_paired']:,} prompts, for TRL's `{TRAINERS[form]}`.",
        _loading(form, configs),
        _columns(form),
        _making(result.options, counts),
        _reward(made_by),
        _licences(made_by),
    ]
    return card(head, "Preference pairs of songs", parts)


def _folder(config: str) -> str:
    return "data" if config == "default" else config


def _loading(form: str, configs: Sequence[str]) -> str:
    lines = ["from datasets import load_dataset", "", 'pairs = load_dataset("THIS", split="train")']
    if "audio" in configs:
        lines += ['songs = load_dataset("THIS", "audio", split="train")  # to hear them']
        note = "`default` holds the texts of the tokens, `audio` the songs."
    else:
        lines[0] += "\nfrom apex_reward.pairs import to_" + form
        lines += [f"texts = to_{form}(pairs, encode=codec_tokens)  # (samples, Hz) -> ids or text"]
        note = "It holds songs; a codec makes the tokens that a language model learns from."
    code = "\n".join(lines)
    return f"## Load it\n\n{note}\n\n```python\n{code}\n```"


def _columns(form: str) -> str:
    rows: Sequence[tuple[str, str]] = COLUMNS
    if form == "kto":
        rows = [COLUMNS[0], ("completion", "a song, or the text of its tokens"),
                ("label", "True for chosen songs, False for rejected ones")]  # fmt: skip
    return "## Columns\n\n" + markdown_table(("column", "is"), rows)


def _making(options: PairOptions, counts: Mapping[str, Any]) -> str:
    given = [(field.name, getattr(options, field.name), field) for field in fields(options)]
    rows = [("strategy", options.strategy_name), ("axis", options.primary)]
    rows += [
        (name, str(dict(value) if isinstance(value, Mapping) else value))
        for name, value, field in given
        if name not in ("strategy", "axis") and value not in (None, (), {}, False, field.default)
    ]
    rows += [("seed", str(options.seed))] * (options.seed == 0)
    drops = {**counts["dropped_candidates"], **counts["dropped_pairs"]}
    dropped = markdown_table(("dropped, by reason", "number"), list(drops.items()))
    return (
        f"## How it was made\n\nBy `apex-reward pairs` {package_version()} from "
        f"{counts['n_candidates']:,} candidates of {counts['n_prompts']:,} prompts.\n\n"
        + markdown_table(("option", "value"), rows)
        + (f"\n\n{dropped}" if drops else "")
    )


def _reward(made_by: Mapping[str, Any] | None) -> str:
    if made_by is None:
        text = "The values came with the candidates; what gave them is not known here."
        return f"## Reward\n\n{text}"
    models = [
        (name, about["source"], about["hash"], stated(about.get("licences", ())))
        for name, about in made_by["models"].items()
    ]
    table = markdown_table(("model", "from", "hash of the weights", "licences"), models)
    settings = made_by["reward"]
    rows = [(name, str(value)) for name, value in settings.items() if value not in (None, [])]
    return f"## Reward\n\n{table}\n\n{markdown_table(('setting', 'value'), rows)}"


def _licences(made_by: Mapping[str, Any] | None) -> str:
    weights = "" if made_by is None else " So do the weights that scored them (see above)."
    return (
        "## Licences and limits\n\n"
        "- The songs keep the licences of those who made them; whoever publishes this set has to "
        f"have the right to, and names the licence in the head of this card.{weights}\n"
        "- What is preferred here is what a reward prefers, not what people said. Measure how far "
        "it agrees with people (`apex-reward arena evaluate`) before you train on it."
    )
