"""Pairs as rows of trainers: TRL's preference and unpaired forms, TangoFlux's, JK-Step's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apex_reward.errors import DataError
from apex_reward.files.songs_inside import undecoded
from apex_reward.files.tables import json_ready
from apex_reward.prompt import prompt_of

if TYPE_CHECKING:
    import datasets
    from torch import Tensor

Row = Mapping[str, Any]
# Mono samples (T,) in [-1, 1] and their rate in Hz, to a codec's tokens: ids, or text.
Encode = Callable[["Tensor", int], "str | Sequence[int]"]
SIDES = ("chosen", "rejected")


def to_trl(pairs: Iterable[Row], encode: Encode | None = None) -> datasets.Dataset:
    """TRL's preference form: `prompt`, `chosen`, `rejected`, what `DPOTrainer` takes.

    With tokens, `chosen` and `rejected` are texts: tokens as given where they are text; ids are
    written in decimal with spaces between, and kept as `chosen_ids` and `rejected_ids` beside. TRL
    puts prompt and completion together as they are, so a completion starts with a space where two
    words would run into one. Where the prompt is chat messages, a completion is a message of the
    assistant. Without tokens `chosen` and `rejected` are songs: `Audio` columns whose cells are
    `bytes` and `path`, so that reading a row needs no torchcodec.

    Args:
        pairs: rows of `pairs.jsonl`, or a data set that `pairs --format trl` wrote; one split.
        encode: makes tokens of mono samples (T,) and Hz, for pairs that hold songs alone.

    Raises:
        DataError: a song that cannot be decoded, or tokens in some pairs and not in others.
    """
    made = []
    for pair in _encoded(pairs, encode):
        row = {"prompt": pair["prompt"]} | {side: _completion(pair, side) for side in SIDES}
        for side in SIDES:
            tokens = pair.get(f"{side}_tokens")
            if tokens is not None and not isinstance(tokens, str):
                row[f"{side}_ids"] = list(tokens)
        made.append(row)
    return _dataset(made, ("prompt", *SIDES))


def to_kto(pairs: Iterable[Row], encode: Encode | None = None) -> datasets.Dataset:
    """TRL's unpaired form: `prompt`, `completion`, `label`, what `KTOTrainer` takes.

    A song has one row per prompt, however many pairs it is in: label True where it is chosen, False
    where it is rejected. A song that is chosen in one pair of a prompt and rejected in another has
    no row. Completions, arguments and errors as in `to_trl`.
    """
    made = [
        {
            "prompt": pair["prompt"],
            "completion": _completion(pair, side),
            "label": side == "chosen",
        }
        for pair, side in unpaired(_encoded(pairs, encode))
    ]
    return _dataset(made, ("prompt", "completion", "label"))


def unpaired(pairs: Iterable[Row]) -> list[tuple[Row, str]]:
    """A pair and a side for each song of a prompt that is on the same side in all of its pairs."""
    first: dict[str, tuple[Row, str]] = {}
    sides: dict[str, set[str]] = {}
    for pair in pairs:
        for side in SIDES:
            song = pair[side]
            song = sorted(song.items()) if isinstance(song, Mapping) else song
            key = repr((pair.get("prompt_id", pair["prompt"]), song))
            first.setdefault(key, (pair, side))
            sides.setdefault(key, set()).add(side)
    return [found for key, found in first.items() if len(sides[key]) == 1]


def tangoflux_rows(pairs: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows of TangoFlux-style trainers: `chosen`, `reject`, `captions`, `duration`.

    Args:
        pairs: rows of `pairs.jsonl`, of one split. `seconds` may hold the duration of each pair
            (the shorter song's, so that neither needs padding); None or NaN is written as null.
    """
    return [
        {
            "chosen": pair["chosen"],
            "reject": pair["rejected"],
            "captions": str(prompt_of(pair["prompt"])),
            "duration": json_ready(pair.get("seconds")),
        }
        for pair in pairs
    ]


def jkstep_document(pairs: Iterable[Row]) -> dict[str, Any]:
    """The document of JK-Step's pairs: `version`, `metadata`, `pairs`.

    A pair's `group_id` and `holdout_group` are its prompt's id, so that a hold-out by group keeps
    prompts apart; `metadata` holds strategy, margin and the scores of both sides, `pair_weight` is
    1, `lyrics` what the pair has of them.

    Args:
        pairs: rows of `pairs.jsonl`, of one split.
    """
    made = []
    for number, pair in enumerate(pairs):
        group = str(pair.get("prompt_id", prompt_of(pair["prompt"])))
        scores = {
            name: value
            for name, value in pair.items()
            if name in ("strategy", "margin")
            or (name.startswith(("chosen_", "rejected_")) and isinstance(value, (int, float)))
        }
        made.append(
            {
                "id": f"pair-{number:06d}",
                "group_id": group,
                "holdout_group": group,
                "chosen": pair["chosen"],
                "rejected": pair["rejected"],
                "caption": str(prompt_of(pair["prompt"])),
                "lyrics": pair.get("lyrics") or "",
                "metadata": scores,
                "pair_weight": 1.0,
            }
        )
    return {"version": 1, "metadata": {}, "pairs": made}


def has_tokens(pairs: Sequence[Row]) -> bool:
    """Whether pairs hold tokens of both songs; raises DataError where only some do."""
    known = sum(all(pair.get(f"{side}_tokens") is not None for side in SIDES) for pair in pairs)
    if known not in (0, len(pairs)):
        raise DataError(
            f"{known} of {len(pairs)} pairs have the tokens of both songs; give `tokens` for all "
            "candidates, or for none"
        )
    return known > 0


def _encoded(pairs: Iterable[Row], encode: Encode | None) -> list[Row]:
    """The rows, with tokens where they or `encode` give them."""
    rows = list(undecoded(pairs, *SIDES))
    if has_tokens(rows) or encode is None:
        return rows
    return [row | {f"{side}_tokens": _tokens(row[side], encode) for side in SIDES} for row in rows]


def _tokens(song: Any, encode: Encode) -> str | Sequence[int]:
    """The tokens of a song: a path, or the cell of an Audio column."""
    import torch

    from apex_reward.rewards.songs import song_of

    found = song_of(song)
    if found.error is not None:
        name = song.get("path") if isinstance(song, Mapping) else song
        raise DataError(f"the song {name} of a pair {found.error}")
    return encode(torch.from_numpy(found.mono), found.sample_rate)


def _completion(pair: Row, side: str) -> Any:
    """A song, or its tokens as a text or as a message.

    A space keeps a tokenizer from joining a text with the prompt's last word.
    """
    tokens, prompt = pair.get(f"{side}_tokens"), pair["prompt"]
    if tokens is None:
        song = pair[side]
        return song if isinstance(song, Mapping) else {"bytes": None, "path": song}
    text = tokens if isinstance(tokens, str) else " ".join(map(str, tokens))
    if not isinstance(prompt, str):
        return [{"role": "assistant", "content": text}]
    meets = prompt[-1:].isalnum() and text[:1].isalnum()
    return f" {text}" if meets else text


def _dataset(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> datasets.Dataset:
    """A data set whose columns of songs are `Audio`."""
    from datasets import Audio, Dataset

    if not rows:
        return Dataset.from_dict({name: [] for name in columns})
    made = Dataset.from_list(rows)
    for name in columns:
        if isinstance(rows[0][name], Mapping):
            made = made.cast_column(name, Audio(decode=False))
    return made
