"""Train a stack of models on one set of samples, each stopping when its own validation says so.

One step serves all models: a look-up of the batch, a forward pass, the sum of the models' losses
(no model's gradient reaches another), a clip per model, AdamW.

Shape key: M = models still training, A = all models, S = distinct seeds, N = samples of a batch,
n = samples, H = heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from apex_reward.errors import DataError
from apex_reward.model.pooling import LayerPooling
from apex_reward.train.dataset import Samples
from apex_reward.train.draws import DropoutDraws, epoch_batches
from apex_reward.train.losses import combine
from apex_reward.train.settings import Condition, Settings
from apex_reward.train.stack import PredictorStack, Shape
from apex_reward.train.steps import (
    clip_per_model,
    label_variances,
    predict,
    running_statistics,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

HistoryRow = dict[str, float | int]


class Program:
    """Models of one shape in training. Call `run_epoch` until `finished`.

    Args:
        conditions: A of them, alike but for loss and seed.
        shape: of every model.
        train, val: samples in the conditions' mode and task.
        settings: of the optimiser and schedule.
        accelerator: device, precision and processes.
        poolings: the layer pooling that each model starts from, where it trains.
        together: True where all processes work on this program, each on its share of a batch;
            False where this process works on it alone.

    Attributes:
        history: per condition a list of rows, one an epoch.
        epoch: epochs done.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        shape: Shape,
        train: Samples,
        val: Samples,
        settings: Settings,
        accelerator: Accelerator,
        poolings: Sequence[LayerPooling] | None = None,
        together: bool = True,
    ) -> None:
        self.conditions, self.settings, self.accelerator = list(conditions), settings, accelerator
        self.rank = accelerator.process_index if together else 0
        self.world = accelerator.num_processes if together else 1
        if len(train) < 2 * self.world:
            raise DataError(f"{len(train)} training samples; expected 2 or more per process")
        device = accelerator.device
        self.features = torch.as_tensor(train.features).to(device)
        self.labels = torch.as_tensor(train.labels).to(device)
        self.val_features = torch.as_tensor(val.features).to(device)
        self.val_labels = torch.as_tensor(val.labels).double()
        self.variances = label_variances(train.labels, shape.heads, self.conditions).to(device)
        initial = {c.seed: shape.initial_state(c.seed) for c in conditions}
        states = [initial[condition.seed] for condition in conditions]
        self.stack = PredictorStack(shape, states, poolings).to(device)
        self.optimizer = accelerator.prepare_optimizer(
            torch.optim.AdamW(
                self.stack.parameters(),
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        )
        self.epoch = 0
        self.active = list(range(len(self.conditions)))
        self.history: list[list[HistoryRow]] = [[] for _ in self.conditions]
        self.best = {name: value.clone() for name, value in self.stack.state_dict().items()}
        self.best_loss = [float("inf")] * len(self.conditions)
        self.best_epoch = [0] * len(self.conditions)
        self._index_active()

    @property
    def finished(self) -> bool:
        """Whether every model has stopped."""
        return not self.active

    def _index_active(self) -> None:
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
        train_errors, train_loss = self._train_epoch()
        self._average_running_statistics()
        val_errors = self._validation_errors()
        log_sigma = self.stack.log_sigma.detach().cpu().double()
        val_loss = self._losses(val_errors, log_sigma, self.variances.cpu().double())
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
                self._keep_best(position, condition)
        self._drop_finished()

    def _train_epoch(self) -> tuple[Tensor, Tensor]:
        """All steps of an epoch; mean errors (M, H) and losses (M,) over its samples."""
        self.stack.train()
        self.draws.start(self.epoch, self.rank)
        device = self.accelerator.device
        batches = epoch_batches(
            len(self.features),
            self.seeds,
            self.epoch,
            self.settings.batch_size,
            self.rank,
            self.world,
        )
        errors = torch.zeros_like(self.stack.log_sigma)
        losses = torch.zeros(len(self.active), device=device)
        for batch in batches:
            rows = batch.to(device)
            step_errors, step_losses = self.train_step(rows)
            errors += step_errors * rows.shape[1]
            losses += step_losses * rows.shape[1]
        total = torch.tensor(float(sum(batch.shape[1] for batch in batches)), device=device)
        if self.world > 1:
            errors, losses, total = (
                self.accelerator.reduce(value, "sum") for value in (errors, losses, total)
            )
        return (errors / total).cpu(), (losses / total).cpu()

    def train_step(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One optimisation step of every model on samples (S, N); its errors (M, H), losses (M,).

        A process with more samples than another counts for more, as its samples do.
        """
        features, labels = self.look_up(rows)
        masks = self.draws.draw(rows.shape[1], self.seed_of)
        with self.accelerator.autocast():
            scores = self.stack(features, masks)
        errors = (scores - labels).square().mean(dim=0)
        losses = self._losses(errors, self.stack.log_sigma, self.variances)
        self.optimizer.zero_grad()
        self.accelerator.backward(losses.sum())
        parameters = [p for p in self.stack.parameters() if p.grad is not None]
        if self.world > 1:
            self._average_gradients(parameters, rows.shape[1])
        if self.settings.precision == "fp16":
            self.accelerator.unscale_gradients(self.optimizer)
        clip_per_model(parameters, self.settings.clip)
        self.optimizer.step()
        return errors.detach(), losses.detach()

    def look_up(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, M or 1, ...) and labels (N, M or 1, H) of samples (S, N)."""
        by_model = rows if len(rows) == 1 else rows[self.seed_of]
        flat = by_model.reshape(-1)
        features = self.features.index_select(0, flat).unflatten(0, by_model.shape)
        labels = self.labels.index_select(0, flat).unflatten(0, by_model.shape)
        return features.transpose(0, 1), labels.transpose(0, 1)

    def _losses(self, errors: Tensor, log_sigma: Tensor, variances: Tensor) -> Tensor:
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

    def _average_running_statistics(self) -> None:
        """Each process normalises by its own batch; the running statistics become their mean."""
        if self.world > 1:
            for _, buffer in running_statistics(self.stack):
                buffer.copy_(self.accelerator.reduce(buffer, "mean"))

    def _validation_errors(self) -> Tensor:
        """(M, H) mean squared errors over the validation samples, float64 on the CPU."""
        scores = predict(
            self.stack, self.val_features, self.accelerator.reduce, self.rank, self.world
        )
        return (scores.double() - self.val_labels.unsqueeze(1)).square().mean(dim=0)

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

    def _keep_best(self, position: int, condition: int) -> None:
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
        self._index_active()

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
