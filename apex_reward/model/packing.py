"""Encode many segments in batches of bounded memory, forward and backward.

The graph of one encoder batch is kept; the backward pass recomputes the others one at a time, so
that its peak memory is that of one batch, whatever the length of the songs. A batch that does not
fit on a GPU is halved. `gradient_settings` sets how.

Shape key: N = pieces, n = samples in a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apex_reward.errors import UsageError, expect


@dataclass(frozen=True)
class GraphSettings:
    """What `gradient_settings` sets; its arguments explain the fields."""

    graph_segments: int | None = None
    segments: int | None = None
    frugal: bool = False


_PLAIN = GraphSettings()
_settings: ContextVar[GraphSettings] = ContextVar("_settings", default=_PLAIN)
Encode = Callable[[Tensor, Tensor], Tensor]


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
    expect((graph_segments or 0) >= 0, "graph_segments", graph_segments, "0 or more")
    expect(segments is None or segments >= 1, "segments", segments, "1 or more")
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
        song: (N,) which song each piece belongs to, on the CPU.
        count: at most so many of each.
    """
    totals = torch.bincount(song)[song]
    order = torch.rand(len(song), dtype=torch.float64)
    rank = ((order[None] < order[:, None]) & (song[None] == song[:, None])).sum(dim=1)
    return rank < count, totals.to(torch.float32) / totals.clamp_max(count)


def scaled_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """`x` (N, ...) itself, whose gradient is multiplied by `scale` (N,)."""
    factor = scale.to(x).view(-1, *[1] * (x.ndim - 1))
    return x.detach() + (x - x.detach()) * factor


def encode_pieces(
    encoder: Any,
    samples: Tensor,
    real: Tensor,
    batch_segments: int | None = None,
    graph_segments: int | None = None,
) -> Tensor:
    """Features (N, ...) of pieces (N, n), `batch_segments` at a time.

    On the autograd graph if the samples or any encoder weight needs a gradient; exact, at the
    price of one more forward pass for all but the last `graph_segments`, whose graph is kept.

    Args:
        encoder: a `SongEncoder`.
        samples: (N, n).
        real: (N,) real samples of each.
        batch_segments: pieces per encoder batch; None takes the encoder's own.
        graph_segments: None takes what the settings say.

    Raises:
        UsageError: batch_segments below 1.
    """
    size = encoder.batch_segments if batch_segments is None else batch_segments
    expect(size >= 1, "batch_segments", size, "1 or more")
    encode, real = encoder.encode, real.to(samples.device)
    weights = [w for w in getattr(encoder, "parameters", tuple)() if w.requires_grad]
    if not (torch.is_grad_enabled() and (samples.requires_grad or weights)):
        return _in_batches(encode, samples, real, size)
    kept = graph_settings().graph_segments if graph_segments is None else graph_segments
    split = max(0, len(samples) - (size if kept is None else kept))
    # The kept ones come last, so that the backward pass takes them first and has their memory
    # back when it recomputes the others.
    parts = []
    if split:
        parts.append(_recomputed(encode, size, real[:split], samples[:split], weights))
    if split < len(samples):
        parts.append(_on_graph(encode, size, real[split:], samples[split:], weights))
    return _joined(parts)


def _on_graph(
    encode: Encode, size: int, real: Tensor, samples: Tensor, weights: list[nn.Parameter]
) -> Tensor:
    """With the whole graph; where memory runs out, recomputed after all."""
    with suppress(torch.OutOfMemoryError):
        return _joined(list(map(encode, samples.split(size), real.split(size))))
    torch.cuda.empty_cache()
    return _recomputed(encode, size, real, samples, weights)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


# torch.compile compiles the encoder, not this bookkeeping around it.
encode_pieces = torch.compiler.disable(encode_pieces, recursive=False)


_RECOMPUTED = (
    "the encoder recomputes these segments; keep their graph with "
    "gradient_settings(graph_segments=N) for N segments in all"
)


def _recomputed(
    encode: Encode, size: int, real: Tensor, samples: Tensor, weights: list[nn.Parameter]
) -> Tensor:
    try:
        return _Recomputed.apply(encode, size, real, samples, *weights)
    except RuntimeError as error:
        if "functorch" not in str(error):
            raise
        raise UsageError(f"no torch.func transform: {_RECOMPUTED}") from error


class _Recomputed(torch.autograd.Function):
    """`encode(samples)` that keeps only its inputs and recomputes per batch in backward."""

    @staticmethod
    def forward(
        ctx: Any, encode: Encode, size: int, real: Tensor, samples: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.encode, ctx.size = encode, size
        ctx.save_for_backward(samples, real, *weights)
        # The backward pass may run in another thread, without the caller's autocast, or after the
        # settings' block.
        device = samples.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        ctx.frugal = graph_settings().frugal
        with torch.no_grad():
            return _in_batches(encode, samples, real, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UsageError(f"no second derivative (create_graph=True): {_RECOMPUTED}")
        (gradient,) = gradients
        samples, real, *weights = ctx.saved_tensors
        wants_samples = ctx.needs_input_grad[3]
        totals = [torch.zeros_like(weight) for weight in weights]
        position = 0

        def step(x: Tensor, r: Tensor) -> Tensor:
            nonlocal position
            x = x.detach().requires_grad_(wants_samples)
            with (
                torch.enable_grad(),
                torch.autocast(**ctx.autocast),
                gradient_settings(frugal=ctx.frugal),
            ):
                output = ctx.encode(x, r)
            wanted = [*weights, x] if wants_samples else weights
            part = gradient[position : position + len(x)]
            found = torch.autograd.grad(output, wanted, part, allow_unused=True)
            position += len(x)
            for total, own in zip(totals, found, strict=False):
                if own is not None:
                    total += own
            return found[-1] if wants_samples else x.new_empty(0)

        found = _in_batches(step, samples, real, ctx.size)
        return (None, None, None, found if wants_samples else None, *totals)


def _in_batches(step: Encode, samples: Tensor, real: Tensor, size: int) -> Tensor:
    """Concatenated results of `step` on consecutive batches, halved where memory runs out."""
    parts: list[Tensor] = []
    start = 0
    while start < len(samples):
        batch = slice(start, start + size)
        try:
            parts.append(step(samples[batch], real[batch]))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, min(size, len(samples) - start) // 2)
        else:
            start += size
            continue
        # Outside the handler: the exception's traceback would keep the failed batch alive.
        torch.cuda.empty_cache()
    return torch.cat(parts)
