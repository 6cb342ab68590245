"""Reduced precision is used where it gives the numbers of float32, and nowhere else.

Libraries pick a kernel by device, number type and shape, and now and then one is wrong without a
word. So a short made-up song goes through an encoder in both number types before the reduced one is
believed.

Shape key: N = songs, n = samples, L = layers, W = width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from apex_reward.model.graph import gradient_settings

REDUCED = (torch.bfloat16, torch.float16)
# Share of a feature vector's spread that rounding may take. Sound kernels give a tenth of it, a
# wrong one about 1.
TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}
PROBE_SAMPLES = 8_000

_verdicts: dict[tuple[object, ...], bool] = {}
_probing: ContextVar[bool] = ContextVar("_probing", default=False)


def checked_dtype(
    encoder: nn.Module,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    autocast: bool = False,
) -> torch.dtype:
    """`dtype` if the encoder gives float32's features in it on that device, else float32.

    The comparison is made once per kind of device, number type and encoder shape; where it fails
    there is one warning.

    Args:
        encoder: takes samples (N, n), gives features of shape (N, ..., W); on any device, in any
            number type. It is not changed.
        device: where it is going to run.
        dtype: float32, float64, bfloat16 or float16.
        autocast: whether `dtype` is to come from autocast over float32 weights.
    """
    if dtype not in REDUCED or torch.compiler.is_compiling() or _probing.get():
        return dtype
    place = torch.device(device)
    key = (place.type, dtype, autocast, _shape(encoder))
    if key not in _verdicts:
        error = _worst_difference(encoder, place, dtype, autocast)
        _verdicts[key] = error <= TOLERANCE[dtype]
        if not _verdicts[key]:
            name = str(dtype).removeprefix("torch.")
            warnings.warn(
                f"{name} on {place.type} is wrong for this encoder: its features differ from "
                f"float32's by {100 * error:.0f}% of their spread (at most "
                f"{100 * TOLERANCE[dtype]:.0f}% is rounding); float32 is used instead",
                stacklevel=2,
            )
    return dtype if _verdicts[key] else torch.float32


def in_float32(encoder: nn.Module, *arguments: Any) -> Tensor:
    """The encoder's output in float32, whatever its weights' number type and autocast are."""
    place = next(encoder.parameters()).device
    # Layers that are recomputed in the backward pass would find other weights by then.
    with torch.autocast(place.type, enabled=False), _quietly(), gradient_settings():
        return torch.func.functional_call(
            encoder, _state(encoder, place, torch.float32), tuple(map(_widened, arguments))
        )


def _worst_difference(
    encoder: nn.Module, place: torch.device, dtype: torch.dtype, autocast: bool
) -> float:
    songs = _made_up_songs(place)

    def features(weights: torch.dtype, reduced: bool) -> Tensor:
        state = _state(encoder, place, weights)
        with torch.autocast(place.type, dtype=dtype, enabled=reduced):
            return torch.func.functional_call(encoder, state, (songs.to(weights),)).double()

    with torch.no_grad(), _quietly():
        wanted = features(torch.float32, reduced=False)
        found = features(torch.float32 if autocast else dtype, reduced=autocast)
    spread = (wanted - wanted.mean(dim=-1, keepdim=True)).norm(dim=-1)
    worst = ((found - wanted).norm(dim=-1) / spread.clamp_min(1e-12)).max()
    return float(worst) if bool(torch.isfinite(worst)) else float("inf")


def _made_up_songs(place: torch.device) -> Tensor:
    """Two songs (2, n): chords with noise, one of them quiet."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(PROBE_SAMPLES) / 24_000
    chords = torch.stack(
        [
            sum((torch.sin(6.2832 * f * t) for f in notes), torch.zeros_like(t))
            for notes in ((110.0, 277.0, 1660.0), (65.0, 392.0, 5000.0))
        ]
    )
    noise = torch.randn(chords.shape, generator=generator)
    loudness = torch.tensor([[0.15], [0.02]])
    return (loudness * (chords + 0.2 * noise)).to(place)


def _state(encoder: nn.Module, place: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = [*encoder.named_parameters(), *encoder.named_buffers()]
    return {
        name: value.to(place, dtype if value.is_floating_point() else value.dtype)
        for name, value in tensors
    }


def _shape(encoder: nn.Module) -> tuple[object, ...]:
    names = tuple((name, tuple(value.shape)) for name, value in encoder.named_parameters())
    return type(encoder).__qualname__, hash(names)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def _quietly() -> Iterator[None]:
    """Inside, `checked_dtype` believes everything: the comparison must not ask for itself."""
    token = _probing.set(True)
    try:
        yield
    finally:
        _probing.reset(token)
