"""The stacked program against plain modules trained one by one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apex_reward.model import Predictor
from apex_reward.model.predictor import LayerPooling
from apex_reward.train.draws import DropoutDraws
from apex_reward.train.losses import combine
from apex_reward.train.stack import PredictorStack, Shape
from apex_reward.train.steps import clip_per_model, predict

SHAPES = [
    Shape(12, "full", 2, (10, 6), (5, 4), 0.3, 0.1),
    Shape(12, "popularity", 3, (10, 8, 6), (5, 4), 0.3, 0.1),
]


class GivenDropout(nn.Module):
    """Dropout with a mask that was drawn elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask if self.training else x


def with_given_dropout(predictor: Predictor, masks: Sequence[Tensor], shape: Shape) -> None:
    """Replace every dropout of a plain predictor by columns of the stack's masks (N, units)."""
    for i in range(shape.shared):
        block = predictor.get_submodule(f"shared.{i}.block")
        block[3] = GivenDropout()
        block[3].mask = masks[i]
    for level in range(len(shape.head_widths)):
        columns = masks[shape.shared + level].chunk(len(shape.heads), dim=1)
        for head, mask in zip(shape.heads, columns, strict=True):
            block = predictor.get_submodule(f"branch_{head}.branch.{level}.block")
            block[3] = GivenDropout()
            block[3].mask = mask


@pytest.mark.parametrize("shape", SHAPES, ids=["full-2", "popularity-3"])
def test_one_step_equals_plain_modules(shape: Shape) -> None:
    """Forward, loss, clip, AdamW and running statistics, for models of two seeds and losses."""
    torch.manual_seed(0)
    seeds, losses = [3, 3, 7], ["equal", "uncertainty", "standardized"]
    states = [shape.initial_state(seed) for seed in seeds]
    stack = PredictorStack(shape, states)
    features, labels = torch.randn(3, 16, 12), 3 + torch.rand(16, len(shape.heads))
    variances = labels.var(dim=0, unbiased=False)
    draws = DropoutDraws([3, 7], shape.dropouts, torch.device("cpu"))
    draws.start(epoch=1, rank=0)
    masks = draws.draw(16, torch.tensor([0, 0, 1]))
    optimizer = torch.optim.AdamW(stack.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    errors = (stack(features.transpose(0, 1), masks) - labels[:, None]).square().mean(dim=0)
    total = sum(
        combine(loss, errors[i], stack.log_sigma[i], variances) for i, loss in enumerate(losses)
    )
    total.backward()
    clip_per_model(stack.parameters(), 1.0)
    optimizer.step()
    for i, loss in enumerate(losses):
        plain = shape.predictor()
        plain.load_state_dict(PredictorStack(shape, [states[i]]).state_of(0))
        plain.train()
        with_given_dropout(plain, [mask[:, i] for mask in masks], shape)
        # A bias in front of a batch normalisation has a gradient of rounding noise only.
        trained = {n: p for n, p in plain.named_parameters() if not n.endswith("block.0.bias")}
        log_sigma = nn.Parameter(torch.zeros(len(shape.heads)))
        parameters = [*trained.values(), log_sigma]
        reference = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
        plain_errors = (plain(features[i]) - labels).square().mean(dim=0)
        combine(loss, plain_errors, log_sigma, variances).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        reference.step()
        torch.testing.assert_close(errors[i], plain_errors, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(stack.log_sigma[i], log_sigma, rtol=0, atol=1e-7)
        ours = stack.state_of(i)
        for name, value in plain.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=2e-6, msg=name)


def test_evaluation_equals_the_predictor_it_came_from() -> None:
    shape = SHAPES[0]
    state = shape.initial_state(1)
    plain = shape.predictor()
    # Running statistics and biases that are not their initial ones.
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value + 0.1 * torch.rand(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for name, value in state.items()
    }
    plain.load_state_dict(state)
    x = torch.randn(9, 12, generator=generator)
    stack = PredictorStack(shape, [state, shape.initial_state(2)])
    with torch.no_grad():
        expected = plain.eval()(x)
    torch.testing.assert_close(predict(stack, x)[:, 0], expected)
    plain.load_state_dict(stack.state_of(0))
    with torch.no_grad():
        torch.testing.assert_close(plain(x), expected)


def test_trained_pooling_equals_the_module() -> None:
    shape = SHAPES[1]
    pooling = LayerPooling(4)
    stack = PredictorStack(shape, [shape.initial_state(1)], [pooling])
    layers = torch.randn(9, 4, 12).half()
    plain = shape.predictor()
    plain.load_state_dict(stack.state_of(0))
    with torch.no_grad():
        expected = plain.eval()(pooling(layers.float()))
    torch.testing.assert_close(predict(stack, layers)[:, 0], expected)


def test_worked_step() -> None:
    """One AdamW step by hand on the final bias: lr 0.1, no decay, a first step is lr x sign."""
    shape = Shape(2, "popularity", 2, (2, 2), (2, 2), 0.0, 0.0)
    stack = PredictorStack(shape, [shape.initial_state(0)])
    optimizer = torch.optim.AdamW([stack.final_bias], lr=0.1, weight_decay=0.0)
    before = stack.final_bias.detach().clone()
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    labels = torch.tensor([[100.0, 0.0]]).expand(4, 2)
    errors = (stack(x[:, None]) - labels[:, None]).square().mean(dim=0)
    errors.sum().backward()
    optimizer.step()
    # Streams must rise and likes must fall; Adam's first step is g / (|g| + eps).
    torch.testing.assert_close(stack.final_bias - before, torch.tensor([[0.1, -0.1]]))


def test_clip_is_each_models_own() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0]])
    norms = clip_per_model([weight], 1.0)
    torch.testing.assert_close(norms, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(weight.grad, torch.tensor([[0.6, 0.8, 0.0], [0.3, 0.4, 0.0]]))


def test_dropout_keeps_the_share_and_the_mean() -> None:
    draws = DropoutDraws([1, 2], [(50, 0.3), (70, 0.1)], torch.device("cpu"))
    draws.start(epoch=1, rank=0)
    first, second = draws.draw(2000, torch.tensor([0, 1, 0]))
    assert first.shape == (2000, 3, 50)
    assert (first == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert second.mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(first[:, 0], first[:, 2])
    assert not torch.equal(first[:, 0], first[:, 1])
    draws.start(epoch=1, rank=0)
    assert torch.equal(draws.draw(2000, torch.tensor([0, 1, 0]))[0], first)
    draws.start(epoch=2, rank=0)
    assert not torch.equal(draws.draw(2000, torch.tensor([0, 1, 0]))[0], first)
    assert F.relu(first).equal(first)
