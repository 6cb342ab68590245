"""The loop by numbers: learning rates, patience, selection, weight decay, clip, batches, ranks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from apex_reward.errors import DataError, UsageError
from apex_reward.files.stamps import Stamp
from apex_reward.model.config import ApexConfig
from apex_reward.model.predictor import LayerPooling, Predictor
from apex_reward.train import loop as loop_module
from apex_reward.train.loop import (
    Loop,
    Network,
    SampleLoop,
    epoch_batches,
    predict,
    run_epochs,
    shaped,
    weighted_mean,
)
from apex_reward.train.losses import uncertainty
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Samples


def small(task: str = "popularity", dropout: tuple[float, float] = (0.0, 0.0)) -> Predictor:
    torch.manual_seed(0)
    return Predictor(2, task, 2, (2, 2), (2, 2), dropout)


class Scripted(Loop):
    """A loop whose validation errors are given, one per epoch; an epoch sets log sigma to it."""

    def __init__(self, script: list[float], accelerator: Accelerator, **settings: object) -> None:
        wanted = {"loss": "equal", "task": "popularity", **settings}
        self.script, network = script, Network(small())
        labels = np.array([[0.0, 1.0], [2.0, 5.0]])  # variances 1 and 4
        super().__init__(TrainSettings(**wanted), network, labels, accelerator)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def train_epoch(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self.network.log_sigma.fill_(self.epoch)
        return torch.zeros(2), torch.zeros(())

    def validation_errors(self) -> Tensor:
        return torch.tensor([self.script[self.epoch - 1], 0.0], dtype=torch.float64)


def run(loop: Loop) -> Loop:
    while not loop.finished:
        loop.run_epoch()
    return loop


@pytest.mark.parametrize(
    ("script", "best", "stopped"), [([5, 3, 4, 3, 9, 9, 1], 2, 4), ([9, 8, 7, 6, 7, 6, 1], 4, 6)]
)
def test_the_best_epoch_is_kept_until_patience_ends(
    accelerator: Accelerator, script: list[float], best: int, stopped: int
) -> None:
    """Patience 2; an equal figure (3 in epoch 4, 6 in epoch 6) is not better."""
    loop = run(Scripted(script, accelerator, epochs=7, patience=2))
    assert (loop.best_epoch, loop.best_figure, loop.epoch) == (best, script[best - 1] / 2, stopped)
    assert len(loop.history) == stopped
    with loop.at_best() as network:
        assert network.log_sigma.tolist() == [best, best]
    assert loop.network.log_sigma.tolist() == [stopped, stopped]


def test_a_falling_sigma_does_not_choose_the_epoch(accelerator: Accelerator) -> None:
    """Errors rise from 2 on, sigma falls all the time: val_loss prefers the last epoch."""

    class Falling(Scripted):
        def train_epoch(self) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                self.network.log_sigma.fill_(3.0 - self.epoch / 4)
            return torch.zeros(2), torch.zeros(())

    errors = [4.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0]
    for select, best in (("val_error", 2), ("val_loss", 8)):
        loop = Falling(errors, accelerator, loss="uncertainty", select=select, epochs=8)
        assert run(loop).best_epoch == best
        row = loop.history[1]
        # Variances 1 and 4: the mean of 2 / 1 and 0 / 4.
        assert row["val_error"] == 1.0
        expected = uncertainty(torch.tensor([2.0, 0.0]), torch.tensor([2.5, 2.5])).item()
        assert row["val_loss"] == pytest.approx(expected)


@pytest.mark.parametrize("stopped", range(1, 4))
def test_a_state_is_all_that_a_loop_needs(
    accelerator: Accelerator, tmp_path: Path, stopped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after any epoch, and resumed: finished loops stay so, and the best stay the best."""
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", 0.0)
    scripts = [[5, 3, 4, 3, 9, 9, 1], [9, 8, 7, 6, 7, 6, 1]]
    whole, first, second = (
        [Scripted(script, accelerator, epochs=7, patience=2) for script in scripts]
        for _ in range(3)
    )
    for _ in run_epochs(whole, tmp_path / "whole.pt", Stamp({}), False):
        pass
    for number, saved in enumerate(
        run_epochs(first, tmp_path / "state.pt", Stamp({"a": 1}), False)
    ):
        assert saved
        if number + 1 == stopped:
            break
    for _ in run_epochs(second, tmp_path / "state.pt", Stamp({"a": 1}), True):
        pass
    for ours, theirs in zip(second, whole, strict=True):
        assert ours.history == theirs.history
        assert (ours.best_epoch, ours.best_figure) == (theirs.best_epoch, theirs.best_figure)
        assert torch.equal(ours.best["log_sigma"], theirs.best["log_sigma"])
    with pytest.raises(UsageError, match=r"state.pt was made with other a"):
        next(iter(run_epochs(second, tmp_path / "state.pt", Stamp({"a": 2}), True)))


def test_learning_rates_by_hand(accelerator: Accelerator) -> None:
    """Cosine over four epochs: 1, (1 + sqrt(1/2)) / 2, 1/2, (1 - sqrt(1/2)) / 2."""
    loop, seen = Scripted([4, 3, 2, 1], accelerator, epochs=4, lr=1.0), []
    while not loop.finished:
        loop.run_epoch()
        seen.append(loop.optimizer.param_groups[0]["lr"])
    expected = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert seen == pytest.approx(expected)
    assert [row["lr"] for row in loop.history] == pytest.approx(expected)


def test_weight_decay_is_decoupled(accelerator: Accelerator) -> None:
    """With a gradient of zero AdamW leaves weight x (1 - lr x decay): 0.5 x (1 - 0.1 x 0.2)."""
    loop = Scripted([1], accelerator, lr=0.1, weight_decay=0.2)
    with torch.no_grad():
        for parameter in loop.parameters:
            parameter.fill_(0.5)
    features = torch.zeros(4, 2)
    with torch.no_grad():  # labels that are hit exactly have no gradient
        labels = loop.network.train()(features)
    loop.step(features, labels)
    weight = loop.network.predictor.shared[0].block[0].weight.detach()
    torch.testing.assert_close(weight, torch.full_like(weight, 0.49))


def test_a_step_is_the_plain_one(accelerator: Accelerator) -> None:
    """Loss, clip to a norm of 1 and AdamW, against the same written out."""
    loop = Scripted([1], accelerator, loss="uncertainty", lr=0.1)
    plain = Network(small()).train()
    features, labels = torch.randn(6, 2), 100 * torch.rand(6, 2)
    errors, loss = loop.step(features, labels)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=1e-4)
    expected = (plain(features) - labels).square().mean(dim=0)
    value = (expected / (2 * plain.log_sigma.exp() ** 2) + plain.log_sigma).sum()
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    assert norm > 1, "the clip does nothing here"
    torch.testing.assert_close(errors, expected.detach())
    torch.testing.assert_close(loss, value.detach())
    for name, ours in loop.network.state_dict().items():
        torch.testing.assert_close(ours, plain.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_a_figure_that_is_no_number_is_refused_at_once(accelerator: Accelerator) -> None:
    with pytest.raises(DataError, match="val_error is nan in epoch 1; try a smaller --lr"):
        Scripted([math.nan], accelerator).run_epoch()


@given(
    samples=st.integers(4, 400),
    batch_size=st.integers(2, 64),
    world=st.integers(1, 2),
    epoch=st.integers(1, 50),
    share=st.sampled_from([1.0, 0.5]),
)
def test_every_drawn_sample_once(
    samples: int, batch_size: int, world: int, epoch: int, share: float
) -> None:
    ranks = [epoch_batches(samples, 1, epoch, batch_size, r, world, share) for r in range(world)]
    seen = torch.cat([batch for batches in ranks for batch in batches]).tolist()
    assert len(seen) == len(set(seen)) <= samples
    steps = math.ceil(samples / (batch_size * world))
    assert len(seen) == min(samples, max(2 * steps * world, math.ceil(share * samples)))
    sizes = [len(batch) for batches in ranks for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= world
    assert {len(batches) for batches in ranks} == {steps}


def test_order_depends_on_seed_and_epoch_alone() -> None:
    order, again, other, later = (
        epoch_batches(50, seed, epoch, 64)[0] for seed, epoch in ((5, 3), (5, 3), (4, 3), (5, 4))
    )
    assert torch.equal(order, again)
    assert not torch.equal(order, other)
    assert not torch.equal(order, later)
    assert (
        order.tolist()
        == torch.randperm(
            50, generator=torch.Generator().manual_seed(loop_module.stream(5, 3, 0))
        ).tolist()
    )


def samples(count: int, width: int = 6) -> Samples:
    rng = np.random.default_rng(0)
    labels = np.stack([rng.uniform(0, 100, count), rng.uniform(0, 100, count)], axis=1)
    features = rng.standard_normal((count, width)).astype(np.float32)
    return Samples(
        features, labels.astype(np.float32), np.arange(count), np.ones(count, np.float32)
    )


CONFIG = ApexConfig(
    encoder={"hidden_size": 6, "num_attention_heads": 2}, trunk_widths=(5, 4), head_widths=(3, 2)
)


def test_processes_count_by_their_samples(accelerator: Accelerator) -> None:
    """Gradients of 5 and 3 samples, each a mean: (5 a + 3 b) / 8, the gradient of all eight."""
    assert weighted_mean(
        [torch.tensor([2.0]), torch.tensor(4.0)], 5.0, lambda t: t + torch.tensor([3.0, 9.0, 3.0])
    ) == [torch.tensor([(5 * 2 + 3 * 1) / 8]), torch.tensor((5 * 4 + 3 * 3) / 8)]
    network = Network(small()).eval()  # running statistics: the batch does not matter
    features, labels = torch.randn(8, 2), 100 * torch.rand(8, 2)

    def gradients(rows: slice) -> list[Tensor]:
        network.zero_grad()
        (network(features[rows]) - labels[rows]).square().mean(dim=0).sum().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    parts = [(gradients(slice(0, 5)), 5), (gradients(slice(5, 8)), 3)]
    flat = [torch.cat([*(g.reshape(-1) for g in own), torch.ones(1)]) * n for own, n in parts]
    found = weighted_mean(*parts[0], lambda mine: sum(flat))
    for ours, whole in zip(found, gradients(slice(0, 8)), strict=True):
        torch.testing.assert_close(ours, whole)


def test_members_draw_half_of_the_samples_anew_in_as_many_steps(accelerator: Accelerator) -> None:
    count = 2 * loop_module.MEMBER_LEAST + 100
    one, member = (
        SampleLoop(
            TrainSettings(task="popularity", batch_size=500, members=members),
            CONFIG, samples(count), samples(20), accelerator,
        )
        for members in (1, 8)
    )  # fmt: skip
    sizes: list[list[int]] = [[], []]
    drawn: list[Tensor] = []
    for loop, seen in zip((one, member), sizes, strict=True):
        step = loop.step
        loop.step = lambda x, y, step=step, seen=seen: (  # type: ignore[method-assign]
            seen.append(len(x)), drawn.append(y[:, 0]), step(x, y))[2]  # fmt: skip
        loop.run_epoch()
    steps = math.ceil(count / 500)
    assert len(sizes[0]) == len(sizes[1]) == steps
    assert (sum(sizes[0]), sum(sizes[1])) == (count, math.ceil(0.5 * count))
    member.run_epoch()
    first, second = (set(torch.cat(drawn[i : i + steps]).tolist()) for i in (steps, 2 * steps))
    assert 0.4 < len(first & second) / len(first) < 0.6, "another half in the next epoch"
    few = SampleLoop(
        TrainSettings(task="popularity", members=8), CONFIG, samples(900), samples(9), accelerator
    )
    assert few.share == 1.0


def test_shapes_of_two_and_three_trunk_layers() -> None:
    wide = shaped(ApexConfig(), TrainSettings(shared=3, task="popularity"))
    assert (wide.trunk_widths, wide.task) == ([512, 384, 256], "popularity")
    assert shaped(wide, TrainSettings(shared=2)).trunk_widths == [512, 256]
    assert shaped(CONFIG, TrainSettings()).trunk_widths == [5, 4]


def test_prediction_in_parts_and_with_a_trained_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "EVALUATION_ROWS", 4)
    pooling, layers = LayerPooling(4), torch.randn(9, 4, 2).half()
    network = Network(small(dropout=(0.3, 0.1)), pooling).train()
    with torch.no_grad():
        expected = network.predictor.eval()(pooling(layers.float()))
    network.train()
    torch.testing.assert_close(predict(network, layers), expected)
    assert network.training
    ranks = [predict(network, layers, lambda t: t, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0] + ranks[1], predict(network, layers))
    assert (ranks[1][:4] == 0).all()


def test_dropout_depends_on_the_seed_alone(accelerator: Accelerator) -> None:
    """The global random state neither changes a run nor is changed by it."""
    histories = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        loop = SampleLoop(
            TrainSettings(task="popularity", epochs=2), CONFIG, samples(40), samples(9), accelerator
        )
        before = torch.get_rng_state()
        histories.append(run(loop).history)
        assert torch.equal(torch.get_rng_state(), before)
    assert histories[0] == histories[1]
