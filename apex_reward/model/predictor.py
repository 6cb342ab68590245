"""From layer embeddings to scores: layer pooling, a shared trunk and one branch per head.

Module names give the published checkpoint's tensor names (`shared.0.block.0.weight`,
`branch_score_streams.branch.2.bias`, ...), so that its state dict loads as it is.

Shape key: N = embeddings, L = layers (4), W = embedding width, H = heads (2 or 7), M = members of
an ensemble.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apex_reward.errors import UsageError
from apex_reward.scores.apex import head_range, task_heads
from apex_reward.scores.head import Head

PUBLISHED_TRUNK_WIDTHS = {2: (512, 256), 3: (512, 384, 256)}
PUBLISHED_HEAD_WIDTHS = (128, 64)
# The published pooling was never trained: it is torch.manual_seed(42)'s Conv1d(4, 1, 1), built
# anew at extraction and at inference, and in no checkpoint.
POOLING_WEIGHT = (
    0.3822692632675171,
    0.4150039553642273,
    -0.11713624000549316,
    0.45930564403533936,
)
POOLING_BIAS = -0.10955178737640381


class LayerPooling(nn.Conv1d):
    """Weighted sum of four layers plus a bias: (N, L, W) -> (N, W).

    Starts at the published constants; `weight` is (1, 4, 1), `bias` (1,). Trainable.
    """

    def __init__(self, layers: int = len(POOLING_WEIGHT)) -> None:
        super().__init__(layers, 1, kernel_size=1, dtype=torch.float32)

    def reset_parameters(self) -> None:
        """Set the published constants (an equal mean where there are not four layers)."""
        with torch.no_grad():
            if self.in_channels == len(POOLING_WEIGHT):
                self.weight.copy_(torch.tensor(POOLING_WEIGHT, dtype=torch.float64)[None, :, None])
                self.bias.fill_(POOLING_BIAS)  # type: ignore[union-attr]
            else:
                self.weight.fill_(1 / self.in_channels)
                self.bias.zero_()  # type: ignore[union-attr]

    def forward(self, layers: Tensor) -> Tensor:
        """(N, L, W) -> (N, W)."""
        return super().forward(layers).squeeze(1)


class DenseBlock(nn.Module):
    """Linear, batch normalisation, exact GELU, dropout: (N, in) -> (N, out)."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Linear(width_in, width_out),
            nn.BatchNorm1d(width_out),
            nn.GELU(),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) to (N, out)."""
        return self.block(x)


def dense_blocks(width_in: int, widths: Sequence[int], dropout: float) -> list[DenseBlock]:
    """Blocks of the given widths behind each other."""
    steps = zip([width_in, *widths[:-1]], widths, strict=True)
    return [DenseBlock(a, b, dropout) for a, b in steps]


class HeadBranch(nn.Module):
    """One head: dense blocks of the given widths, then a single logit, (N, in) -> (N, 1)."""

    def __init__(self, width_in: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *dense_blocks(width_in, widths, dropout), nn.Linear(widths[-1], 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) to logits (N, 1)."""
        return self.branch(x)


class Predictor(nn.Module):
    """Song embeddings (N, W) to scores (N, H) in the heads' ranges, in head order.

    Args:
        width: W, 768 in the published model.
        task: `popularity` (H = 2) or `full` (H = 7).
        shared: number of trunk layers, 2 (512-256) or 3 (512-384-256).
        trunk_widths: widths of the trunk layers; None takes the published ones.
        head_widths: widths of each branch's hidden layers.
        dropout: rates of the trunk and of the heads in [0, 1), active in training mode only.

    Raises:
        UsageError: an unknown task, or trunk widths that do not fit `shared`.
    """

    def __init__(
        self,
        width: int = 768,
        task: str = "full",
        shared: int = 2,
        trunk_widths: Sequence[int] | None = None,
        head_widths: Sequence[int] = PUBLISHED_HEAD_WIDTHS,
        dropout: tuple[float, float] = (0.3, 0.1),
    ) -> None:
        super().__init__()
        widths = tuple(trunk_widths or published_trunk_widths(shared))
        if len(widths) != shared:
            raise UsageError(f"trunk widths {widths} do not fit shared={shared} layers")
        self.heads = task_heads(task)
        self.shared = nn.Sequential(*dense_blocks(width, widths, dropout[0]))
        for head in self.heads:
            self.add_module(f"branch_{head}", HeadBranch(widths[-1], head_widths, dropout[1]))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores (N, H): low + (high - low) * sigmoid(logit)."""
        logits = self.logits(embeddings)
        low, high = logits.new_tensor([head_range(head) for head in self.heads]).T
        return low + (high - low) * torch.sigmoid(logits)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Raw outputs (N, H) before the sigmoid."""
        trunk = self.shared(embeddings)
        branches = [self.get_submodule(f"branch_{head}")(trunk) for head in self.heads]
        return torch.cat(branches, dim=1)


class PredictorEnsemble(nn.Module):
    """M predictors of one shape on the same embeddings: (N, W) to each member's scores (M, N, H).

    Member i's tensors are `members.<i>.` and the names of a `Predictor`.

    Raises:
        UsageError: fewer than two members; one alone is a `Predictor`.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        super().__init__()
        if len(members) < 2:
            raise UsageError(f"an ensemble of {len(members)} members; expected 2 or more")
        self.members = nn.ModuleList(members)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores (M, N, H) in the heads' ranges."""
        return torch.stack([member(embeddings) for member in self.members])


class StudentHeads(nn.Module):
    """Embeddings (N, W) to scores (N, H) by one hidden layer; (M, N, H) with several members.

    The members' products run as one. A raw output z becomes `centre + scale * z`, then a value
    within the head's range: low + (high - low) * sigmoid(x) between two bounds, a softplus behind
    one bound, x itself without bounds. `fit` sets centre and scale, so that z is about standard
    normal for any head.

    Args:
        width: W.
        heads: H heads with their ranges.
        hidden: width of a member's hidden layer.
        members: M.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, width: int, heads: Sequence[Head], hidden: int, members: int = 1) -> None:
        super().__init__()
        self.ranges = tuple(heads)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, members * hidden)
        self.weight = nn.Parameter(torch.randn(members, hidden, len(heads)) / hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(members, 1, len(heads)))
        self.register_buffer("centre", torch.zeros(len(heads)))
        self.register_buffer("scale", torch.ones(len(heads)))

    def fit(self, labels: Tensor) -> None:
        """Set centre and scale from labels (n, H) in the heads' units."""
        for number, (head, column) in enumerate(zip(self.ranges, labels.double().T, strict=True)):
            raw = _unbounded(head, column)
            self.centre[number] = raw.mean()
            self.scale[number] = raw.std(correction=0).clamp_min(1e-6)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores within the heads' ranges."""
        hidden = nn.functional.gelu(self.hidden(self.norm(embeddings)))
        members = hidden.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        raw = self.centre + self.scale * (members @ self.weight + self.bias)
        columns = zip(self.ranges, raw.unbind(dim=-1), strict=True)
        values = torch.stack([_in_range(head, column) for head, column in columns], dim=-1)
        return values[0] if len(values) == 1 else values


def _in_range(head: Head, x: Tensor) -> Tensor:
    if head.bounded:
        return head.low + (head.high - head.low) * torch.sigmoid(x)
    if math.isfinite(head.low):
        return head.low + nn.functional.softplus(x)
    return x if head.high == math.inf else head.high - nn.functional.softplus(x)


def _unbounded(head: Head, values: Tensor) -> Tensor:
    """Inverse of `_in_range`; values on a bound count as just within it."""
    if head.bounded:
        return ((values - head.low) / (head.high - head.low)).clamp(1e-4, 1 - 1e-4).logit()
    if not (math.isfinite(head.low) or math.isfinite(head.high)):
        return values
    distance = values - head.low if math.isfinite(head.low) else head.high - values
    distance = distance.clamp_min(1e-6)
    return distance + torch.log(-torch.expm1(-distance))


def members_of(predictor: Predictor | PredictorEnsemble) -> list[Predictor]:
    """An ensemble's members, or a single predictor as a list of one."""
    if isinstance(predictor, Predictor):
        return [predictor]
    return [member for member in predictor.members if isinstance(member, Predictor)]


def published_trunk_widths(shared: int) -> tuple[int, ...]:
    """Trunk widths of the paper's 2- and 3-layer conditions."""
    if shared not in PUBLISHED_TRUNK_WIDTHS:
        raise UsageError(f"shared is {shared}; the published trunks have 2 or 3 layers")
    return PUBLISHED_TRUNK_WIDTHS[shared]


class Familiarity(nn.Module):
    """Mahalanobis distance of song embeddings from the training songs, in units of a threshold.

    The distance is the length of (embedding - mean) @ whitening, where whitening @ whitening.T is
    the inverse of the training songs' covariance (Mahalanobis 1936). The matrix is stored whole: at
    W = 768 it takes 2.4 MB beside 3.2 MB of one predictor. A low-rank form would drop the
    directions in which training songs hardly vary; a strange song differs most in those.

    Buffers:
        mean: (W,) of the training songs' embeddings.
        whitening: (W, W).
        threshold: () distance that 1% of held-out training songs exceed.
    """

    mean: Tensor
    whitening: Tensor
    threshold: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whitening", torch.eye(width))
        self.register_buffer("threshold", torch.ones(()))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, W) -> (B,) distance / threshold: above 1 is unfamiliar; on the autograd graph."""
        offsets = (embeddings - self.mean) @ self.whitening
        return torch.linalg.vector_norm(offsets, dim=1) / self.threshold
