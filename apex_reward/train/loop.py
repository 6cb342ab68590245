"""The one training loop: epochs of a stack of models, each stopping when its validation says so.

What an epoch hears is a subclass's: stored embeddings (`program.py`) or audio (`tune.py`).

Shape key: M = models still training, A = all models, N = samples of a batch, H = heads.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from apex_reward.data.shards import FloatArray
from apex_reward.errors import DataError
from apex_reward.model.predictor import LayerPooling
from apex_reward.train.draws import DropoutDraws
from apex_reward.train.losses import combine
from apex_reward.train.settings import Condition, TrainSettings
from apex_reward.train.stack import PredictorStack
from apex_reward.train.steps import clip_per_model, label_variances, running_statistics

if TYPE_CHECKING:
    from accelerate import Accelerator

HistoryRow = dict[str, float | int]


class Loop(ABC):
    """Models of one shape in training. Call `run_epoch` until `finished`.

    Args:
        conditions: A of them, alike but for loss and seed.
        stack: the models, on the accelerator's device.
        parameters: what is trained; the stack's and, for one model, those of other modules.
        labels: (n, H) of the training samples.
        settings: of the optimiser and schedule.
        accelerator: device, precision and processes.
        together: True where all processes work on these models, each on its share of a batch;
            False where this process works on them alone.

    Attributes:
        history: per condition a list of rows, one an epoch.
        epoch: epochs done.
        active: positions of the models that still train.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        stack: PredictorStack,
        parameters: Iterable[nn.Parameter],
        labels: FloatArray,
        settings: TrainSettings,
        accelerator: Accelerator,
        together: bool = True,
    ) -> None:
        self.conditions, self.settings, self.accelerator = list(conditions), settings, accelerator
        self.rank = accelerator.process_index if together else 0
        self.world = accelerator.num_processes if together else 1
        self.stack, self.labels_hash = stack, hashlib.sha256(labels.tobytes()).hexdigest()
        variances = label_variances(labels, stack.shape.heads, conditions)
        self.variances = variances.to(accelerator.device)
        self.optimizer = accelerator.prepare_optimizer(
            torch.optim.AdamW(
                parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
            )
        )
        self.epoch = 0
        self.active = list(range(len(self.conditions)))
        self.history: list[list[HistoryRow]] = [[] for _ in self.conditions]
        self.best = {name: value.clone() for name, value in stack.state_dict().items()}
        self.best_loss = [float("inf")] * len(self.conditions)
        self.best_epoch = [0] * len(self.conditions)
        self.index_active()

    @abstractmethod
    def train_epoch(self) -> tuple[Tensor, Tensor]:
        """All steps of an epoch; mean errors (M, H) and losses (M,) over its samples (CPU)."""

    @abstractmethod
    def validation_errors(self) -> Tensor:
        """(M, H) mean squared errors over the validation samples, float64 on the CPU."""

    def about(self) -> dict[str, Any]:
        """What a resumed run must have alike."""
        conditions = [vars(condition) for condition in self.conditions]
        return {**self.settings.to_dict(), "conditions": conditions, "labels": self.labels_hash}

    @property
    def finished(self) -> bool:
        """Whether every model has stopped."""
        return not self.active

    def index_active(self) -> None:
        """What follows from which models still train."""
        conditions = [self.conditions[i] for i in self.active]
        self.seeds = list(dict.fromkeys(c.seed for c in conditions))
        device = self.accelerator.device
        self.seed_of = torch.tensor([self.seeds.index(c.seed) for c in conditions], device=device)
        self.losses = {
            loss: torch.tensor([i for i, c in enumerate(conditions) if c.loss == loss]).to(device)
            for loss in dict.fromkeys(c.loss for c in conditions)
        }
        self.draws = DropoutDraws(self.seeds, self.stack.shape.dropouts, device)

    def run_epoch(self) -> None:
        """Train for one epoch, validate, note what is best, and drop the models that are done."""
        self.epoch += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr_at(self.epoch)
        self.stack.train()
        self.draws.start(self.epoch, self.rank)
        train_errors, train_loss = self.train_epoch()
        val_errors = self.validation_errors()
        log_sigma = self.stack.log_sigma.detach().cpu().double()
        val_loss = self.losses_of(val_errors, log_sigma, self.variances.cpu().double())
        for position, condition in enumerate(self.active):
            loss = float(val_loss[position])
            if not np.isfinite(loss) and not np.isfinite(self.best_loss[condition]):
                raise DataError(
                    f"the validation loss of {self.conditions[condition]} is {loss} in epoch "
                    f"{self.epoch}; try a smaller --lr or --precision no"
                )
            self.history[condition].append(
                self._row(
                    float(train_loss[position]),
                    loss,
                    train_errors[position],
                    val_errors[position],
                    log_sigma[position].exp(),
                )
            )
            if loss < self.best_loss[condition]:
                self.best_loss[condition], self.best_epoch[condition] = loss, self.epoch
                self.keep_best(position, condition)
        self._drop_finished()

    def step(
        self,
        features: Tensor,
        labels: Tensor,
        masks: Sequence[Tensor],
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One optimisation step of every model; its errors (M, H) and losses (M,).

        Args:
            features, labels: (N, M or 1, ...) and (N, M or 1, H).
            masks: of the dropout, as `DropoutDraws.draw` gives them.
            weights: (N, M) what each sample counts for each model; None where all count alike.
        """
        with self.accelerator.autocast():
            scores = self.stack(features, masks)
        squares = (scores - labels).square()
        if weights is None:
            errors = squares.mean(dim=0)
        else:
            errors = torch.einsum("nmh,nm->mh", squares, weights / weights.sum(dim=0))
        losses = self.losses_of(errors, self.stack.log_sigma, self.variances)
        self.optimizer.zero_grad()
        self.accelerator.backward(losses.sum())
        groups = self.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"] if p.grad is not None]
        if self.world > 1:
            self._average_gradients(parameters, len(features))
        if self.settings.precision == "fp16":
            self.accelerator.unscale_gradients(self.optimizer)
        self.clip(parameters)
        self.optimizer.step()
        return errors.detach(), losses.detach()

    def clip(self, parameters: Sequence[nn.Parameter]) -> None:
        """Bound the norm of each model's gradient."""
        clip_per_model(parameters, self.settings.clip)

    def losses_of(self, errors: Tensor, log_sigma: Tensor, variances: Tensor) -> Tensor:
        """(M,) losses, each model's own."""
        losses = errors.new_zeros(len(errors))
        for name, models in self.losses.items():
            index = models.to(errors.device)
            values = combine(name, errors[index], log_sigma[index], variances)
            losses = losses.index_copy(0, index, values)
        return losses

    def _average_gradients(self, parameters: Iterable[nn.Parameter], samples: int) -> None:
        """Mean over processes, weighted by their samples, in one exchange."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients] + [gradients[0].new_ones(1)]) * samples
        flat = self.accelerator.reduce(flat, "sum")
        pieces = (flat[:-1] / flat[-1]).split([g.numel() for g in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    def _row(
        self, train_loss: float, val_loss: float, train: Tensor, val: Tensor, sigma: Tensor
    ) -> HistoryRow:
        row: HistoryRow = {
            "epoch": self.epoch,
            "lr": self.settings.lr_at(self.epoch),
            "train_loss": train_loss,
            "val_loss": val_loss,
        }
        for name, values in (("train_mse", train), ("val_mse", val), ("sigma", sigma)):
            heads = zip(self.stack.shape.heads, values.tolist(), strict=True)
            row |= {f"{name}_{head}": value for head, value in heads}
        return row

    def keep_best(self, position: int, condition: int) -> None:
        """Note the model at `position` in the stack as the best so far of a condition."""
        for name, value in self.stack.state_dict().items():
            self.best[name][condition].copy_(value[position])

    def _drop_finished(self) -> None:
        """Take the models that are out of patience or epochs out of the stack."""
        kept = [
            position
            for position, condition in enumerate(self.active)
            if self.epoch < self.settings.epochs
            and self.epoch - self.best_epoch[condition] < self.settings.patience
        ]
        if len(kept) < len(self.active):
            self.active = [self.active[position] for position in kept]
            self.resize(torch.tensor(kept, dtype=torch.long, device=self.accelerator.device))

    def resize(self, kept: Tensor) -> None:
        """Keep the models at positions `kept` in the stack and in the optimiser."""
        for parameter in self.stack.parameters():
            parameter.data = parameter.data[kept]
            parameter.grad = None
            state = self.optimizer.state.get(parameter, {})
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state:
                    state[name] = state[name][kept]
        for _, buffer in running_statistics(self.stack):
            buffer.data = buffer.data[kept]
        self.index_active()

    def best_stack(self) -> PredictorStack:
        """All A models as they were at their best validation loss, in evaluation mode."""
        shape = self.stack.shape
        weight = self.stack.pool_weight
        poolings = None if weight is None else [LayerPooling(weight.shape[1])]
        states = [shape.initial_state(0)]
        stack = PredictorStack(shape, states, poolings).to(self.accelerator.device)
        for tensor_name, tensor in [*stack.named_parameters(), *running_statistics(stack)]:
            tensor.data = self.best[tensor_name].clone()
        return stack.eval()

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs beside `about`: plain tensors, numbers and lists of them."""
        scaler = self.accelerator.scaler
        return {
            "epoch": self.epoch,
            "active": self.active,
            "stack": self.stack.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "history": self.history,
            "best": self.best,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.epoch, self.active = state["epoch"], list(state["active"])
        kept = torch.tensor(self.active, dtype=torch.long, device=self.accelerator.device)
        self.resize(kept)
        self.stack.load_state_dict(state["stack"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.history, self.best = state["history"], state["best"]
        self.best_loss, self.best_epoch = list(state["best_loss"]), list(state["best_epoch"])
