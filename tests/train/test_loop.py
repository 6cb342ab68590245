"""The loop by numbers: learning rates, patience, best-keeping, weight decay, the clip."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from apex_reward.errors import DataError
from apex_reward.train.loop import Loop
from apex_reward.train.resume import load_state, save_state
from apex_reward.train.settings import Condition, TrainSettings
from apex_reward.train.stack import PredictorStack, Shape

SHAPE = Shape(2, "popularity", 2, (2, 2), (2, 2), 0.0, 0.0)


class Scripted(Loop):
    """A loop whose validation errors are given: (epochs, M); an epoch sets all weights to it."""

    def __init__(
        self, script: list[list[float]], settings: TrainSettings, accelerator: Accelerator
    ):
        conditions = [Condition("equal", task="popularity", seed=i) for i in range(len(script[0]))]
        stack = PredictorStack(SHAPE, [SHAPE.initial_state(c.seed) for c in conditions])
        self.script = torch.tensor(script, dtype=torch.float64)
        super().__init__(conditions, stack, stack.parameters(), np.eye(2), settings, accelerator)

    def train_epoch(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self.stack.final_bias.fill_(self.epoch)
        return torch.zeros(len(self.active), 2), torch.zeros(len(self.active))

    def validation_errors(self) -> Tensor:
        losses = self.script[self.epoch - 1, self.active]
        return torch.stack([losses, torch.zeros_like(losses)], dim=1)


def test_each_model_stops_and_keeps_its_own_best(accelerator: Accelerator) -> None:
    """Patience 2: the first is best in epoch 2 and stops after 4, the second in 4, after 6."""
    script = [[5, 9], [3, 8], [4, 7], [3, 6], [9, 7], [9, 6], [1, 1]]
    loop = Scripted(script, TrainSettings(epochs=7, patience=2), accelerator)
    left = []
    while not loop.finished:
        loop.run_epoch()
        left.append(list(loop.active))
    assert left == [[0, 1], [0, 1], [0, 1], [1], [1], []]
    assert (loop.best_epoch, loop.best_loss) == ([2, 4], [3.0, 6.0])
    assert [len(rows) for rows in loop.history] == [4, 6]
    # A tie (3 in epoch 4, 6 in epoch 6) is not better; the weights are those of the best epoch.
    assert loop.best_stack().final_bias.tolist() == [[2.0, 2.0], [4.0, 4.0]]


@pytest.mark.parametrize("stopped", range(1, 6))
def test_a_state_is_all_that_a_loop_needs(
    accelerator: Accelerator, tmp_path: Path, stopped: int
) -> None:
    """Taken up after any epoch: models that have stopped stay so, and the best stay the best."""
    script = [[5, 9], [3, 8], [4, 7], [3, 6], [9, 7], [9, 6], [1, 1]]
    settings = TrainSettings(epochs=7, patience=2)
    first, second = (Scripted(script, settings, accelerator) for _ in range(2))
    for _ in range(stopped):
        first.run_epoch()
    save_state(first, tmp_path / "state.pt")
    load_state(second, tmp_path / "state.pt")
    assert second.history == first.history
    while not second.finished:
        second.run_epoch()
    assert second.epoch == 6
    assert (second.best_epoch, second.best_loss) == ([2, 4], [3.0, 6.0])
    assert [[row["val_loss"] for row in rows] for rows in second.history] == [
        [5, 3, 4, 3], [9, 8, 7, 6, 7, 6]
    ]  # fmt: skip
    assert second.best_stack().final_bias.tolist() == [[2.0, 2.0], [4.0, 4.0]]


def test_learning_rates_by_hand(accelerator: Accelerator) -> None:
    """Cosine over four epochs: 1, (1 + sqrt(1/2)) / 2, 1/2, (1 - sqrt(1/2)) / 2."""
    loop = Scripted([[4], [3], [2], [1]], TrainSettings(epochs=4, lr=1.0), accelerator)
    seen = []
    while not loop.finished:
        loop.run_epoch()
        seen.append(loop.optimizer.param_groups[0]["lr"])
    expected = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert seen == pytest.approx(expected)
    assert [row["lr"] for row in loop.history[0]] == pytest.approx(expected)


def test_weight_decay_is_decoupled(accelerator: Accelerator) -> None:
    """With a gradient of zero AdamW leaves weight x (1 - lr x decay): 0.5 x (1 - 0.1 x 0.2)."""
    settings = TrainSettings(epochs=2, lr=0.1, weight_decay=0.2)
    loop = Scripted([[1], [1]], settings, accelerator)
    with torch.no_grad():
        for parameter in loop.stack.parameters():
            parameter.fill_(0.5)
        loop.stack.final_bias.fill_(0.0)
    features = torch.zeros(4, 1, 2)
    with torch.no_grad():  # labels that are hit exactly have no gradient
        labels = loop.stack.train()(features)
    loop.step(features, labels, [torch.ones(4, 1, n) for n in (2, 2, 4, 4)])
    weight = loop.stack.trunk[0].weight.detach()
    torch.testing.assert_close(weight, torch.full_like(weight, 0.49))


def test_gradients_are_clipped(accelerator: Accelerator) -> None:
    loop = Scripted([[1, 1]], TrainSettings(clip=2.0), accelerator)
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.tensor([[3.0, 4.0], [0.6, 0.8]])
    loop.clip([weight])
    torch.testing.assert_close(weight.grad, torch.tensor([[1.2, 1.6], [0.6, 0.8]]))


def test_a_loss_that_is_no_number_is_refused_at_once(accelerator: Accelerator) -> None:
    loop = Scripted([[math.nan]], TrainSettings(), accelerator)
    with pytest.raises(DataError, match="is nan in epoch 1; try a smaller --lr"):
        loop.run_epoch()
