"""Number types: which one an encoder computes in, and modules that keep full precision.

A reduced type is used where it gives the numbers of float32, and nowhere else. Libraries pick a
kernel by device, number type and shape, and some kernels are wrong without an error. So a short
synthetic song goes through an encoder in both number types before the reduced one is used.

Shape key: N = songs, n = samples, W = width.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.packing import gradient_settings

REDUCED = (torch.bfloat16, torch.float16)
NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# CPU features that multiply matrices of a reduced type in hardware.
HARDWARE = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16"),
}
# The largest share of a feature vector's spread that rounding may change. Correct kernels change
# a tenth of it, a wrong one about 1.
TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}
PROBE_SAMPLES = 8_000

_verdicts: dict[tuple[object, ...], bool] = {}
_warned: set[torch.dtype] = set()
_probing: ContextVar[bool] = ContextVar("_probing", default=False)


class FrozenModule(nn.Module):
    """A module that stays in eval mode: it must not drop out inside a policy's `train()`."""

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)


class FrozenModel(FrozenModule):
    """A reward model around one `encoder` whose number type can be set; the rest keeps float32."""

    encoder: Any

    def set_encoder_dtype(self, dtype: torch.dtype | str) -> None:
        """Compute the encoder's products in `dtype`; the rest of the model keeps float32.

        Args:
            dtype: `auto`, `float32`, `bfloat16`, `float16`, or a torch type. A type that the device
                computes wrongly becomes float32, with a warning.
        """
        cast_encoder(self.encoder, dtype)


class CheckedEncoder(nn.Module):
    """An encoder whose forward pass replaces a reduced number type that is wrong on its device.

    A subclass defines `encode`. `FULL` names the modules that keep float32 in a cast.
    """

    FULL: tuple[type[nn.Module], ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Cast or move all tensors; `FULL` modules keep float32 where `fn` asks for half."""
        kept = _kept(self)

        def apply(tensor: Tensor) -> Tensor:
            cast = fn(tensor)
            return tensor.to(cast.device) if cast.dtype in REDUCED and id(tensor) in kept else cast

        return super()._apply(apply, recurse)

    def encode(self, samples: Tensor, real: Tensor | None = None) -> Tensor:
        """Features (N, ..., W) of samples (N, n)."""
        raise NotImplementedError

    def forward(self, samples: Tensor, real: Tensor | None = None) -> Tensor:
        """Features of samples (N, n), in float32 where the number type in use is wrong here."""
        own, dtype = weights_dtype(self), working_dtype(self, samples.device.type)
        if checked_dtype(self, samples.device, dtype, autocast=dtype != own) == dtype:
            return self.encode(samples, real)
        # Layers that are recomputed in the backward pass would find other weights by then.
        with torch.autocast(samples.device.type, enabled=False), _unchecked(), gradient_settings():
            state = _state(self, samples.device, torch.float32)
            return torch.func.functional_call(self, state, (samples.float(), real))


def weights_dtype(encoder: nn.Module) -> torch.dtype:
    """The number type of an encoder's products: that of its matrices."""
    return next(weight.dtype for weight in encoder.parameters() if weight.ndim > 1)


def working_dtype(encoder: nn.Module, device_type: str) -> torch.dtype:
    """The number type of an encoder's products here: autocast's, or that of its weights."""
    autocast = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if autocast else weights_dtype(encoder)


def cast_encoder(encoder: nn.Module, dtype: torch.dtype | str) -> None:
    """Cast an encoder in place, to float32 where `dtype` is wrong on its device."""
    device = next(encoder.parameters()).device
    nn.Module.to(encoder, checked_dtype(encoder, device, usable_dtype(dtype, device)))


def in_full_precision(module: nn.Module, x: Tensor, *args: Any) -> Any:
    """`module(x, *args)` outside autocast, with weights and `x` widened to at least float32."""
    weight = next(chain(module.parameters(), module.buffers()))
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        if weight.dtype == dtype:
            return module(x.to(dtype), *args)
        state = _state(module, weight.device, dtype)
        return torch.func.functional_call(module, state, (x.to(dtype), *args))


def dtype_option(options: dict[str, Any], default: torch.dtype | str) -> torch.dtype | str:
    """Remove `dtype` from a call's options, or transformers' older name for it, `torch_dtype`.

    Raises:
        UsageError: both are set, to different types.
    """
    given = [options.pop(name) for name in ("dtype", "torch_dtype") if name in options]
    given = [value for value in given if value is not None]
    if len({str(value).removeprefix("torch.") for value in given}) > 1:
        raise UsageError(f"dtype is {given[0]} and torch_dtype is {given[1]}; pass dtype= only")
    return given[0] if given else default


def usable_dtype(
    dtype: torch.dtype | str,
    device: torch.device | str = "cpu",
    timer: Callable[[torch.dtype], float] | None = None,
) -> torch.dtype:
    """The number type that a name stands for on a device.

    `auto` is bfloat16 where hardware multiplies its matrices faster than float32's (a GPU with
    bfloat16, a CPU with AMX), else float32. A reduced type for which a CPU has no instructions
    gives one warning.

    Args:
        dtype: `auto`, `float32`, `bfloat16`, `float16`, or a torch type.
        timer: seconds of a short matrix product in a number type; None is `product_seconds`.

    Raises:
        CheckpointError: another name.
    """
    place = torch.device(device)
    if dtype == "auto":
        return torch.bfloat16 if _fast_bfloat16(place) else torch.float32
    chosen = dtype if isinstance(dtype, torch.dtype) else NAMES.get(dtype.removeprefix("torch."))
    if chosen is None or not chosen.is_floating_point:
        raise CheckpointError(f"dtype is {dtype!r}; expected auto, float32, bfloat16 or float16")
    if chosen not in REDUCED or chosen in _warned or place.type != "cpu":
        return chosen
    if not cpu_features().intersection(HARDWARE[chosen]):
        _warned.add(chosen)
        seconds = timer or product_seconds
        factor = seconds(chosen) / max(seconds(torch.float32), 1e-9)
        warnings.warn(
            f"this CPU has no instructions for {_named(chosen)}: a matrix product takes "
            f"{factor:.1f} times as long as in float32; use dtype='float32' (--dtype float32)",
            stacklevel=2,
        )
    return chosen


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cpu_features() -> frozenset[str]:
    """The CPU's instruction sets, by the names that `torch.cpu.get_capabilities` uses."""
    return frozenset(name for name, able in torch.cpu.get_capabilities().items() if able is True)


def product_seconds(dtype: torch.dtype) -> float:
    """The least processor time of three products of 256 x 512 by 512 x 512 matrices."""
    left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(3):
        started = time.thread_time()
        left @ right
        times.append(time.thread_time() - started)
    return min(times)


def _fast_bfloat16(place: torch.device) -> bool:
    # AVX-512's bfloat16 instructions alone run at about half of float32's rate.
    if place.type == "cpu":
        return "amx_bf16" in cpu_features()
    return place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def checked_dtype(
    encoder: nn.Module,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    autocast: bool = False,
) -> torch.dtype:
    """`dtype` if the encoder gives float32's features in it on that device, else float32.

    The comparison is made once per kind of device, number type and encoder shape. A type that
    fails it gives one warning.

    Args:
        encoder: maps samples (N, n) to features (N, ..., W); on any device, in any number type. It
            is not changed.
        device: where it is going to run.
        dtype: float32, float64, bfloat16 or float16.
        autocast: whether `dtype` comes from autocast over float32 weights.
    """
    if dtype not in REDUCED or torch.compiler.is_compiling() or _probing.get():
        return dtype
    place = torch.device(device)
    names = tuple((name, tuple(value.shape)) for name, value in encoder.named_parameters())
    key = (place.type, dtype, autocast, type(encoder).__qualname__, hash(names))
    if key not in _verdicts:
        error = _worst_difference(encoder, place, dtype, autocast)
        _verdicts[key] = error <= TOLERANCE[dtype]
        if not _verdicts[key]:
            warnings.warn(
                f"{_named(dtype)} on {place.type} is wrong for this encoder: its features differ "
                f"from float32's by {100 * error:.0f}% of their spread (at most "
                f"{100 * TOLERANCE[dtype]:.0f}% is rounding); float32 is used instead",
                stacklevel=2,
            )
    return dtype if _verdicts[key] else torch.float32


def _worst_difference(
    encoder: nn.Module, place: torch.device, dtype: torch.dtype, autocast: bool
) -> float:
    songs = _synthetic_songs(place)

    def features(weights: torch.dtype, reduced: bool) -> Tensor:
        state = _state(encoder, place, weights)
        with torch.autocast(place.type, dtype=dtype, enabled=reduced):
            return torch.func.functional_call(encoder, state, (songs.to(weights),)).double()

    with torch.no_grad(), _unchecked():
        wanted = features(torch.float32, reduced=False)
        try:
            found = features(torch.float32 if autocast else dtype, reduced=autocast)
        except UsageError:  # an overflow
            return float("inf")
    spread = (wanted - wanted.mean(dim=-1, keepdim=True)).norm(dim=-1)
    worst = ((found - wanted).norm(dim=-1) / spread.clamp_min(1e-12)).max()
    return float(worst) if bool(torch.isfinite(worst)) else float("inf")


def _synthetic_songs(place: torch.device) -> Tensor:
    """Two songs (2, n): chords with noise, one of them quiet."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(PROBE_SAMPLES, dtype=torch.float32) / 24_000
    notes = torch.tensor([[110.0, 277.0, 1660.0], [65.0, 392.0, 5000.0]], dtype=torch.float32)
    chords = torch.sin(6.2832 * notes[:, :, None] * t).sum(dim=1)
    noise = torch.randn(chords.shape, generator=generator, dtype=torch.float32)
    loudness = torch.tensor([[0.15], [0.02]], dtype=torch.float32)
    return (loudness * (chords + 0.2 * noise)).to(place)


def _state(module: nn.Module, place: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """A module's tensors in `dtype`, with those of `FULL` modules in float32 at least."""
    wide, kept = torch.promote_types(dtype, torch.float32), _kept(module)
    state = {}
    for name, value in chain(module.named_parameters(), module.named_buffers()):
        own = wide if id(value) in kept else dtype
        state[name] = value.to(place, own if value.is_floating_point() else value.dtype)
    return state


def _kept(module: nn.Module) -> set[int]:
    """The identities of the tensors that stay in float32."""
    full = tuple(getattr(module, "FULL", ()))
    parts = (part for part in module.modules() if isinstance(part, full))
    return {id(t) for part in parts for t in chain(part.parameters(), part.buffers())}


@contextmanager
def _unchecked() -> Iterator[None]:
    """Inside, `checked_dtype` accepts every type: the comparison itself must not be checked."""
    token = _probing.set(True)
    try:
        yield
    finally:
        _probing.reset(token)


def one_device(device_map: Any) -> torch.device | str:
    """The one device that a `device_map` names."""
    if device_map == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    place = device_map[""] if isinstance(device_map, dict) else device_map
    return "cpu" if place is None else place
