"""The paper's three losses and one more: how the heads' squared errors become one number.

Pure functions over (..., H) mean squared errors in head order; each sums over the heads.

| name | per head | why |
|---|---|---|
| `equal` | E | the paper's plain sum, on raw scales |
| `weighted` | 5 E for popularity heads, E for aesthetic ones | the paper |
| `uncertainty` | E / (2 sigma^2) + log sigma, sigma = exp(learned) | the paper |
| `standardized` | E / variance of the training labels | heads start alike whatever their scale |

Shape key: H = heads (2 or 7), M = models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.scores.apex import POPULARITY_HEADS
from apex_reward.train.settings import LOSSES

POPULARITY_WEIGHT = 5.0


def equal(errors: Tensor) -> Tensor:
    """Sum of the errors: (..., H) -> (...).

    >>> equal(torch.tensor([400.0, 1.0])).item()
    401.0
    """
    return errors.sum(dim=-1)


def weighted(errors: Tensor) -> Tensor:
    """Sum of the errors with 5.0 on the popularity heads, 1.0 on the others: (..., H) -> (...).

    >>> weighted(torch.tensor([400.0, 100.0, 1.0])).item()
    2501.0
    """
    popular = len(POPULARITY_HEADS)
    return POPULARITY_WEIGHT * errors[..., :popular].sum(dim=-1) + errors[..., popular:].sum(dim=-1)


def uncertainty(errors: Tensor, log_sigma: Tensor) -> Tensor:
    """Sum of E / (2 sigma^2) + log sigma: (..., H) -> (...); least at sigma^2 = E.

    Args:
        log_sigma: (..., H) learned, starting at 0.

    >>> uncertainty(torch.tensor([400.0, 1.0]), torch.zeros(2)).item()
    200.5
    """
    return (0.5 * torch.exp(-2.0 * log_sigma) * errors + log_sigma).sum(dim=-1)


def standardized(errors: Tensor, variances: Tensor) -> Tensor:
    """Sum of E / V: (..., H) -> (...); the best constant prediction gives 1 per head.

    Args:
        variances: (H,) variance of each head's training labels, above 0.

    >>> standardized(torch.tensor([400.0, 1.0]), torch.tensor([800.0, 0.25])).item()
    4.5
    """
    return (errors / variances).sum(dim=-1)


def combine(name: str, errors: Tensor, log_sigma: Tensor, variances: Tensor) -> Tensor:
    """The loss called `name`: (..., H) -> (...).

    Raises:
        UsageError: an unknown name.
    """
    if name == "equal":
        return equal(errors)
    if name == "weighted":
        return weighted(errors)
    if name == "uncertainty":
        return uncertainty(errors, log_sigma)
    if name == "standardized":
        return standardized(errors, variances)
    raise UsageError(f"loss is {name!r}; expected one of {', '.join(LOSSES)}")
