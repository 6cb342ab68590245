"""How gradients are worked out: memory against time, and cheap unbiased ones of long songs.

A setting holds inside its `with` block for every model, whatever stands between: a panel, a
`Reward`, a training library. The gradient is the same in all but `segments`, which draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from apex_reward.errors import UsageError


@dataclass(frozen=True)
class GraphSettings:
    """What `gradient_settings` sets; its arguments explain the fields."""

    graph_segments: int | None = None
    segments: int | None = None
    frugal: bool = False


_PLAIN = GraphSettings()
_settings: ContextVar[GraphSettings] = ContextVar("_settings", default=_PLAIN)


@contextmanager
def gradient_settings(
    *, graph_segments: int | None = None, segments: int | None = None, frugal: bool = False
) -> Iterator[None]:
    """Inside, songs are put on the graph this way.

    Args:
        graph_segments: pieces per encoder (songs, where it hears them whole) whose graph is kept
            from the forward pass; the others cost a second forward pass in the backward one. None
            keeps one encoder batch: what the backward pass of the others needs anyway.
        segments: how many pieces of each song get a gradient, drawn at random (torch's generator)
            without replacement and scaled by pieces / segments. Values stay exact and the expected
            gradient is the whole one; the sum of its variances over all samples is
            (pieces / segments - 1) times the sum of squares of the whole gradient. None: all.
        frugal: keep little inside a piece (each layer's input, attention's output and that of
            products that narrow) and recompute the rest; for MERT, others keep what they do anyway.

    Raises:
        UsageError: graph_segments below 0 or segments below 1.
    """
    if graph_segments is not None and graph_segments < 0:
        raise UsageError(f"graph_segments is {graph_segments}; expected 0 or more")
    if segments is not None and segments < 1:
        raise UsageError(f"segments is {segments}; expected 1 or more")
    token = _settings.set(GraphSettings(graph_segments, segments, frugal))
    try:
        yield
    finally:
        _settings.reset(token)


def graph_settings() -> GraphSettings:
    """The settings that hold here."""
    return _settings.get()


def drawn_pieces(song: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which pieces get a gradient, (N,) bool, and by what each song's are scaled, (N,).

    Args:
        song: (N,) which song each piece belongs to.
        count: at most so many of each.
    """
    numbers = song.cpu()
    totals = torch.bincount(numbers)[numbers]
    order = torch.rand(len(numbers), dtype=torch.float64)
    rank = ((order[None] < order[:, None]) & (numbers[None] == numbers[:, None])).sum(dim=1)
    scale = (totals / totals.clamp_max(count)).to(torch.float32)
    return (rank < count).to(song.device), scale.to(song.device)


def scaled_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """`x` (N, ...) itself, whose gradient is multiplied by `scale` (N,)."""
    factor = scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return x.detach() + (x - x.detach()) * factor
