"""The losses against worked numbers."""

from __future__ import annotations

import math

import pytest
import torch

from apex_reward.errors import UsageError
from apex_reward.train.losses import LOSSES, combine, equal, standardized, uncertainty, weighted

ERRORS = torch.tensor([600.0, 700.0, 0.5, 0.25, 0.125, 0.0625, 1.0])


def test_worked_values() -> None:
    assert equal(ERRORS).item() == pytest.approx(1301.9375)
    # 5 (600 + 700) + 1.9375
    assert weighted(ERRORS).item() == pytest.approx(6501.9375)
    variances = torch.tensor([600.0, 1400.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    # 1 + 0.5 + 1 + 0.5 + 0.25 + 0.125 + 2
    assert standardized(ERRORS, variances).item() == pytest.approx(5.375)
    log_sigma = torch.tensor([math.log(10.0), math.log(20.0), 0.0, 0.0, 0.0, 0.0, 0.0])
    # 600/200 + ln 10 + 700/800 + ln 20 + 1.9375/2
    expected = 3.0 + math.log(10) + 0.875 + math.log(20) + 0.96875
    assert uncertainty(ERRORS, log_sigma).item() == pytest.approx(expected, rel=1e-6)


def test_uncertainty_is_least_where_sigma_squared_is_the_error() -> None:
    log_sigma = (0.5 * ERRORS.log()).requires_grad_()
    uncertainty(ERRORS, log_sigma).backward()
    assert log_sigma.grad is not None
    assert log_sigma.grad.abs().max() < 1e-6


def test_losses_of_several_models_are_each_their_own() -> None:
    stacked = torch.stack([ERRORS, 2 * ERRORS])
    log_sigma = torch.stack([torch.zeros(7), torch.ones(7)])
    for name in LOSSES:
        both = combine(name, stacked, log_sigma, ERRORS)
        alone = [combine(name, stacked[i], log_sigma[i], ERRORS) for i in range(2)]
        assert torch.equal(both, torch.stack(alone))


def test_popularity_task_has_no_aesthetic_terms() -> None:
    assert weighted(ERRORS[:2]).item() == pytest.approx(6500.0)


def test_unknown_loss() -> None:
    with pytest.raises(UsageError, match=r"'focal'; expected one of equal, weighted"):
        combine("focal", ERRORS, ERRORS, ERRORS)
