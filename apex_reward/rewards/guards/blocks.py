"""The blocks in which the guards hear a long song."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from apex_reward.errors import UsageError

BLOCK_SECONDS = 300
# A shorter rest of a song is measured with the block before it: its fade is no song of its own.
TAIL_SECONDS = 30


def regrouped(blocks: Iterable[Tensor], sample_rate: int) -> Iterator[Tensor]:
    """Blocks of exactly 300 s, the last one of 30 to 330 s (or the whole of a shorter song)."""
    size, tail = BLOCK_SECONDS * sample_rate, TAIL_SECONDS * sample_rate
    parts: deque[Tensor] = deque()
    held = 0
    for block in blocks:
        if block.ndim != 1:
            raise UsageError(f"a block has shape {tuple(block.shape)}; expected mono, (n,)")
        parts.append(block)
        held += len(block)
        while held >= size + tail:
            yield _taken(parts, size)
            held -= size
    if held:
        yield _taken(parts, held)


def _taken(parts: deque[Tensor], count: int) -> Tensor:
    """The first `count` samples, taken off the parts; a part of that size is not copied."""
    taken = []
    while count:
        part = parts.popleft()
        taken.append(part[:count])
        if len(part) > count:
            parts.appendleft(part[count:])
        count -= len(taken[-1])
    return taken[0] if len(taken) == 1 else torch.cat(taken)
