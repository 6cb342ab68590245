"""Batches of an epoch: every sample once, no nearly empty batch, shares of processes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from apex_reward.train.draws import epoch_batches


@given(
    samples=st.integers(4, 400),
    batch_size=st.integers(2, 64),
    world=st.integers(1, 2),
    epoch=st.integers(1, 50),
)
def test_every_sample_once(samples: int, batch_size: int, world: int, epoch: int) -> None:
    ranks = [epoch_batches(samples, [1, 2], epoch, batch_size, r, world) for r in range(world)]
    for seed in range(2):
        seen = torch.cat([batch[seed] for batches in ranks for batch in batches])
        assert sorted(seen.tolist()) == list(range(samples))
    sizes = [batch.shape[1] for batches in ranks for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= world
    assert len({len(batches) for batches in ranks}) == 1


def test_order_depends_on_seed_and_epoch_alone() -> None:
    (both,) = epoch_batches(50, [4, 5], 3, 64, 0, 1)
    (alone,) = epoch_batches(50, [5], 3, 64, 0, 1)
    (later,) = epoch_batches(50, [5], 4, 64, 0, 1)
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(alone, later)
