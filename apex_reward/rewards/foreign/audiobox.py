"""Any reward model on the same battles: one small protocol, and adapters to it.

A model that is a package gets an adapter here, or one of your own named as `package.module:Class`;
a model that is not gets a table of scores (`NAME_a`, `NAME_b` per battle).

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy.typing as npt

from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

AUDIOBOX_AXES = {
    "CE": "audiobox_enjoyment",
    "CU": "audiobox_usefulness",
    "PC": "audiobox_complexity",
    "PQ": "audiobox_quality",
}


@runtime_checkable
class RewardModel(Protocol):
    """What the arena needs of a reward model; a higher score means a better song."""

    @property
    def name(self) -> str:
        """Short name for tables and messages."""
        ...

    def score(self, waveforms: Tensor, sample_rate: int) -> Mapping[str, npt.ArrayLike]:
        """Score name -> (B,) values of float songs (B, C, T) in [-1, 1] at `sample_rate` Hz."""
        ...


class AudioboxAdapter:
    """Meta's audiobox-aesthetics (extra `audiobox`): enjoyment, usefulness, complexity, quality.

    Args:
        predictor: what `audiobox_aesthetics.infer.initialize_predictor()` returns; None calls it,
            which downloads its weights once.

    Raises:
        UsageError: the package is not installed.
    """

    name = "audiobox"

    def __init__(self, predictor: Any = None) -> None:
        if predictor is None:
            try:
                from audiobox_aesthetics.infer import initialize_predictor
            except ImportError:
                raise UsageError(
                    "the model audiobox needs `pip install 'apex-reward[audiobox]'`"
                ) from None
            predictor = initialize_predictor()
        self._predictor = predictor

    def score(self, waveforms: Tensor, sample_rate: int) -> dict[str, npt.ArrayLike]:
        """One of the four axes (1 to 10) -> (B,) values."""
        songs = [{"path": song, "sample_rate": sample_rate} for song in waveforms.cpu()]
        rows = self._predictor.forward(songs)
        # Releases up to 0.0.1 return JSON text, later ones mappings.
        axes = [json.loads(row) if isinstance(row, str) else row for row in rows]
        return {name: [float(row[axis]) for row in axes] for axis, name in AUDIOBOX_AXES.items()}


def load_reward(name: str) -> RewardModel:
    """The reward model that a command line names: `audiobox`, or `package.module:Class`.

    Raises:
        UsageError: no such module or class, or not a `RewardModel`.
    """
    if name == AudioboxAdapter.name:
        return AudioboxAdapter()
    module, _, attribute = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{name}: {error}; expected package.module:Class") from error
    if not isinstance(made, RewardModel):
        raise UsageError(f"{name} has no `name` or no `score(waveforms, sample_rate)`")
    return made
