"""Encode many segments in batches of bounded memory, forward and backward.

The graph of one encoder batch is kept; the backward pass recomputes the others one at a time, so
that its peak memory is that of one batch, whatever the length of the songs. A batch that does not
fit on a GPU is halved. `gradient_settings` sets how.

Shape key: N = segments, n = samples in a segment, L = layers, W = width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
        graph_segments: pieces per encoder (songs, where it encodes them whole) whose graph is kept
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
    scale = totals.to(torch.float32) / totals.clamp_max(count)
    return (rank < count).to(song.device), scale.to(song.device)


def scaled_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """`x` (N, ...) itself, whose gradient is multiplied by `scale` (N,)."""
    factor = scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return x.detach() + (x - x.detach()) * factor


def encode_packed(
    encoder: nn.Module,
    segments: Tensor,
    real: Tensor | None,
    batch_segments: int,
    graph_segments: int | None = None,
) -> Tensor:
    """Layer embeddings (N, L, W) of segments (N, n), `batch_segments` at a time.

    On the autograd graph if the segments or any encoder weight needs a gradient; exact, at the
    price of one more forward pass for all but the last `graph_segments`, whose graph is kept
    (None: what the settings say).
    """
    if batch_segments < 1:
        raise UsageError(f"batch_segments is {batch_segments}; expected 1 or more")
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    if not (torch.is_grad_enabled() and (segments.requires_grad or weights)):
        return _in_batches(encoder, segments, real, batch_segments)
    kept = graph_settings().graph_segments if graph_segments is None else graph_segments
    kept = batch_segments if kept is None else kept
    split = max(0, len(segments) - kept)
    if split == 0:
        return _on_graph(encoder, segments, real, batch_segments, weights)
    # The kept ones come last, so that the backward pass takes them first and has their memory
    # back when it recomputes the others.
    before = None if real is None else real[:split]
    first = _recomputed(encoder, batch_segments, before, segments[:split], weights)
    if kept == 0:
        return first
    rest = None if real is None else real[split:]
    return torch.cat([first, _on_graph(encoder, segments[split:], rest, batch_segments, weights)])


def _on_graph(
    encoder: Any, segments: Tensor, real: Tensor | None, size: int, weights: list[nn.Parameter]
) -> Tensor:
    """With the whole graph; where memory runs out, recomputed after all."""
    try:
        parts = [
            encoder(segments[at : at + size], None if real is None else real[at : at + size])
            for at in range(0, len(segments), size)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    except torch.OutOfMemoryError:
        parts = []
    torch.cuda.empty_cache()
    return _recomputed(encoder, size, real, segments, weights)


# torch.compile compiles the encoder, not this bookkeeping around it.
encode_packed = torch.compiler.disable(encode_packed, recursive=False)


_RECOMPUTED = (
    "the encoder recomputes these segments; keep their graph with "
    "gradient_settings(graph_segments=N) for N segments in all"
)


def _recomputed(
    encoder: Any, size: int, real: Tensor | None, segments: Tensor, weights: list[nn.Parameter]
) -> Tensor:
    try:
        return _Recomputed.apply(encoder, size, real, segments, *weights)
    except RuntimeError as error:
        if "functorch" not in str(error):
            raise
        raise UsageError(f"no torch.func transform: {_RECOMPUTED}") from error


class _Recomputed(torch.autograd.Function):
    """`encoder(segments)` that keeps only its inputs and recomputes per batch in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        encoder: nn.Module,
        batch_segments: int,
        real: Tensor | None,
        segments: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.encoder, ctx.batch_segments = encoder, batch_segments
        ctx.save_for_backward(segments, real, *weights)
        ctx.autocast = _autocast_state(segments.device.type)
        # The backward pass may run in another thread or after the settings' block.
        ctx.frugal = graph_settings().frugal
        with torch.no_grad():
            return _in_batches(encoder, segments, real, batch_segments)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UsageError(f"no second derivative (create_graph=True): {_RECOMPUTED}")
        (gradient,) = gradients
        segments, real, *weights = ctx.saved_tensors
        wants_segments = ctx.needs_input_grad[3]
        weight_gradients = [torch.zeros_like(weight) for weight in weights]
        position = 0

        def step(x: Tensor, r: Tensor | None) -> Tensor:
            nonlocal position
            x = x.detach().requires_grad_(wants_segments)
            with (
                torch.enable_grad(),
                torch.autocast(**ctx.autocast),
                gradient_settings(frugal=ctx.frugal),
            ):
                output = ctx.encoder(x, r)
            wanted = [x, *weights] if wants_segments else weights
            found = torch.autograd.grad(
                output, wanted, gradient[position : position + len(x)], allow_unused=True
            )
            position += len(x)
            for total, part in zip(weight_gradients, found[-len(weights) :], strict=False):
                if weights and part is not None:
                    total += part
            return found[0] if wants_segments else x.new_empty(0)

        segment_gradients = _in_batches(step, segments, real, ctx.batch_segments)
        return (
            *(None, None, None),
            segment_gradients if wants_segments else None,
            *weight_gradients,
        )


def _in_batches(
    step: Callable[[Tensor, Tensor | None], Tensor],
    segments: Tensor,
    real: Tensor | None,
    size: int,
) -> Tensor:
    """Concatenated results of `step` on consecutive batches, halved where memory runs out."""
    parts: list[Tensor] = []
    start = 0
    while start < len(segments):
        batch = slice(start, start + size)
        try:
            parts.append(step(segments[batch], None if real is None else real[batch]))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, min(size, len(segments) - start) // 2)
        else:
            start += size
            continue
        # Outside the handler: the exception's traceback would keep the failed batch alive.
        torch.cuda.empty_cache()
    return torch.cat(parts)


def _autocast_state(device_type: str) -> dict[str, Any]:
    # The backward pass runs in a thread of its own, where the caller's autocast is unknown.
    return {
        "device_type": device_type,
        "dtype": torch.get_autocast_dtype(device_type),
        "enabled": torch.is_autocast_enabled(device_type),
    }
