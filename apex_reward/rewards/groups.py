"""Songs of one prompt, which may be spread over several processes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


def everywhere(values: list[Item]) -> tuple[list[Item], slice]:
    """The values of all processes in rank order, and which of them are this one's.

    Every process must call it, as TRL's reward functions are called.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values, slice(0, len(values))
    gathered: list[list[Item]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, values)
    start = sum(len(part) for part in gathered[: dist.get_rank()])
    return [value for part in gathered for value in part], slice(start, start + len(values))


def here(values: list[Item]) -> tuple[list[Item], slice]:
    """As `everywhere`, of this process alone: no collectives."""
    return values, slice(0, len(values))


def prompt_keys(prompts: Iterable[Any], lyrics: Iterable[Any] | None = None) -> list[str]:
    """A key per prompt, equal for equal prompts and lyrics; texts and message lists alike."""
    pairs = [(prompt, getattr(prompt, "lyrics", None)) for prompt in prompts]
    if lyrics is not None:
        pairs = [(prompt, words) for (prompt, _), words in zip(pairs, lyrics, strict=True)]
    plain = [prompt if words is None else [prompt, words] for prompt, words in pairs]
    return [str(p) if isinstance(p, str) else json.dumps(p, default=str) for p in plain]


def group_numbers(keys: Sequence[Hashable]) -> Tensor:
    """(B,) integers, equal where the keys are."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys], dtype=torch.long)


def share_without_signal(keys: Sequence[Hashable], rewards: Sequence[float | None]) -> float:
    """Share of the groups that move no policy: fewer than two different rewards. 0 of no group."""
    found: dict[Hashable, set[float]] = defaultdict(set)
    for key, reward in zip(keys, rewards, strict=True):
        # Equal songs may differ in the last bit, by their place in the batch.
        found[key].update(() if reward is None else {round(reward, 6)})
    return sum(len(values) < 2 for values in found.values()) / max(1, len(found))
