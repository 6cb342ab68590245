"""Load a model for scoring: device, number type and conventions as words from a command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.errors import UsageError

if TYPE_CHECKING:
    import torch

    from apex_reward.model import ApexReward

DTYPES = ("float32", "bfloat16", "float16")
MAX_DEFAULT_WORKERS = 8


def load_scorer(
    name: str,
    *,
    encoder: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    segment_tail: str | None = None,
) -> ApexReward:
    """A model ready to score on a device.

    Args:
        name: hub id, local folder or `apex-tiny`.
        encoder: hub id or folder of the encoder, in place of the one that the model names.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, ...; None takes a GPU where there is one.
        dtype: of the encoder: `float32`, `bfloat16` or `float16`; pooling and predictor keep
            float32.
        segment_tail: `pad`, `mask` or `drop`; None takes the model's own.

    Raises:
        UsageError: a device that is not there, an unknown dtype or segment tail.
        CheckpointError: as `ApexReward.from_pretrained`.
    """
    place = _device(device)
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    overrides: dict[str, Any] = {"segment_tail": segment_tail} if segment_tail else {}

    import torch

    from apex_reward.model import ApexReward

    # A name that a folder carries is that folder; anything else is looked up.
    source = Path(name) if Path(name).is_dir() else name
    with without_bars():
        model = ApexReward.from_pretrained(
            source, encoder=encoder, dtype=getattr(torch, dtype), **overrides
        )
    torch.nn.Module.to(model, place)
    return model


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers' own: reading and writing weights takes a second."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def default_workers() -> int:
    """Decoding processes when the user names no number: a core is left to the encoder."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    return max(1, min(MAX_DEFAULT_WORKERS, cores - 1))


def _device(device: str | None) -> torch.device:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {device!r} cannot be used here: {reason}") from error
    return place
