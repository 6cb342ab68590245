"""M predictors of one shape as one program: every layer is one batched matrix product.

A stack of one is how a single predictor trains too, so that the grid and separate runs share one
path. The bias of a linear layer in front of a batch normalisation cancels out of everything but
the running mean: it is held at zero instead of following its gradient, which is rounding noise.

Shape key: M = models, K = branches of a block (1 in the trunk, H in the heads), N = samples,
H = heads, L = layers, W = embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apex_reward.model.predictor import LayerPooling, Predictor
from apex_reward.scores.apex import head_range, task_heads

if TYPE_CHECKING:
    from apex_reward.model.config import ApexConfig

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """What makes predictors stackable: width, task, hidden widths and dropout rates."""

    width: int
    task: str
    shared: int
    trunk_widths: tuple[int, ...]
    head_widths: tuple[int, ...]
    trunk_dropout: float
    head_dropout: float

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the task, in order."""
        return task_heads(self.task)

    @property
    def dropouts(self) -> list[tuple[int, float]]:
        """(units, rate) of every block's dropout, in the order of the forward pass."""
        trunk = [(units, self.trunk_dropout) for units in self.trunk_widths]
        return trunk + [(units * len(self.heads), self.head_dropout) for units in self.head_widths]

    def predictor(self) -> Predictor:
        """A new predictor of this shape, drawn from torch's global random state."""
        return Predictor(
            self.width,
            self.task,
            self.shared,
            self.trunk_widths,
            self.head_widths,
            (self.trunk_dropout, self.head_dropout),
        )

    def initial_state(self, seed: int) -> StateDict:
        """State dict of the predictor that `torch.manual_seed(seed)` gives."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.predictor().state_dict()


def shape_of(config: ApexConfig, task: str | None = None, shared: int | None = None) -> Shape:
    """The shape that a configuration gives, or with another task or trunk depth.

    The 3-layer trunk has one layer more, halfway between the two of the 2-layer one, as the
    published widths have (512-256 and 512-384-256).
    """
    depth = config.shared if shared is None else shared
    widths = tuple(config.trunk_widths)
    first, last = widths[0], widths[-1]
    other = (first, last) if depth == 2 else (first, (first + last) // 2, last)
    return Shape(
        width=config.width,
        task=task or config.task,
        shared=depth,
        trunk_widths=widths if depth == config.shared else other,
        head_widths=tuple(config.head_widths),
        trunk_dropout=config.trunk_dropout,
        head_dropout=config.head_dropout,
    )


class StackedBlock(nn.Module):
    """K linear layers side by side, batch normalisation, exact GELU and dropout, in M models."""

    mean: Tensor
    variance: Tensor

    def __init__(self, blocks: Sequence[Sequence[StateDict]]) -> None:
        """`blocks[m][k]`: `weight`, `gamma`, `beta`, `mean`, `variance` of model m, branch k."""
        super().__init__()

        def stacked(name: str) -> Tensor:
            return torch.stack([torch.stack([block[name] for block in row]) for row in blocks])

        self.weight = nn.Parameter(stacked("weight"))  # (M, K, out, in)
        self.gamma = nn.Parameter(stacked("gamma"))  # (M, K, out)
        self.beta = nn.Parameter(stacked("beta"))
        self.register_buffer("mean", stacked("mean"))
        self.register_buffer("variance", stacked("variance"))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(N, M or 1, K or 1, in) -> (N, M, K, out); `mask` (N, M or 1, K * out) is the dropout."""
        models, branches, out, _ = self.weight.shape
        hidden = F.batch_norm(
            stacked_linear(x, self.weight),
            self.mean.view(-1),
            self.variance.view(-1),
            self.gamma.flatten(),
            self.beta.flatten(),
            training=self.training,
        )
        hidden = F.gelu(hidden).view(len(x), models, branches * out)
        if mask is not None:
            hidden = hidden * mask
        return hidden.view(len(x), models, branches, out)


class PredictorStack(nn.Module):
    """M predictors, with learned log sigmas and, where asked for, trained layer poolings.

    Args:
        shape: of every model.
        states: M state dicts of `Predictor`s.
        poolings: M layer poolings to train along; None where the samples are pooled already.
    """

    low: Tensor
    span: Tensor

    def __init__(
        self,
        shape: Shape,
        states: Sequence[StateDict],
        poolings: Sequence[LayerPooling] | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.trunk = nn.ModuleList(
            StackedBlock([[_block(state, name)] for state in states])
            for name in _trunk_names(shape)
        )
        self.branches = nn.ModuleList(
            StackedBlock([[_block(state, name) for name in names] for state in states])
            for names in _branch_names(shape)
        )
        finals = [_final_names(shape, leaf) for leaf in ("weight", "bias")]
        weight, bias = (
            torch.stack([torch.stack([state[name] for name in names]) for state in states])
            for names in finals
        )
        self.final_weight = nn.Parameter(weight)  # (M, H, 1, in)
        self.final_bias = nn.Parameter(bias.squeeze(-1))  # (M, H)
        self.log_sigma = nn.Parameter(torch.zeros_like(self.final_bias))
        self.pool_weight = self.pool_bias = None
        if poolings is not None:
            weights = [pooling.weight.detach().flatten() for pooling in poolings]
            biases = [pooling.state_dict()["bias"] for pooling in poolings]
            self.pool_weight = nn.Parameter(torch.stack(weights))  # (M, L)
            self.pool_bias = nn.Parameter(torch.stack(biases))  # (M, 1)
        low, high = torch.tensor([head_range(head) for head in shape.heads]).unbind(dim=1)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("span", high - low, persistent=False)

    @property
    def models(self) -> int:
        """M, the number of models."""
        return len(self.final_bias)

    def forward(self, x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """Scores (N, M, H) in head ranges.

        Args:
            x: (N, M or 1, W) embeddings, or (N, M or 1, L, W) where the pooling trains; 1 where
                all models see the same samples.
            masks: per block, (N, M or 1, units): 0 or 1 / (1 - rate); None without dropout.
        """
        if self.pool_weight is not None and self.pool_bias is not None:
            layers = x.to(self.pool_weight.dtype).expand(-1, self.models, -1, -1)
            x = torch.einsum("nmlw,ml->nmw", layers, self.pool_weight) + self.pool_bias
        hidden = x.unsqueeze(2)
        blocks = [*self.trunk, *self.branches]
        given: Sequence[Tensor | None] = masks or [None] * len(blocks)
        for block, mask in zip(blocks, given, strict=True):
            hidden = block(hidden, mask)
        logits = stacked_linear(hidden, self.final_weight).view(len(x), *self.final_bias.shape)
        scores = torch.sigmoid((logits + self.final_bias).float())
        return self.low + self.span * scores

    def state_of(self, model: int) -> StateDict:
        """One model's weights under the published names, on the CPU: loads into `Predictor`."""
        state: StateDict = {}
        for name, block in zip(_trunk_names(self.shape), self.trunk, strict=True):
            state.update(_block_state(block, model, 0, name))
        for names, block in zip(_branch_names(self.shape), self.branches, strict=True):
            for branch, name in enumerate(names):
                state.update(_block_state(block, model, branch, name))
        for branch, name in enumerate(_final_names(self.shape, "weight")):
            state[name] = self.final_weight[model, branch]
            state[name.removesuffix("weight") + "bias"] = self.final_bias[
                model, branch : branch + 1
            ]
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def pooling_of(self, model: int) -> tuple[Tensor, Tensor] | None:
        """One model's trained pooling, (L,) weights and (1,) bias; None where it is frozen."""
        if self.pool_weight is None or self.pool_bias is None:
            return None
        return self.pool_weight[model].detach().cpu(), self.pool_bias[model].detach().cpu()


def stacked_linear(x: Tensor, weight: Tensor) -> Tensor:
    """(N, M or 1, K or 1, in) times (M, K, out, in) -> (N, M * K * out), without a bias.

    Inputs that several weights share are multiplied once, by all their weights side by side.
    """
    models, branches, out, width = weight.shape
    samples, x_models, x_branches, _ = x.shape
    if x_models == x_branches == 1:
        return F.linear(x.reshape(samples, width), weight.reshape(-1, width))
    if x_branches == 1:
        branches, out = 1, branches * out
    batches = models * branches
    by_batch = x.expand(samples, models, -1, width).permute(1, 2, 0, 3)
    product = torch.bmm(
        by_batch.reshape(batches, samples, width),
        weight.reshape(batches, out, width).transpose(1, 2),
    )
    return product.transpose(0, 1).reshape(samples, batches * out)


def _trunk_names(shape: Shape) -> list[str]:
    return [f"shared.{i}.block" for i in range(len(shape.trunk_widths))]


def _branch_names(shape: Shape) -> list[list[str]]:
    return [
        [f"branch_{head}.branch.{i}.block" for head in shape.heads]
        for i in range(len(shape.head_widths))
    ]


def _final_names(shape: Shape, leaf: str) -> list[str]:
    return [f"branch_{head}.branch.{len(shape.head_widths)}.{leaf}" for head in shape.heads]


# A block's tensors: our names and the published ones (0 is the linear layer, 1 the normalisation).
_LEAVES = {
    "weight": "0.weight",
    "gamma": "1.weight",
    "beta": "1.bias",
    "mean": "1.running_mean",
    "variance": "1.running_var",
}


def _block(state: StateDict, name: str) -> StateDict:
    block = {ours: state[f"{name}.{theirs}"] for ours, theirs in _LEAVES.items()}
    # The same function, in training and in evaluation, with the bias moved into the mean.
    return {**block, "mean": block["mean"] - state[f"{name}.0.bias"]}


def _block_state(block: nn.Module, model: int, branch: int, name: str) -> StateDict:
    state = {
        f"{name}.{theirs}": getattr(block, ours)[model, branch] for ours, theirs in _LEAVES.items()
    }
    state[f"{name}.0.bias"] = torch.zeros_like(state[f"{name}.1.bias"])
    state[f"{name}.1.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    return state
