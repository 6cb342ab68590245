"""Pieces of a training step over a stack of models.

Shape key: M = models, n = samples, N = samples of a chunk, H = heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from apex_reward.data.shards import FloatArray
from apex_reward.errors import DataError, listed
from apex_reward.train.settings import Condition
from apex_reward.train.stack import PredictorStack

EVALUATION_ROWS = 4096


def clip_per_model(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale every model's gradient to a norm of at most `max_norm`, in place.

    The same as `torch.nn.utils.clip_grad_norm_` on each model alone.

    Args:
        parameters: with a gradient and a first axis of M models.

    Returns:
        (M,) the norms before.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = [torch.linalg.vector_norm(g.flatten(1), dim=1).square() for g in gradients]
    norms = torch.stack(squares).sum(dim=0).sqrt()
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
    return norms


def label_variances(
    labels: FloatArray, heads: Sequence[str], conditions: Iterable[Condition]
) -> Tensor:
    """(H,) population variances of (n, H) training labels.

    Raises:
        DataError: a constant label where a condition divides by its variance.
    """
    variances = labels.astype(np.float64).var(axis=0)
    constant = [head for head, value in zip(heads, variances, strict=True) if value == 0]
    if constant and any(condition.loss == "standardized" for condition in conditions):
        raise DataError(
            f"the training labels of {listed(constant)} are all equal; the loss 'standardized' "
            "divides by their variance. Mend the labels or choose another loss"
        )
    return torch.as_tensor(variances, dtype=torch.float32)


def predict(
    stack: PredictorStack,
    features: Tensor,
    reduce: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Scores (n, M, H) of samples (n, ...) in evaluation mode, on the CPU.

    Whole chunks are dealt to the processes in turn, so that the result has the same bytes for
    any number of them.

    Args:
        reduce: sums a tensor over the processes; needed where there are several.
    """
    training = stack.training
    stack.eval()
    size = len(features), stack.models, len(stack.shape.heads)
    scores = torch.zeros(size, device=features.device)
    with torch.inference_mode():
        for number, start in enumerate(range(0, len(features), EVALUATION_ROWS)):
            if number % world == rank:
                chunk = features[start : start + EVALUATION_ROWS].unsqueeze(1)
                scores[start : start + EVALUATION_ROWS] = stack(chunk)
    stack.train(training)
    return (scores if reduce is None or world == 1 else reduce(scores)).cpu()


def running_statistics(stack: PredictorStack) -> list[tuple[str, Tensor]]:
    """The batch normalisations' running means and variances, by name, in a fixed order."""
    return sorted(
        (name, buffer) for name, buffer in stack.named_buffers() if name not in ("low", "span")
    )
