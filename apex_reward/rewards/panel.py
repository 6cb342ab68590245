"""`Panel`: several reward models used as one; its heads are named `model.head`.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.model.encode import Lengths, Prompts
from apex_reward.rewards.members import Members
from apex_reward.rewards.protocol import RewardModel, check_model
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores


class Panel:
    """Several reward models as one: songs are resampled once per rate, encoders shared.

    Args:
        models: by name, or in order under their own names.

    Raises:
        UsageError: none, or two of one name.
    """

    name = "panel"

    def __init__(self, models: Mapping[str, RewardModel] | Sequence[RewardModel]) -> None:
        if isinstance(models, Mapping):
            named = [(str(name), model) for name, model in models.items()]
        else:
            named = [(model.name, model) for model in models]
        names = [name for name, _ in named]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(
                f"two models of a panel are called {', '.join(twice)}; give them names of their "
                "own: {'first': ..., 'second': ...}"
            )
        if not named:
            raise UsageError("a panel needs at least one reward model")
        self.models: dict[str, RewardModel] = {n: check_model(model, n) for n, model in named}
        self.parts = Members(dict(self.models.items()))

    @property
    def heads(self) -> tuple[Head, ...]:
        """Every member's heads under the names `model.head`."""
        return tuple(
            Head(f"{name}.{head.name}", head.low, head.high)
            for name, model in self.models.items()
            for head in model.heads
        )

    @property
    def sample_rate(self) -> int:
        """Hz that songs are best given at: the highest of the members'."""
        return max(model.sample_rate for model in self.models.values())

    @property
    def differentiable(self) -> bool:
        """Whether gradients reach the waveform through every member."""
        return all(model.differentiable for model in self.models.values())

    @property
    def reads_text(self) -> bool:
        """Whether any member judges songs by their prompts."""
        return any(model.reads_text for model in self.models.values())

    def __call__(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None, prompts: Prompts = None
    ) -> Scores:
        """Scores of songs (B, T) or (B, C, T) by every member, on the autograd graph.

        Args and errors as in any `RewardModel`; prompts go to the members that read them.
        """
        return self.parts.forward(waveforms, sample_rate, lengths, prompts)[0]


def members_of(model: RewardModel) -> Members:
    """The models of a panel, or a single model, with their encoders."""
    return model.parts if isinstance(model, Panel) else Members({None: model})
