"""The verdict of a comparison in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from apex_reward.report.cells import counted

RULER_WORDS = {
    "length": ("longer", "shorter", " s"),
    "loudness": ("louder", "quieter", " dB"),
    "crest": ("less compressed", "more compressed", " dB"),
    "loudness_range": ("wider in loudness range", "narrower in loudness range", " LU"),
    "centroid": ("brighter", "darker", " Hz"),
    "bandwidth": ("broader in spectrum", "narrower in spectrum", " Hz"),
    "high_share": ("richer in energy above 4 kHz", "poorer in energy above 4 kHz", ""),
    "width": ("wider in stereo", "narrower in stereo", ""),
    "onset_rate": ("denser in onsets", "sparser in onsets", " per second"),
    "tempo_stability": ("steadier in tempo", "less steady in tempo", ""),
    "repetition": ("more repetitive", "less repetitive", ""),
    "silence": ("richer in silence", "poorer in silence", ""),
    "contrast": ("richer in contrast", "poorer in contrast", " dB"),
}
VARIED = 0.01  # p-value from which the diversity of a prompt's songs is worth a word


def verdict(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what changed and what it cost; only what the figures claim."""
    yield _reward(metrics)
    yield from _counts(metrics["heads"], "head")
    yield from _counts(metrics["holdout"], "held-out reward")
    yield from _rulers(metrics["rulers"])
    for claim, direction in (("rose", "more"), ("fell", "fewer")):
        if names := _claims(metrics["guards"], claim):
            yield f"Guards that trip on {direction} songs: {', '.join(names)}."
    within = metrics["diversity"]["within"]
    if within["p_value"] is not None and within["p_value"] < VARIED:
        alike = within["after"] < within["before"]
        yield (
            f"Songs of one prompt became more {'alike' if alike else 'varied'} "
            f"(diversity {within['before']:.2f} before, {within['after']:.2f} after)."
        )
    if "distances" in metrics:
        kernel = metrics["distances"]["kernel"]
        if None not in kernel.values():
            nearer = kernel["after"] < kernel["before"]
            yield (
                f"The kernel distance from the reference {'fell' if nearer else 'rose'} from "
                f"{kernel['before']:.3g} to {kernel['after']:.3g}, which no test judges."
            )


def _counts(entries: Mapping[str, Any], what: str) -> Iterator[str]:
    moved = {claim: len(_claims(entries, claim)) for claim in ("rose", "fell")}
    parts = [f"{number} {claim}" for claim, number in moved.items() if number]
    if parts:
        yield f"Of {counted(len(entries), what)}, {' and '.join(parts)}."
    elif entries:
        yield f"Of {counted(len(entries), what)}, none changed for certain."


def _rulers(entries: Mapping[str, Any]) -> Iterator[str]:
    words = []
    for name, entry in entries.items():
        if entry["claim"] != "undetermined":
            more, less, unit = RULER_WORDS[name]
            change = entry["difference"]
            words.append(f"{abs(change):.3g}{unit} {more if change > 0 else less}")
    if words:
        text = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
        yield f"The songs became {text}."


def _reward(metrics: Mapping[str, Any]) -> str:
    entry, prompts = metrics["reward"], counted(metrics["n_prompts"], "prompt")
    if entry is None:
        kinds = ("heads", "holdout", "rulers", "guards")
        sure = [e for k in kinds for e in metrics[k].values() if e["claim"] != "undetermined"]
        return f"On {prompts}, {counted(len(sure), 'figure')} changed for certain."
    if entry["claim"] == "undetermined":
        return f"On {prompts}, no change of the reward is certain."
    deviations = metrics["deviations"].get("reward")
    by = f" by {abs(deviations):.2g} deviations of the songs before" if deviations else ""
    return f"On {prompts}, the reward {entry['claim']}{by}."


def _claims(entries: Mapping[str, Any], claim: str) -> list[str]:
    return [name for name, entry in entries.items() if entry["claim"] == claim]
